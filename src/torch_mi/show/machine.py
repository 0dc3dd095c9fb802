# SPDX-License-Identifier: MIT OR Apache-2.0
"""What `torch-mi doctor` found, as a table."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from torch_mi.machine import OPTIONAL
from torch_mi.memory import human_bytes

if TYPE_CHECKING:
    from rich.table import Table

GOOD, BAD, NONE = "[green]✓[/]", "[red]✗[/]", "[dim]–[/]"


def machine_table(found: Mapping[str, object]) -> "Table":
    """What a machine has, with a mark for what is well, what is wrong, and what is absent."""
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    out = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    out.add_column(no_wrap=True)
    out.add_column(style="cyan", no_wrap=True)
    out.add_column(overflow="fold")
    for mark, name, words in _lines(cast("dict[str, Any]", dict(found))):
        out.add_row(mark, name, Text(words))
    return out


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    yield GOOD, "python", f"{found['python']} · {found['system']}"
    for name, version in found["packages"].items():
        yield (GOOD, name, version) if version else (BAD, name, f"missing: pip install {name}")
    for name, version in found["optional"].items():
        use = OPTIONAL[name]
        hint = "pip install torch-mi[viz]" if name == "plotly" else f"pip install {name}"
        yield (GOOD, name, version) if version else (NONE, name, f"{hint} (for {use})")
    for device in found["devices"]:
        room = f", {human_bytes(device['free'])} free" if "free" in device else ""
        threads = f", {device['threads']} threads" if "threads" in device else ""
        yield GOOD, device["device"], f"{device['name']}{threads}{room}"
    free = found["memory"]["available"]
    yield GOOD, "memory", "unknown" if free is None else f"{human_bytes(free)} free"
    demo = found["demo"]
    if demo["works"]:
        yield GOOD, "demo model", f"{demo['parameters']:,} parameters; it answers"
    else:
        yield BAD, "demo model", demo["problem"]
    cache = found["cache"]
    yield (GOOD if cache["models"] else NONE), "cache", cache["folder"]
    for model in cache["models"]:
        yield "", "", f"{model['model_id']} ({human_bytes(model['bytes'])})"
