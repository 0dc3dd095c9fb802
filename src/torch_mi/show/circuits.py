# SPDX-License-Identifier: MIT OR Apache-2.0
"""How gradients, estimates of patching, edges and circuits look."""

from typing import TYPE_CHECKING

from torch_mi.analysis.attribution_patching import Comparison
from torch_mi.analysis.gradients import Gradients
from torch_mi.results import floats
from torch_mi.show.heat import ACCENT, Heat, figures, look
from torch_mi.show.labels import label, markup
from torch_mi.show.plots import plot
from torch_mi.show.sweeps import markup_title
from torch_mi.show.tables import WIDTH, plain, table, titled

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from rich.console import RenderableType

SOFT = {"gridcolor": "rgba(128,128,128,.25)", "zeroline": False}
FEW = 8


@plot.register(Gradients)
def _gradients(result: Gradients) -> "Figure":
    """Hooks upwards, the first prompt's tokens across: how long the gradient is."""
    sizes = result.sizes()
    rows = [floats(row) for row in sizes.values()]
    top = max((value for row in rows for value in row), default=1.0) or 1.0
    words = [markup(token) for token in result.tokens[0]]
    return Heat(
        values=rows,
        rows=[_short(name) for name in sizes],
        columns=words,
        words=[[f"{value:.2g}" for value in row] for row in rows],
        hover=[
            [f"{name}, {word}: {value:.4g}" for word, value in zip(words, row, strict=True)]
            for name, row in zip(sizes, rows, strict=True)
        ],
        high=top,
        unit="size of the gradient",
        row_title="",
        column_title="at this token",
        title=f"What {markup_title(result.metric)} depends on",
        percent=False,
    ).figure()


def _short(name: str) -> str:
    return name.replace("blocks.", "").replace("hook_", "").replace("attn.", "")


@table.register(Gradients)
def _gradients_table(result: Gradients, width: int = WIDTH) -> "RenderableType":  # noqa: ARG001
    out = plain()
    out.add_column("place")
    out.add_column("size of the gradient", justify="right")
    out.add_column("most at")
    for name, sizes in result.sizes().items():
        best = int(sizes.argmax())
        word = f"{label(result.tokens[0][best])} ({best})"
        out.add_row(str(name), f"{float(sizes.square().sum().sqrt()):.4g}", word)
    scores = ", ".join(f"{score:.4g}" for score in floats(result.scores[:FEW]))
    scores += ", …" if len(result.scores) > FEW else ""
    note = "sizes are those of the first prompt" if len(result.scores) > 1 else ""
    return titled(f"gradients of {result.metric}, which is {scores}", out, note)


@plot.register(Comparison)
def _comparison(result: Comparison) -> "Figure":
    """Every place: across, what patching does; upwards, what was estimated."""
    guessed, true = (floats(x) for x in result.effects)
    names = [
        ", ".join(f"{axis} {where}" for axis, where in place.items())
        for place, _ in result.truth.cells()
    ]
    low, high = min(*guessed, *true), max(*guessed, *true)
    go = figures()
    fig = go.Figure(
        [
            go.Scatter(x=[low, high], y=[low, high], mode="lines", line={"color": "#8b949e"}),
            go.Scatter(
                x=true,
                y=guessed,
                mode="markers",
                marker={"color": ACCENT, "size": 7, "opacity": 0.7},
                text=names,
                hovertemplate="%{text}: %{x:.4g}, estimated %{y:.4g}<extra></extra>",
            ),
        ]
    )
    title = f"{markup_title(result.truth.title)}: estimate and truth"
    fig.update_layout(look(title, 8, 1))
    fig.update_layout(
        xaxis={"title": {"text": "change of the score by patching"}} | SOFT,
        yaxis={"title": {"text": "estimated"}} | SOFT,
    )
    return fig


@table.register(Comparison)
def _comparison_table(result: Comparison, width: int = WIDTH) -> "RenderableType":  # noqa: ARG001
    guessed, true = (floats(x) for x in result.effects)
    cells = [place for place, _ in result.truth.cells()]
    out = plain()
    for axis in result.truth.axes:
        out.add_column(axis, justify="right")
    for name in ("estimate", "truth"):
        out.add_column(name, justify="right")
    for i in sorted(range(len(cells)), key=lambda i: -abs(true[i]))[:FEW]:
        places = [_place(result, axis, i) for axis in cells[i]]
        out.add_row(*places, f"{guessed[i]:+.4g}", f"{true[i]:+.4g}")
    said = [("rank correlation", result.spearman), ("correlation", result.pearson)]
    words = " · ".join(f"{name} {'none' if r is None else f'{r:.3f}'}" for name, r in said)
    title = f"{result.truth.title}: estimate and truth\n{words} · {len(cells)} places"
    return titled(title, out, "how much each place moves the score; the largest in truth")


def _place(result: Comparison, axis: str, cell: int) -> str:
    places = result.truth.axes[axis]
    at = [place for place, _ in result.truth.cells()][cell][axis]
    words = result.truth.labels.get(axis)
    return str(at) if words is None else f"{label(words[places.index(at)])} ({at})"
