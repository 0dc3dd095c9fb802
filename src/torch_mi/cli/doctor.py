# SPDX-License-Identifier: MIT OR Apache-2.0
"""`torch-mi doctor`."""

from torch_mi.cli import options
from torch_mi.cli.session import Session


def doctor(
    *,
    json: options.Json = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """What this machine has: versions, devices, memory, models in the cache.

    [bold]torch-mi doctor[/]
    """
    session = Session(json, quiet=quiet, debug=debug)
    with session.busy("looking around"):
        from torch_mi.machine import examine  # noqa: PLC0415 - it imports torch
        from torch_mi.show.machine import machine_table  # noqa: PLC0415

        found = examine()
    session.write_json(found)
    session.print(machine_table(found))
