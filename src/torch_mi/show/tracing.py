# SPDX-License-Identifier: MIT OR Apache-2.0
"""How causal traces look."""

from dataclasses import replace
from typing import TYPE_CHECKING

from torch_mi.analysis.tracing import CausalTrace
from torch_mi.show.labels import metric_markup, one_line
from torch_mi.show.page import Section
from torch_mi.show.pages import Page
from torch_mi.show.panels import stacked
from torch_mi.show.plots import plot
from torch_mi.show.tables import WIDTH, table
from torch_mi.sweeps.grid import Grid

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from rich.console import RenderableType

WHAT = {
    "resid": "the residual stream entering a layer",
    "attn": "attention's output",
    "mlp": "the MLPs' output",
}
LEAD = (
    "The subject of the sentence was spoilt with noise, so that the model no longer knows the "
    "answer. Then one place of the clean run was given back at a time. Where the answer returns, "
    "what makes it passes through."
)


@plot.register(CausalTrace)
def _trace(result: CausalTrace) -> "Figure":
    """The kinds one above the other, layers upwards, tokens across."""
    parts = [plot(_named(result, kind)) for kind in result.kinds]
    reach = float((result.grid.values - result.grid.baseline).abs().max()) or 1.0
    ends = (result.grid.baseline - reach, result.grid.baseline + reach)
    return stacked(parts, f"Given back: {metric_markup(result.grid.metric)}", ends)


def _title(result: CausalTrace, kind: str) -> str:
    layers = f", {result.window} layers" if kind != "resid" and result.window > 1 else ""
    return WHAT[kind] + layers


def _named(result: CausalTrace, kind: str) -> Grid:
    """One kind's grid, with stars at the spoilt tokens."""
    grid = result.restored(kind)
    words = [f"{w}*" if i in result.subject else w for i, w in enumerate(grid.labels["pos"])]
    return replace(grid, title=_title(result, kind), labels={"pos": tuple(words)})


@table.register(CausalTrace)
def _trace_table(result: CausalTrace, width: int = WIDTH) -> "RenderableType":
    from rich.console import Group  # noqa: PLC0415

    return Group(*(table(_named(result, kind), width) for kind in result.kinds))


def trace_page(result: CausalTrace) -> Page:
    """A causal trace."""
    grid = result.grid
    words = (
        f"On {one_line(str(grid.options['prompt']))}; spoilt tokens bear a star. The clean run "
        f"scores {grid.reference:.4g}, the spoilt one {grid.baseline:.4g} (the mean of "
        f"{result.samples} draws of noise)."
    )
    sections = [Section("Layer by layer, token by token", words, plot(result))]
    return "Causal tracing", LEAD, sections
