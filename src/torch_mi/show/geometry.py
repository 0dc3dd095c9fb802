# SPDX-License-Identifier: MIT OR Apache-2.0
"""How principal components and probes look."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch_mi.analysis.geometry import Pca
from torch_mi.analysis.probing import Probes
from torch_mi.results import floats
from torch_mi.show.heat import ACCENT, figures, look
from torch_mi.show.labels import label, markup
from torch_mi.show.plots import plot
from torch_mi.show.sweeps import few_ticks
from torch_mi.show.tables import WIDTH, plain, table, titled

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from rich.console import RenderableType

SOFT = {"gridcolor": "rgba(128,128,128,.25)", "zeroline": False}
GREY = "#8b949e"
NAMED = 40
"""More points than this are not named beside themselves, only where one hovers."""
FLAT = 2
"""A plane has two axes."""


@plot.register(Pca)
def _pca(result: Pca) -> "Figure":
    """The samples on the plane of the first two components, or how much each explains."""
    if result.projections is None or len(result.components) < FLAT:
        return _explained(result)
    names = [markup(sample.token, 24) for sample in result.samples]
    fig = figures().Figure(
        figures().Scatter(
            x=floats(result.projections[:, 0]),
            y=floats(result.projections[:, 1]),
            mode="markers+text" if len(names) <= NAMED else "markers",
            text=names,
            textposition="top center",
            textfont={"size": 11},
            marker={"color": ACCENT, "size": 8},
            customdata=[markup(sample.text, 80) for sample in result.samples],
            hovertemplate="%{text}<br>%{customdata}<br>%{x:.3g}, %{y:.3g}<extra></extra>",
        )
    )
    fig.update_layout(look(f"Principal components of {result.at}", 12, 1))
    first, second = (f"component {i} ({100 * result.ratios[i]:.1f} %)" for i in range(2))
    fig.update_layout(
        xaxis=SOFT | {"title": {"text": first}},
        yaxis=SOFT | {"title": {"text": second}},
    )
    return fig


def _explained(result: Pca) -> Any:
    fig = figures().Figure(
        figures().Bar(
            x=list(range(len(result.ratios))),
            y=floats(result.ratios),
            marker={"color": ACCENT},
            hovertemplate="component %{x}: %{y:.2%}<extra></extra>",
        )
    )
    fig.update_layout(look("How much each principal component explains", 8, 1))
    fig.update_layout(
        xaxis=SOFT | {"title": {"text": "component"}, "dtick": 1},
        yaxis=SOFT | {"tickformat": ".0%", "title": {"text": "of the spread"}},
    )
    return fig


@table.register(Pca)
def _pca_table(result: Pca, width: int = WIDTH) -> "RenderableType":  # noqa: ARG001
    out = plain()
    out.add_column("component", justify="right")
    out.add_column("explains", justify="right")
    out.add_column("together", justify="right")
    out.add_column("from")
    out.add_column("to")
    together = 0.0
    for i, ratio in enumerate(floats(result.ratios)):
        together += ratio
        ends = ["", ""]
        if result.projections is not None:
            order = result.projections[:, i].argsort()
            ends = [label(result.samples[int(order[j])].token) for j in (0, -1)]
        out.add_row(str(i), f"{ratio:.1%}", f"{together:.1%}", *ends)
    where = "" if result.at is None else f" of {result.at}"
    return titled(f"principal components{where} · {result.fitted:,} rows", out)


@plot.register(Probes)
def _probes(result: Probes) -> "Figure":
    """The score at each place, beside that on the control task and chance."""
    fig = figures().Figure()
    lines = [("score", result.scores, ACCENT)]
    lines += [] if result.controls is None else [("control task", result.controls, GREY)]
    for name, scores, colour in lines:
        fig.add_trace(
            figures().Scatter(
                x=list(range(len(result.hooks))),
                y=floats(scores.mean(1)),
                error_y={"array": floats(scores.std(1)), "thickness": 1},
                mode="lines+markers",
                name=name,
                line={"color": colour, "width": 2},
                hovertemplate=f"{name}: %{{y:.3f}}<extra></extra>",
            )
        )
    fig.add_hline(y=result.chance, line={"dash": "dot", "color": GREY, "width": 1})
    fig.update_layout(look(f"What a {result.how.kind} probe reads off", 9, 1))
    names, title = _places(result.hooks)
    fig.update_layout(
        showlegend=True,
        xaxis=SOFT | few_ticks(names) | {"title": {"text": title}},
        yaxis=SOFT | {"title": {"text": _called(result)}},
    )
    return fig


def _places(hooks: Sequence[str]) -> tuple[list[str], str]:
    """The places of probes, and what they are: layers, if all are of one point."""
    parts = [hook.removeprefix("blocks.").partition(".") for hook in hooks]
    points = {point for _, _, point in parts}
    if len(points) == 1 and all(layer.isdecimal() for layer, _, _ in parts):
        return [layer for layer, _, _ in parts], f"layer ({points.pop()})"
    return [hook.removeprefix("blocks.") for hook in hooks], "place"


def _called(result: Probes) -> str:
    return "accuracy" if result.how.kind == "logistic" else "R²"


@table.register(Probes)
def _probes_table(result: Probes, width: int = WIDTH) -> "RenderableType":  # noqa: ARG001
    out = plain()
    out.add_column("place")
    for name in (_called(result), "± folds"):
        out.add_column(name, justify="right")
    if result.controls is not None:
        out.add_column("control", justify="right")
        out.add_column("selectivity", justify="right")
    for i, hook in enumerate(result.hooks):
        row = [f"{float(result.accuracy[i]):.3f}", f"{float(result.scores[i].std()):.3f}"]
        if result.controls is not None:
            row += [f"{float(result.controls[i].mean()):.3f}", f"{result.selectivity[i]:.3f}"]
        out.add_row(hook, *row)
    title = f"{result.how.kind} probes · {result.model_id} · {result.samples:,} samples"
    return titled(title, out, f"chance is {result.chance:.3f}")
