# SPDX-License-Identifier: MIT OR Apache-2.0
"""`torch-mi patch`."""

from enum import StrEnum
from typing import Annotated

from typer import Argument, Option

from torch_mi.cli import options
from torch_mi.cli.session import Session

Clean = Annotated[str, Argument(metavar="CLEAN", help="The prompt with the wanted answer.")]
Corrupted = Annotated[
    str, Argument(metavar="CORRUPTED", help="Its twin, equally many tokens long.")
]
At = Annotated[
    str,
    Option(
        "--at",
        metavar="PLACE",
        help="resid_pre, resid_mid, resid_post, attn_out, mlp_out; or, by head, z, q, k, v, "
        "pattern.",
    ),
]


class Method(StrEnum):
    """How it is found out what an activation does."""

    runs = "runs"
    gradient = "gradient"
    integrated = "integrated"


How = Annotated[
    Method,
    Option(
        "--method",
        metavar="METHOD",
        help="runs: the model is run with every activation replaced; gradient: an estimate for "
        "all of them from one gradient; integrated: a better one, from several.",
    ),
]
Target = Annotated[
    str | None,
    Option("--target", metavar="TOKEN", help="The answer; what the model says to CLEAN, if none."),
]
Other = Annotated[
    str | None,
    Option("--other", metavar="TOKEN", help="Measure the logits' difference to this token."),
]


def patch(  # noqa: PLR0913 - the options are the interface
    clean: Clean,
    corrupted: Corrupted,
    *,
    model: options.Model = "demo",
    at: At = "resid_pre",
    method: How = Method.runs,
    target: Target = None,
    other: Other = None,
    json: options.Json = None,
    html: options.Html = None,
    device: options.Device = None,
    dtype: options.DtypeOption = options.Dtype.float32,
    adapter: options.Adapter = None,
    seed: options.Seed = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Put one prompt's activations into another's run, place by place.

    [bold]torch-mi patch "The capital of France is" "The capital of Italy is"[/]

    With [bold]--method gradient[/] all places are estimated at once, from one gradient.
    """
    session = Session(json, html, quiet=quiet, debug=debug)
    loaded = session.load(model, device, dtype, seed, adapter)
    from torch_mi import show  # noqa: PLC0415 - `--help` must not pay for torch
    from torch_mi.analysis import patching  # noqa: PLC0415
    from torch_mi.analysis.attribution_patching import attribution_patch  # noqa: PLC0415
    from torch_mi.hooks.point import HookPoint  # noqa: PLC0415
    from torch_mi.results import spoken  # noqa: PLC0415
    from torch_mi.show.pages import patch_page  # noqa: PLC0415
    from torch_mi.sweeps.metrics import log_prob, logit_diff, prob  # noqa: PLC0415

    session.weigh(loaded, clean, HookPoint.ResidPre)
    answer = loaded.forward(clean).output[0, -1].argmax() if target is None else target
    word = answer if isinstance(answer, str) else spoken(loaded, int(answer))
    # what is nearly impossible has a probability without a slope, but not without a logarithm
    one = prob if method is Method.runs else log_prob
    metric = one(word) if other is None else logit_diff(word, other)
    with session.busy("patching"):
        if method is Method.runs:
            grid = patching.patch(loaded, clean, corrupted, at=at, metric=metric)
        else:
            grid = attribution_patch(
                loaded, clean, corrupted, at=at, metric=metric, method=method.value
            )
    session.write_json(grid.to_dict())
    if html is not None:
        session.write_page(*patch_page(grid))
    session.print(show.table(grid, session.out.width))
