# SPDX-License-Identifier: MIT OR Apache-2.0
"""Whether a model can be loaded, as a few words and lists."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch_mi.compatibility import CompatibilityReport
from torch_mi.show.tables import WIDTH, table

if TYPE_CHECKING:
    from rich.console import RenderableType


@table.register(CompatibilityReport)
def _report(result: CompatibilityReport, width: int = WIDTH) -> "RenderableType":  # noqa: ARG001
    from rich.console import Group  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    yes = result.compatible
    mark, style = ("✓ can be loaded", "bold green") if yes else ("✗ cannot be loaded", "bold red")
    head = Text.assemble((result.model_id, "bold"), " ", (mark, style))
    facts = [f"model_type {result.model_type or 'absent'}"]
    if result.inferred:
        facts.append("unknown here")
    if result.read_like:
        facts.append(f"read like {result.read_like}")
    if result.naming and result.naming != result.read_like:
        facts.append(f"named like {result.naming}")
    if result.parameters:
        facts.append(f"{result.parameters:,} parameters")
    parts: list[RenderableType] = [head, Text(" · ".join(facts), style="dim")]
    parts += _list("in the way", result.issues)
    parts += _list("assumed", result.assumptions)
    return Group(*parts)


def _list(title: str, lines: Sequence[str]) -> list["RenderableType"]:
    """Lines under a title, if there are any."""
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    if not lines:
        return []
    out = Table.grid(padding=(0, 1, 0, 0))
    for line in lines:
        out.add_row(Text("•"), Text(line))
    return [Text(), Text(title, style="bold"), out]
