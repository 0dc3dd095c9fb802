# SPDX-License-Identifier: MIT OR Apache-2.0
"""`torch-mi knockout`."""

from typing import Annotated

from typer import Argument, Option

from torch_mi.cli import options
from torch_mi.cli.places import Edge, From, Heads, Layers, To, chosen
from torch_mi.cli.session import Session

Prompt = Annotated[str, Argument(metavar="PROMPT", help="The text.")]
Target = Annotated[
    str | None,
    Option(
        "--target",
        metavar="TOKEN",
        help="Also cut the edges layer by layer, head by head, and show this token's probability.",
    ),
]


def knockout(  # noqa: PLR0913 - the options are the interface
    prompt: Prompt,
    *,
    model: options.Model = "demo",
    edge: Edge = None,
    from_pos: From = None,
    to_pos: To = None,
    layer: Layers = None,
    head: Heads = None,
    target: Target = None,
    json: options.Json = None,
    html: options.Html = None,
    device: options.Device = None,
    dtype: options.DtypeOption = options.Dtype.float32,
    adapter: options.Adapter = None,
    seed: options.Seed = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Forbid attention from some tokens to others.

    [bold]torch-mi knockout "The capital of France is" --edge="-1:France"[/]
    """
    session = Session(json, html, quiet=quiet, debug=debug)
    loaded = session.load(model, device, dtype, seed, adapter)
    from torch_mi import show  # noqa: PLC0415 - `--help` must not pay for torch
    from torch_mi.analysis.edges import KnockoutSpec  # noqa: PLC0415
    from torch_mi.analysis.knockout import knockout as run  # noqa: PLC0415
    from torch_mi.analysis.knockout import knockout_grid  # noqa: PLC0415
    from torch_mi.hooks.point import HookPoint  # noqa: PLC0415
    from torch_mi.show.causal import knockout_page  # noqa: PLC0415
    from torch_mi.show.page import Section  # noqa: PLC0415
    from torch_mi.sweeps.metrics import prob  # noqa: PLC0415

    spec = KnockoutSpec(*chosen(loaded, prompt, layer, head, (edge, from_pos, to_pos)))
    session.weigh(loaded, prompt, HookPoint.AttnScores)
    with session.busy("cutting"):
        found = run(loaded, prompt, spec)
        grid = None
        if target is not None:
            axes = ("layer", "head")
            grid = knockout_grid(loaded, prompt, spec, metric=prob(target), by=axes)
    session.write_json(found.to_dict() | ({} if grid is None else {"grid": grid.to_dict()}))
    if html is not None:
        words = "One head of one layer at a time."
        more = [] if grid is None else [Section(grid.title, words, show.plot(grid))]
        session.write_page(*knockout_page(found, more))
    session.print(show.table(found, session.out.width))
    if grid is not None:
        session.print(show.table(grid, session.out.width))
