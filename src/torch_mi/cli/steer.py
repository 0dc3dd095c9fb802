# SPDX-License-Identifier: MIT OR Apache-2.0
"""`torch-mi steer`."""

from typing import Annotated

from typer import Argument, Option

from torch_mi.cli import options
from torch_mi.cli.places import Edge, From, Heads, Layers, To, chosen
from torch_mi.cli.session import Session
from torch_mi.errors import InterventionError

Prompt = Annotated[str, Argument(metavar="PROMPT", help="The text.")]
Scale = Annotated[
    float | None, Option("--scale", metavar="FACTOR", help="Multiply attention along the edges.")
]
Set = Annotated[float | None, Option("--set", metavar="P", help="Set it to a probability instead.")]
Doses = Annotated[
    str | None,
    Option(
        "--doses",
        metavar="FACTORS",
        help="Dose and response in one layer, the middle one unless given: as 0.5,1,2,4.",
    ),
]


def steer(  # noqa: PLR0913 - the options are the interface
    prompt: Prompt,
    *,
    model: options.Model = "demo",
    edge: Edge = None,
    from_pos: From = None,
    to_pos: To = None,
    layer: Layers = None,
    head: Heads = None,
    scale: Scale = None,
    target: Set = None,
    doses: Doses = None,
    json: options.Json = None,
    html: options.Html = None,
    device: options.Device = None,
    dtype: options.DtypeOption = options.Dtype.float32,
    adapter: options.Adapter = None,
    seed: options.Seed = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Turn attention between tokens up or down.

    [bold]torch-mi steer "The capital of France is" --edge="-1:France" --scale 0.1[/]
    """
    session = Session(json, html, quiet=quiet, debug=debug)
    if (scale is not None and target is not None) or (scale, target, doses) == (None,) * 3:
        raise InterventionError("say --scale, --set or --doses (and not both --scale and --set)")
    factors = None if doses is None else _factors(doses)
    loaded = session.load(model, device, dtype, seed, adapter)
    from torch_mi import show  # noqa: PLC0415 - `--help` must not pay for torch
    from torch_mi.analysis import dose, steering  # noqa: PLC0415
    from torch_mi.analysis.edges import EdgeSpec  # noqa: PLC0415
    from torch_mi.hooks.point import HookPoint  # noqa: PLC0415
    from torch_mi.show.causal import steer_page  # noqa: PLC0415

    edges = EdgeSpec(*chosen(loaded, prompt, layer, head, (edge, from_pos, to_pos)))
    session.weigh(loaded, prompt, HookPoint.AttnPattern)
    found = curve = None
    with session.busy("steering"):
        if scale is not None or target is not None:
            kind, amount = ("scale", scale) if target is None else ("set_value", target)
            spec = steering.SteeringSpec(
                edges.layers, edges.heads, edges.edges, kind, 0.0 if amount is None else amount
            )
            found = steering.steer(loaded, prompt, spec)
        if factors is not None:
            one = edges if layer is not None else edges.layer(loaded.num_layers // 2)
            curve = dose.dose_response(loaded, prompt, one, doses=factors)
    results = [result for result in (found, curve) if result is not None]
    data = results[0].to_dict()
    session.write_json(data | ({} if len(results) == 1 else {"doses": results[1].to_dict()}))
    if html is not None:
        session.write_page(*steer_page(found, curve, loaded.origin.model_id))
    for result in results:
        session.print(show.table(result, session.out.width))


def _factors(text: str) -> list[float]:
    """Factors as 0.5,1,2."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as cause:
        raise InterventionError(f"--doses {text!r} is not like 0.5,1,2,4") from cause
