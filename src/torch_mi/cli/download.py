# SPDX-License-Identifier: MIT OR Apache-2.0
"""`torch-mi download`."""

from typing import Annotated

from typer import Argument, Option

from torch_mi.cli import options
from torch_mi.cli.session import Session


def download(
    model: Annotated[str, Argument(metavar="MODEL", help="A Hub id, as org/name.")],
    *,
    revision: Annotated[
        str | None, Option("--revision", metavar="REV", help="A branch, tag or commit.")
    ] = None,
    json: options.Json = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Fetch a model from the Hub into the cache, and say where it is.

    [bold]torch-mi download openai-community/gpt2[/]   (the demo model needs no download)
    """
    session = Session(json, quiet=quiet, debug=debug)
    from torch_mi.files import hub  # noqa: PLC0415 - imports torch

    session.calm_hub()
    folder = hub.download(model, revision=revision)
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    session.write_json({"model_id": model, "folder": str(folder), "files": files})
    session.say(str(folder))
