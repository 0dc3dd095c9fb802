# SPDX-License-Identifier: MIT OR Apache-2.0
"""`torch-mi verify`."""

from typing import Annotated

from typer import Exit, Option

from torch_mi.cli import options
from torch_mi.cli.session import Session

Texts = Annotated[
    list[str] | None,
    Option("--prompt", metavar="PROMPT", help="A text to compare on; may be given repeatedly."),
]


def verify(
    model: options.ModelArgument = "demo",
    *,
    prompt: Texts = None,
    json: options.Json = None,
    device: options.Device = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Compare a model's numbers with those of transformers.

    The exit code is 1 if they differ.

    [bold]torch-mi verify demo[/]
    """
    session = Session(json, quiet=quiet, debug=debug)
    loaded = session.load(model, device)
    from torch_mi import show  # noqa: PLC0415 - `--help` must not pay for torch
    from torch_mi import verify as compare  # noqa: PLC0415

    with session.busy("comparing with transformers"):
        found = compare(loaded, list(prompt) if prompt else None)
    session.write_json(found.to_dict())
    session.print(show.table(found, session.out.width))
    if not found.passed:
        raise Exit(1)
