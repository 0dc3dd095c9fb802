# SPDX-License-Identifier: MIT OR Apache-2.0
"""Tables of what weights and runs take."""

from typing import TYPE_CHECKING

from torch_mi.forecasting import Footprint, LoadForecast, RunForecast
from torch_mi.memory import human_bytes
from torch_mi.show.tables import WIDTH, plain, table, titled

if TYPE_CHECKING:
    from rich.console import RenderableType


def room(total: int, free: int | None, device: str) -> str:
    """What is free, and whether it is enough."""
    if free is None:
        return f"nobody can say how much is free on {device}"
    if total <= free:
        return f"{human_bytes(free)} free on {device}: it fits"
    return f"{human_bytes(free)} free on {device}: {human_bytes(total - free)} short"


@table.register(Footprint)
def _footprint(found: Footprint, width: int = WIDTH) -> "RenderableType":  # noqa: ARG001
    return _parts(found, f"memory · {found.model_id}")


@table.register(LoadForecast)
def _load(found: LoadForecast, width: int = WIDTH) -> "RenderableType":  # noqa: ARG001
    note = room(found.total, found.free, found.device)
    return _parts(found.footprint, f"loading {found.footprint.model_id} would take", note)


def _parts(found: Footprint, title: str, note: str = "") -> "RenderableType":
    out = plain()
    out.add_column("weights", no_wrap=True, style="cyan")
    out.add_column("parameters", justify="right")
    out.add_column("bytes", justify="right")
    out.add_column("dtype", style="dim")
    out.add_column("on", style="dim")
    for part in found.parts:
        size = human_bytes(part.bytes)
        out.add_row(part.kind, f"{part.parameters:,}", size, part.dtype, part.device)
    out.add_section()
    out.add_row("all", f"{found.parameters:,}", human_bytes(found.total))
    return titled(title, out, note)


@table.register(RunForecast)
def _run(found: RunForecast, width: int = WIDTH) -> "RenderableType":  # noqa: ARG001
    out = plain()
    out.add_column("of a run", no_wrap=True, style="cyan")
    out.add_column("places", justify="right")
    out.add_column("shape", style="dim")
    out.add_column("dtype", style="dim")
    out.add_column("bytes", justify="right")
    for point in found.points:
        shape = " × ".join(map(str, point.shape))
        out.add_row(point.point, str(point.places), shape, point.dtype, human_bytes(point.bytes))
    rows = {
        "all captures": found.captures,
        "logits": found.logits,
        "keys and values, if kept": found.keys_values,
        "explicit attention, one layer": found.attention,
        "at most at once": found.total,
    }
    out.add_section()
    for name, size in rows.items():
        out.add_row(name, "", "", "", human_bytes(size))
    title = f"{found.batch} × {found.pos} tokens · {found.model_id}"
    return titled(title, out, room(found.total, found.free, found.device))
