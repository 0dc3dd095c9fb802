# SPDX-License-Identifier: MIT OR Apache-2.0
"""How a result looks that has no table of its own: its words and numbers, then its lists."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from torch_mi.results import Result
from torch_mi.show.labels import label, one_line
from torch_mi.show.tables import WIDTH, plain, table, titled

if TYPE_CHECKING:
    from rich.console import RenderableType

OWN = ("format", "manifest")
"""What is in every result, and not worth a line."""
LONGEST = 30


@table.register(Result)
def _any(result: Result, width: int = WIDTH) -> "RenderableType":  # noqa: ARG001
    from rich.console import Group  # noqa: PLC0415

    fields = {name: value for name, value in result.to_dict().items() if name not in OWN}
    out = plain()
    out.add_column("field", no_wrap=True)
    out.add_column("value")
    for name, value in fields.items():
        if value is None or isinstance(value, str | int | float):
            out.add_row(name, _short(value))
    parts: list[RenderableType] = [titled(type(result).__name__, out)]
    for name, value in fields.items():
        rows = cast("list[object]", value) if isinstance(value, list) else []
        if rows and all(isinstance(row, dict) for row in rows):
            parts.append(_rows(name, cast("list[Mapping[str, object]]", rows)))
    return Group(*parts)


def _rows(name: str, rows: list[Mapping[str, object]]) -> "RenderableType":
    """A list of equals as a table."""
    out = plain()
    for column in rows[0]:
        number = isinstance(rows[0][column], int | float)
        out.add_column(column.replace("_", " "), justify="right" if number else "left")
    for row in rows:
        out.add_row(*map(_short, row.values()))
    return titled(name, out)


def _short(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return (
        text if len(text) <= LONGEST and text == label(text, LONGEST) else one_line(text, LONGEST)
    )
