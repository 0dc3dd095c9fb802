# SPDX-License-Identifier: MIT OR Apache-2.0
"""`torch-mi state`."""

from enum import StrEnum
from typing import Annotated

from typer import Argument, Option

from torch_mi.cli import options
from torch_mi.cli.places import Heads, Layers, numbered, position
from torch_mi.cli.session import Session

Prompt = Annotated[str, Argument(metavar="PROMPT", help="The text.")]


class Form(StrEnum):
    """What is shown of effective attention."""

    raw = "raw"
    relu_l1 = "relu_l1"
    abs_l1 = "abs_l1"
    value_weighted = "value_weighted"


Shown = Annotated[
    Form,
    Option(
        "--form",
        metavar="FORM",
        help="Of effective attention: raw (signed, exact), relu_l1 or abs_l1 (rows that sum to "
        "one), or value_weighted.",
    ),
]
Pos = Annotated[
    list[str] | None,
    Option(
        "--pos",
        metavar="TOKEN",
        help="A token whose writes are removed from all these layers at once; a number (negative "
        "from the end) or the token. May be given again.",
    ),
]
Target = Annotated[
    str | None,
    Option(
        "--target",
        metavar="TOKEN",
        help="Score knockouts by this token's probability, not by KL divergence.",
    ),
]


def state(  # noqa: PLR0913 - the options are the interface
    prompt: Prompt,
    *,
    model: options.Model = "demo-rwkv",
    target: Target = None,
    layer: Layers = None,
    head: Heads = None,
    pos: Pos = None,
    form: Shown = Form.raw,
    json: options.Json = None,
    html: options.Html = None,
    device: options.Device = None,
    dtype: options.DtypeOption = options.Dtype.float32,
    adapter: options.Adapter = None,
    seed: options.Seed = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """What a recurrent model carries from token to token, and what each token wrote to it.

    [bold]torch-mi state "The capital of France is" --target " Paris"[/]
    """
    session = Session(json, html, quiet=quiet, debug=debug)
    loaded = session.load(model, device, dtype, seed, adapter)
    from torch_mi import show  # noqa: PLC0415 - `--help` must not pay for torch
    from torch_mi.analysis.effective import effective_attention  # noqa: PLC0415
    from torch_mi.analysis.state_norms import state_norms  # noqa: PLC0415
    from torch_mi.analysis.states import needs_state, state_knockout, state_sweep  # noqa: PLC0415
    from torch_mi.hooks.point import HookPoint  # noqa: PLC0415
    from torch_mi.show.states import state_page  # noqa: PLC0415
    from torch_mi.sweeps.metrics import kl, prob  # noqa: PLC0415

    needs_state(loaded)
    layers, heads = numbered("layer", layer), numbered("head", head)
    places = [position(loaded, prompt, place) for place in pos or ()]
    session.weigh(loaded, prompt, HookPoint.RwkvEffectiveAttn)
    with session.busy("reading the state"):
        norms = state_norms(loaded, prompt, layers=layers)
        weights = effective_attention(loaded, prompt, layers=layers, heads=heads, form=form.value)
    metric = kl() if target is None else prob(target)
    swept = state_sweep(
        loaded, prompt, metric, layers=layers, heads=heads, progress=False if quiet else None
    )
    gone = [state_knockout(loaded, prompt, p, layers=layers, heads=heads) for p in places]
    session.write_json(
        {
            "norms": norms.to_dict(),
            "attention": weights.to_dict(),
            "knockouts": swept.to_dict(),
            "tokens": [result.to_dict() for result in gone],
        }
    )
    if html is not None:
        session.write_page(*state_page(norms, weights, swept, gone))
    for result in (norms, weights, swept, *gone):
        session.print(show.table(result, session.out.width))
