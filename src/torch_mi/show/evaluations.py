# SPDX-License-Identifier: MIT OR Apache-2.0
"""How evaluations look."""

from typing import TYPE_CHECKING

from torch_mi.analysis.evaluation import InductionLoss, Sanity
from torch_mi.results import floats
from torch_mi.show.heat import ACCENT, figures, look
from torch_mi.show.labels import one_line
from torch_mi.show.plots import plot
from torch_mi.show.tables import WIDTH, plain, table, titled

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from rich.console import RenderableType

SOFT = {"gridcolor": "rgba(128,128,128,.25)", "zeroline": False}


@plot.register(InductionLoss)
def _induction(result: InductionLoss) -> "Figure":
    """The loss of each token, and where the second showing begins."""
    values = floats(result.losses)
    fig = figures().Figure(
        figures().Scatter(
            x=list(range(len(values))),
            y=values,
            mode="lines+markers",
            line={"color": ACCENT, "width": 2},
            hovertemplate="token %{x}: %{y:.3f}<extra></extra>",
        )
    )
    begins = len(values) - result.length
    fig.add_vline(x=begins - 0.5, line={"dash": "dot", "color": "#8b949e", "width": 1})
    fig.update_layout(look("How well random tokens are predicted, shown twice", 8, 1))
    fig.update_layout(
        xaxis=SOFT | {"title": {"text": "token; the line is where the second showing begins"}},
        yaxis=SOFT | {"title": {"text": "loss in nats"}, "rangemode": "tozero"},
    )
    return fig


@table.register(InductionLoss)
def _induction_table(result: InductionLoss, width: int = WIDTH) -> "RenderableType":  # noqa: ARG001
    out = plain()
    out.add_column("random tokens")
    out.add_column("loss", justify="right")
    out.add_row("shown the first time", f"{result.first:.3f}")
    out.add_row("shown the second time", f"{result.second:.3f}")
    return titled(f"induction loss · {result.model_id}", out, f"gained: {result.gain:.3f} nats")


@table.register(Sanity)
def _sanity(result: Sanity, width: int = WIDTH) -> "RenderableType":  # noqa: ARG001
    out = plain()
    out.add_column("what")
    out.add_column("value", justify="right")
    out.add_column("below", justify="right")
    out.add_column("")
    for item in result.items:
        said = "[cyan]passed[/]" if item.passed else "[red]failed[/]"
        out.add_row(item.name, f"{item.value:.4g}", f"{item.bound:.4g}", said)
    said = "passed" if result.passed else "failed"
    return titled(f"sanity check · {result.model_id} · {said}\n{one_line(result.text)}", out)


@plot.register(Sanity)
def _sanity_plot(result: Sanity) -> "Figure":
    """Each value as a part of its bound."""
    parts = [item.value / item.bound for item in result.items]
    fig = figures().Figure(
        figures().Bar(
            x=parts,
            y=[item.name for item in result.items],
            orientation="h",
            marker={"color": ACCENT},
            hovertemplate="%{y}: %{x:.3g} of its bound<extra></extra>",
        )
    )
    fig.add_vline(x=1, line={"dash": "dot", "color": "#8b949e", "width": 1})
    fig.update_layout(look(f"Sanity check of {result.model_id}", len(parts), 1))
    fig.update_layout(
        xaxis=SOFT | {"title": {"text": "part of the bound"}},
        yaxis={"autorange": "reversed", "automargin": True},
    )
    return fig
