# SPDX-License-Identifier: MIT OR Apache-2.0
"""`torch-mi inspect`."""

from typing import Annotated

from typer import Option

from torch_mi.cli import options
from torch_mi.cli.session import Session, torch_dtype
from torch_mi.errors import MIError

Memory = Annotated[
    bool,
    Option("--memory", help="Only say what memory it would take, by its config; loads nothing."),
]


def inspect(  # noqa: PLR0913 - the options are the interface
    model: options.ModelArgument = "demo",
    *,
    memory: Memory = False,
    json: options.Json = None,
    html: options.Html = None,
    device: options.Device = None,
    dtype: options.DtypeOption = options.Dtype.float32,
    adapter: options.Adapter = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """What a model is made of: its configuration, and every weight's shape and size.

    [bold]torch-mi inspect demo[/]
    """
    session = Session(json, None if memory else html, quiet=quiet, debug=debug)
    if memory:
        if html is not None:
            raise MIError("--memory writes no page; leave out --html, or use --json")
        return _forecast(session, model, device, dtype)
    loaded = session.load(model, device, dtype, adapter=adapter)
    from torch_mi import show  # noqa: PLC0415 - `--help` has no torch
    from torch_mi.analysis.anatomy import anatomy  # noqa: PLC0415

    with session.busy("measuring the weights"):
        found = anatomy(loaded)
    session.write_json(found.to_dict())
    if html is not None:
        from torch_mi.show.pages import anatomy_page  # noqa: PLC0415

        session.write_page(*anatomy_page(found))
    return session.print(show.table(found, session.out.width))


def _forecast(session: Session, model: str, device: str | None, dtype: options.Dtype) -> None:
    """What loading would take, shown and written."""
    session.calm_hub()
    from torch_mi import show  # noqa: PLC0415 - `--help` has no torch
    from torch_mi.forecasting import forecast  # noqa: PLC0415

    with session.busy("reading the config"):
        found = forecast(model, device=device, dtype=torch_dtype(dtype))
    session.write_json(found.to_dict())
    session.print(show.table(found, session.out.width))
