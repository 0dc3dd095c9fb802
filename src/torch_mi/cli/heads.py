# SPDX-License-Identifier: MIT OR Apache-2.0
"""`torch-mi heads`."""

from enum import StrEnum
from typing import Annotated

from typer import Option

from torch_mi.cli import options
from torch_mi.cli.session import Session


class Kind(StrEnum):
    """What a head may do."""

    induction = "induction"
    previous_token = "previous_token"
    duplicate_token = "duplicate_token"
    copying = "copying"


def heads(  # noqa: PLR0913 - the options are the interface
    model: options.ModelArgument = "demo",
    *,
    kind: Annotated[
        Kind,
        Option(
            "--kind",
            metavar="KIND",
            help="induction, previous_token, duplicate_token or copying.",
        ),
    ] = Kind.induction,
    json: options.Json = None,
    html: options.Html = None,
    device: options.Device = None,
    dtype: options.DtypeOption = options.Dtype.float32,
    adapter: options.Adapter = None,
    seed: options.Seed = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Which heads look for repeated or previous tokens, or copy.

    [bold]torch-mi heads demo --kind previous_token[/]
    """
    session = Session(json, html, quiet=quiet, debug=debug)
    loaded = session.load(model, device, dtype, seed, adapter)
    from torch_mi import show  # noqa: PLC0415 - `--help` must not pay for torch
    from torch_mi.analysis.heads import find_heads, repeated  # noqa: PLC0415
    from torch_mi.hooks.point import HookPoint  # noqa: PLC0415
    from torch_mi.show.pages import heads_page  # noqa: PLC0415

    tokens, _ = repeated(loaded, length=20, repeats=8, seed=0)  # the defaults of find_heads
    session.weigh(loaded, tokens, HookPoint.AttnPattern)
    with session.busy("scoring every head"):
        found = find_heads(loaded, kind=kind.value, seed=seed or 0)
    session.write_json(found.to_dict())
    if html is not None:
        session.write_page(*heads_page(found))
    session.print(show.table(found, session.out.width))
