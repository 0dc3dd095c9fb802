# SPDX-License-Identifier: MIT OR Apache-2.0
"""How the cells of a sweep look that were given no axes."""

from typing import TYPE_CHECKING

from torch_mi.results import floats
from torch_mi.show.labels import label, metric_words
from torch_mi.show.plots import plot
from torch_mi.show.tables import WIDTH, plain, table, titled
from torch_mi.sweeps.result import SweepResult

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from rich.console import RenderableType

SHOWN = 12
"""Cells that a table shows."""


@plot.register(SweepResult)
def _line(result: SweepResult) -> "Figure":
    """A line over the cells, in their order."""
    return plot(result.grid("Every cell of the sweep", {"cell": result.names}))


@table.register(SweepResult)
def _table(result: SweepResult, width: int = WIDTH) -> "RenderableType":  # noqa: ARG001
    """The cells whose score is furthest from the plain run's."""
    errors = result.standard_errors
    found = plain()
    found.add_column("cell")
    found.add_column("score", justify="right")
    spread = [""] * len(result.names)
    if errors is not None:
        found.add_column("± error", justify="right")
        spread = [f"{error:.2g}" for error in floats(errors)]
    scores = dict(zip(result.names, zip(floats(result.scores), spread, strict=True), strict=True))
    for name, _ in result.best(SHOWN):
        score, error = scores[name]
        found.add_row(label(name, 40), f"{score:.4g}", *([error] if error else []))
    prompts = len(result.per_prompt)
    head = (
        f"{len(result.names):,} cells on {prompts:,} prompt{'s' * (prompts > 1)} · "
        f"{metric_words(result.metric)} · without edits {result.baseline:.4g}"
    )
    return titled(head, found, "furthest from the run without edits first")
