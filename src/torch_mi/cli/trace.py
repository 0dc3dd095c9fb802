# SPDX-License-Identifier: MIT OR Apache-2.0
"""`torch-mi trace`."""

from typing import Annotated

from typer import Argument, Option

from torch_mi.cli import options
from torch_mi.cli.session import Session

Prompt = Annotated[str, Argument(metavar="PROMPT", help="The text.")]
Subject = Annotated[str, Argument(metavar="SUBJECT", help="The words of it to spoil with noise.")]
Target = Annotated[
    str | None,
    Option("--target", metavar="TOKEN", help="The answer; what the model says, if none."),
]
Samples = Annotated[
    int, Option("--samples", metavar="N", min=1, help="How often the noise is drawn.")
]
Window = Annotated[
    int, Option("--window", metavar="N", min=1, help="Layers of attention or MLP given back.")
]
Width = Annotated[
    float, Option("--noise", metavar="X", help="Its width, in widths of the embeddings.")
]


def trace(  # noqa: PLR0913 - the options are the interface
    prompt: Prompt,
    subject: Subject,
    *,
    model: options.Model = "demo",
    target: Target = None,
    samples: Samples = 10,
    window: Window = 10,
    noise: Width = 3.0,
    json: options.Json = None,
    html: options.Html = None,
    device: options.Device = None,
    dtype: options.DtypeOption = options.Dtype.float32,
    adapter: options.Adapter = None,
    seed: options.Seed = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Spoil a subject with noise and see where the answer can be saved.

    [bold]torch-mi trace "The capital of France is" France[/]
    """
    session = Session(json, html, quiet=quiet, debug=debug)
    loaded = session.load(model, device, dtype, seed, adapter)
    from torch_mi import show  # noqa: PLC0415 - `--help` must not pay for torch
    from torch_mi.analysis.tracing import causal_trace  # noqa: PLC0415
    from torch_mi.hooks.coordinates import Span  # noqa: PLC0415
    from torch_mi.hooks.point import HookPoint  # noqa: PLC0415
    from torch_mi.show.tracing import trace_page  # noqa: PLC0415
    from torch_mi.sweeps.metrics import prob  # noqa: PLC0415

    session.weigh(loaded, prompt, HookPoint.ResidPre, HookPoint.AttnOut, HookPoint.MlpOut)
    with session.busy("tracing"):
        found = causal_trace(
            loaded,
            prompt,
            Span(subject),
            metric=None if target is None else prob(target),
            samples=samples,
            window=window,
            width=noise,
            seed=seed or 0,
        )
    session.write_json(found.to_dict())
    if html is not None:
        session.write_page(*trace_page(found))
    session.print(show.table(found, session.out.width))
