# SPDX-License-Identifier: MIT OR Apache-2.0
"""The results as a table in the terminal."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.pairing import Ratio, Row

COLOURS = {"within": "green", "above": "red", "": ""}


def show(rows: Sequence[Row], facts: Mapping[str, object]) -> None:
    """Print the machine, then one line for each comparison."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=170)
    for name, value in facts.items():
        console.print(f"{name:>10}: {value}", highlight=False)
    table = Table("case", "setting", "this", "against", box=None, header_style="bold")
    for title in ("this", "against", "ratio", "min…max", "of cpu", "bound"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("")
    for row in rows:
        table.add_row(*_cells(row), style=COLOURS[row.verdict])
    console.print(table)


def _cells(row: Row) -> list[str]:
    return [
        row.case,
        row.setting,
        row.ours,
        row.peer,
        f"{row.value:,.1f} {row.unit}",
        f"{row.peer_value:,.1f} {row.unit}",
        f"{row.ratio.median:.3f}",
        f"{row.ratio.low:.2f}…{row.ratio.high:.2f}",
        _brief(row.cpu_ratio),
        "" if row.bound is None else f"≤ {row.bound:.2f}",
        row.verdict,
    ]


def _brief(ratio: Ratio | None) -> str:
    return "" if ratio is None else f"{ratio.median:.3f}"
