# SPDX-License-Identifier: MIT OR Apache-2.0
"""Results as tables for a terminal, 80 columns wide unless it is wider."""

from functools import singledispatch
from io import StringIO
from typing import TYPE_CHECKING

from torch_mi.analysis.lens import LensReading, LogitLensResult
from torch_mi.errors import MIError
from torch_mi.results import format_probability
from torch_mi.show.labels import label, layer_label, one_line, ordinal

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

WIDTH = 80
SURE, LIKELY = 0.5, 0.1


@singledispatch
def table(result: object, width: int = WIDTH) -> "RenderableType":
    """A result as something `rich` prints."""
    raise MIError(f"there is no table for a {type(result).__name__} ({width} columns)")


def text(result: object, width: int = WIDTH) -> str:
    """A result as plain text, at most `width` columns wide."""
    from rich.console import Console  # noqa: PLC0415 - only when something is shown

    out = StringIO()
    console = Console(file=out, width=width, color_system=None, legacy_windows=False)
    console.print(table(result, width))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def plain() -> "Table":
    """An empty table in our style: a rule under the head and nothing else."""
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")


def titled(title: "str | Text", what: "Table", note: str = "") -> "RenderableType":
    """A table under its title, which may be wider than it, and over a note."""
    from rich.console import Group  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    head = Text(title) if isinstance(title, str) else title
    return Group(head, what, Text(f" {note}\n", style="dim")) if note else Group(head, what)


def shade(p: float) -> str:
    """How a probability is set: what is likely stands out."""
    return "bold cyan" if p >= SURE else "" if p >= LIKELY else "dim"


@table.register(LogitLensResult)
def _lens(result: LogitLensResult, width: int = WIDTH) -> "RenderableType":
    from rich.console import Group  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    head = Text.assemble(
        (result.lens, "bold"), f" · {result.model_id} · ", (one_line(result.prompt, 48), "italic")
    )
    return Group(
        head, _by_position(result, width) if len(result.positions) > 1 else _by_rank(result, width)
    )


def _by_rank(result: LogitLensResult, width: int) -> "RenderableType":
    """One position: layers down, ranks across."""
    readings = result.at()
    where = result.positions[0]
    tokens = max(len(label(p.token)) for r in readings for p in r.predictions)
    cell = tokens + 10
    room = width - 8 - (0 if result.target is None else 22)
    count = min(len(readings[0].predictions), max(1, room // cell))
    out = plain()
    out.add_column("layer", justify="right", no_wrap=True)
    for rank in range(1, count + 1):
        out.add_column(ordinal(rank), no_wrap=True)
    if result.target is not None:
        out.add_column(f"P({label(result.target[1], 9)})", justify="right", no_wrap=True)
        out.add_column("rank", justify="right", no_wrap=True)
    for reading in readings:
        out.add_row(layer_label(reading.layer), *_cells(reading, count, tokens), *_target(reading))
    after = label(result.tokens[where])
    return titled(f"what each layer expects after {after} (position {where})", out)


def _cells(reading: LensReading, count: int, tokens: int) -> "list[Text]":
    from rich.text import Text  # noqa: PLC0415

    return [
        Text(
            f"{label(found.token):<{tokens}} {format_probability(found.probability):>7}",
            style=shade(found.probability),
        )
        for found in reading.predictions[:count]
    ]


def _target(reading: LensReading) -> "list[Text]":
    from rich.text import Text  # noqa: PLC0415

    if reading.target is None:
        return []
    chance = reading.target.probability
    return [
        Text(format_probability(chance), style=shade(chance)),
        Text(f"{reading.target.rank:,}", style="bold cyan" if reading.target.rank == 1 else ""),
    ]


def _by_position(result: LogitLensResult, width: int) -> "RenderableType":
    """All positions: layers down, positions across, as many of the last ones as fit."""
    from rich.text import Text  # noqa: PLC0415

    cells = {(r.layer, r.position): r.predictions[0] for r in result.readings}
    widths = {
        p: max(
            len(label(result.tokens[p], 10)),
            *(len(label(cells[layer, p].token, 10)) for layer in result.layers),
        )
        for p in result.positions
    }
    shown: list[int] = []
    room = width - 8
    for p in reversed(result.positions):
        room -= widths[p] + 2
        if room < 0:
            break
        shown.insert(0, p)
    left = len(result.positions) - len(shown)
    note = f" (the last {len(shown)} of {len(result.positions)} positions)" if left else ""
    out = plain()
    out.add_column("layer", justify="right", no_wrap=True)
    for p in shown:
        head = Text(label(result.tokens[p], 10), style="dim" if result.special[p] else "bold")
        out.add_column(head, no_wrap=True)
    for layer in result.layers:
        found = [cells[layer, p] for p in shown]
        row = [Text(label(f.token, 10), style=shade(f.probability)) for f in found]
        out.add_row(layer_label(layer), *row)
    return titled(f"the likeliest next token after each token{note}", out)
