# SPDX-License-Identifier: MIT OR Apache-2.0
"""`torch-mi inspect`."""

from torch_mi.cli import options
from torch_mi.cli.session import Session


def inspect(  # noqa: PLR0913 - the options are the interface
    model: options.ModelArgument = "demo",
    *,
    json: options.Json = None,
    html: options.Html = None,
    device: options.Device = None,
    dtype: options.DtypeOption = options.Dtype.float32,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """What a model is made of: its configuration, and every weight's shape and size.

    [bold]torch-mi inspect demo[/]
    """
    session = Session(json, html, quiet=quiet, debug=debug)
    loaded = session.load(model, device, dtype)
    from torch_mi import show  # noqa: PLC0415 - `--help` has no torch
    from torch_mi.analysis.anatomy import anatomy  # noqa: PLC0415

    with session.busy("measuring the weights"):
        found = anatomy(loaded)
    session.write_json(found.to_dict())
    if html is not None:
        from torch_mi.show.pages import anatomy_page  # noqa: PLC0415

        session.write_page(*anatomy_page(found))
    session.print(show.table(found, session.out.width))
