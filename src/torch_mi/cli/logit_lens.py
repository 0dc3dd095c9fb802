# SPDX-License-Identifier: MIT OR Apache-2.0
"""`torch-mi logit-lens`."""

from pathlib import Path
from typing import Annotated

from typer import BadParameter, Option

from torch_mi.cli import options
from torch_mi.cli.session import Session


def _position(text: str) -> str:
    if text != "all" and not text.removeprefix("-").isdecimal():
        raise BadParameter(f"{text!r} is neither a number nor 'all'")
    return text


TopK = Annotated[int, Option("--top-k", metavar="K", help="Tokens per layer.")]
Target = Annotated[
    str | None, Option("--target", metavar="TOKEN", help="A token to follow, as ' Paris'.")
]
Position = Annotated[
    str,
    Option(
        "--position",
        metavar="N|all",
        callback=_position,
        help="The token to read after, negative from the end; or all of them.",
    ),
]
Tuned = Annotated[
    Path | None,
    Option("--tuned", metavar="FOLDER", help="A tuned lens, made for this model, to read with."),
]
Embedding = Annotated[bool, Option("--embedding", help="Begin with the embedding, before layer 0.")]


def logit_lens(  # noqa: PLR0913 - the options are the interface
    prompt: options.Prompts,
    *,
    model: options.Model = "demo",
    top_k: TopK = 5,
    target: Target = None,
    position: Position = "-1",
    embedding: Embedding = False,
    tuned: Tuned = None,
    json: options.Json = None,
    html: options.Html = None,
    device: options.Device = None,
    dtype: options.DtypeOption = options.Dtype.float32,
    adapter: options.Adapter = None,
    seed: options.Seed = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    r"""What each layer would say next, were it the last.

    [bold]torch-mi logit-lens "The capital of France is" --target " Paris"[/]

    Several prompts are read one after the other; [bold]lens[/] is a shorter name for the same.
    """
    session = Session(json, html, quiet=quiet, debug=debug)
    loaded = session.load(model, device, dtype, seed, adapter)
    from torch_mi import show  # noqa: PLC0415 - `--help` must not pay for torch
    from torch_mi.analysis import lens  # noqa: PLC0415
    from torch_mi.analysis.tuned_lens import TunedLens  # noqa: PLC0415
    from torch_mi.hooks.point import HookPoint  # noqa: PLC0415

    session.weigh(loaded, prompt, HookPoint.ResidPost)
    with session.busy("reading the layers"):
        results = lens.logit_lens(
            loaded,
            prompt,
            top_k=top_k,
            position="all" if position == "all" else int(position),
            target=target,
            embedding=embedding,
            tuned=None if tuned is None else TunedLens.load(tuned),
        )
    one = results[0].to_dict() if len(results) == 1 else None
    session.write_json(one or {"results": [result.to_dict() for result in results]})
    if html is not None:
        from torch_mi.show.pages import lens_page  # noqa: PLC0415

        session.write_page(*lens_page(results))
    for result in results:
        session.print(show.table(result, session.out.width))
