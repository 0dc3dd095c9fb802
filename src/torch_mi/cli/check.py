# SPDX-License-Identifier: MIT OR Apache-2.0
"""`torch-mi check`."""

from typing import Annotated

from typer import Exit, Option

from torch_mi.cli import options
from torch_mi.cli.session import Session

Revision = Annotated[
    str | None, Option("--revision", metavar="NAME", help="A branch, tag or commit on the Hub.")
]


def check(
    model: options.ModelArgument = "demo",
    *,
    revision: Revision = None,
    json: options.Json = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Whether a model can be loaded, and if not, everything that is in the way.

    Its config and the headers of its weight files are read; no weights are fetched. The exit code
    is 1 if it cannot be loaded.

    [bold]torch-mi check demo[/]
    """
    session = Session(json, quiet=quiet, debug=debug)
    with session.busy(f"looking at {model}"):
        from torch_mi import check as examine  # noqa: PLC0415 - `--help` must not pay for torch
        from torch_mi import show  # noqa: PLC0415

        session.calm_hub()
        found = examine(model, revision=revision)
    session.write_json(found.to_dict())
    session.print(show.table(found, session.out.width))
    if not found.compatible:
        raise Exit(1)
