# SPDX-License-Identifier: MIT OR Apache-2.0
"""`torch-mi hooks`."""

from torch_mi.cli import options
from torch_mi.cli.session import Session


def hooks(  # noqa: PLR0913 - the options are the interface
    model: options.ModelArgument = "demo",
    *,
    json: options.Json = None,
    device: options.Device = None,
    dtype: options.DtypeOption = options.Dtype.float32,
    adapter: options.Adapter = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Every place where a model can be watched or changed: name, shape, meaning.

    [bold]torch-mi hooks demo[/]
    """
    session = Session(json, quiet=quiet, debug=debug)
    loaded = session.load(model, device, dtype, adapter=adapter)
    from torch_mi.show.listings import hook_table  # noqa: PLC0415 - `--help` has no torch

    rows = [
        {"hook": str(hook), "name": repr(hook), "shape": list(shape), "axes": list(hook.point.axes)}
        | {"meaning": hook.point.meaning, "aliases": list(hook.point.aliases)}
        for hook, shape in loaded.hooks.items()
    ]
    session.write_json({"model_id": loaded.origin.model_id, "hooks": rows})
    session.print(hook_table(loaded))
