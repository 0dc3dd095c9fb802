# SPDX-License-Identifier: MIT OR Apache-2.0
"""`torch-mi demo`."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from typer import Option

from torch_mi.cli import options
from torch_mi.cli.session import Session

PAGE = Path("torch-mi-demo.html")


def demo(  # noqa: PLR0913 - the options are the interface
    *,
    model: options.Model = "demo",
    json: options.Json = None,
    html: Annotated[
        Path | None,
        Option(
            "--html",
            metavar="FILE",
            help=f"Where to write the page; {PAGE} unless given.",
            rich_help_panel=options.OUT,
        ),
    ] = None,
    device: options.Device = None,
    dtype: options.DtypeOption = options.Dtype.float32,
    seed: options.Seed = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """A tour of a model: how its answers form, and what carries them.

    [bold]torch-mi demo[/]
    """
    page = html or (PAGE if find_spec("plotly") else None)
    session = Session(json, page, quiet=quiet, debug=debug)
    loaded = session.load(model, device, dtype, seed)
    from torch_mi import show  # noqa: PLC0415 - `--help` must not pay for torch
    from torch_mi.analysis.tour import tour  # noqa: PLC0415
    from torch_mi.show.tour import tour_page  # noqa: PLC0415

    with session.busy("looking inside"):
        seen = tour(loaded)
    session.write_json(seen.to_dict())
    if page is not None:
        session.write_page(*tour_page(seen))
    session.print(show.table(seen, session.out.width))
    session.remark(
        "no page was written, for want of plotly: pip install torch-mi[viz]"
        if page is None
        else f"open {page} in a browser"
    )
