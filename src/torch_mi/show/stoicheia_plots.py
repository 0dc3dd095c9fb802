# SPDX-License-Identifier: MIT OR Apache-2.0
"""Pictures of AlgZoo's networks: the map of their regions, ablations, roles, tables."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch_mi.analysis.stoicheia.ablation import NeuronAblation
from torch_mi.analysis.stoicheia.answers import Anatomy
from torch_mi.analysis.stoicheia.exact import PLANE, ExactRegion, ExactRegions
from torch_mi.analysis.stoicheia.regions import Regions
from torch_mi.analysis.stoicheia.report import Report
from torch_mi.analysis.stoicheia.roles import Roles
from torch_mi.analysis.stoicheia.standardise import StandardForm
from torch_mi.analysis.stoicheia.surprise import Surprise
from torch_mi.analysis.stoicheia.tables import EveryInput, LookupTables
from torch_mi.analysis.stoicheia.training import Training
from torch_mi.results import floats
from torch_mi.show.heat import ACCENT, Heat, figures, look
from torch_mi.show.page import Section
from torch_mi.show.pages import Page
from torch_mi.show.plots import plot
from torch_mi.show.stoicheia import bits

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SOFT = {"gridcolor": "rgba(128,128,128,.25)", "zeroline": False}
HUES = (
    "#4e79a7", "#f28e2b", "#76b7b2", "#b07aa1", "#edc948", "#59a14f", "#9c755f", "#bab0ac",
    "#86bcb6", "#d37295",
)  # fmt: skip
WRONG = "#c1121f"
REACH = 3.0
"""How far the map of two inputs reaches, in standard deviations."""
FINE = 2.0
"""Degrees between the corners that draw an arc."""
MOST = 30
FIRST = 24
"""Bars of a picture, and those that are named."""


@plot.register(ExactRegions)
def _exact(result: ExactRegions) -> "Figure":
    """The map of two inputs, or the largest regions as bars."""
    if result.rnn.seq_len != PLANE:
        names = [bits(region.bits, result.rnn.seq_len) for region in result.regions]
        shares = [region.share for region in result.regions]
        return _bars(names, shares, "Exact shares of the largest regions")
    fig = figures().Figure()
    for i, region in enumerate(result.regions):
        for arc in region.arcs:
            fig.add_trace(_wedge(arc, HUES[i % len(HUES)], _hover(region), bits(region.bits, 2)))
        for arc in region.wrong:
            fig.add_trace(_wedge(arc, WRONG, f"answered wrong<br>{_hover(region)}", ""))
    fig.update_layout(look(f"Where {len(result.regions)} linear maps hold", 16, 1))
    axis = SOFT | {"range": [-REACH, REACH]}
    fig.update_layout(
        height=620,
        width=640,
        xaxis=axis | {"title": {"text": "x0"}},
        yaxis=axis | {"title": {"text": "x1"}, "scaleanchor": "x"},
    )
    return fig


def _hover(region: ExactRegion) -> str:
    rows = [
        f"output {o} = {row[0]:.3f}·x0 {'+' if row[1] >= 0 else '−'} {abs(row[1]):.3f}·x1"
        for o, row in enumerate(region.map)
    ]
    said = [f"<b>{bits(region.bits, 2)}</b>", f"{100 * region.share:.3f} % of inputs"]
    return "<br>".join([*said, f"{100 * region.error:.5f} % wrong", *rows])


def _wedge(arc: tuple[float, float], colour: str, hover: str, name: str) -> Any:
    """A slice of the plane between two angles."""
    steps = max(2, math.ceil((arc[1] - arc[0]) / FINE))
    angles = [math.radians(arc[0] + (arc[1] - arc[0]) * i / steps) for i in range(steps + 1)]
    far = 2 * REACH
    return figures().Scatter(
        x=[0, *(far * math.cos(a) for a in angles), 0],
        y=[0, *(far * math.sin(a) for a in angles), 0],
        fill="toself",
        fillcolor=colour,
        opacity=0.75 if name else 1.0,
        mode="lines",
        line={"color": colour if not name else "#ffffff", "width": 1.5},
        name=name,
        text=hover,
        hoverinfo="text",
        hoveron="fills",
    )


@plot.register(Regions)
def _regions(result: Regions) -> "Figure":
    names = [bits(region.bits, result.rnn.seq_len) for region in result.regions]
    shares = [region.share.value for region in result.regions]
    title = f"The most frequent of {result.distinct:,} regions"
    return _bars(names, shares, title)


def _bars(names: Sequence[str], shares: Sequence[float], title: str) -> "Figure":
    count = min(MOST, len(names))
    said = [name if len(name) <= FIRST else f"{name[: FIRST - 1]}…" for name in names[:count]]
    fig = figures().Figure(
        figures().Bar(
            x=list(shares[:count]),
            y=list(range(count)),
            orientation="h",
            marker={"color": ACCENT},
            customdata=list(names[:count]),
            hovertemplate="%{customdata}<br>%{x:.3%}<extra></extra>",
        )
    )
    fig.update_layout(look(title, count, 1))
    ticks = {"tickvals": list(range(count)), "ticktext": said, "autorange": "reversed"}
    fig.update_layout(
        xaxis=SOFT | {"tickformat": ".3~%", "title": {"text": "of the inputs"}},
        yaxis=ticks | {"automargin": True, "tickfont": {"family": "monospace", "size": 11}},
    )
    return fig


@plot.register(NeuronAblation)
def _ablation(result: NeuronAblation) -> "Figure":
    """Each pair's interaction; on the diagonal, each neuron's own delta."""
    size = result.hidden_size
    values: list[list[float | None]] = [[None] * size for _ in range(size)]
    hover = [[""] * size for _ in range(size)]
    for cell in (*result.singles, *result.pairs):
        a, b = cell.neurons[0], cell.neurons[-1]
        found = cell.delta if cell.interaction is None else cell.interaction
        what = "change" if cell.interaction is None else "interaction"
        said = f"neurons {a} and {b}" if a != b else f"neuron {a}"
        words = f"{said}<br>{what} {found.value:+.4f} ({found.low:+.4f} … {found.high:+.4f})"
        for row, column in ((a, b), (b, a)):
            values[row][column], hover[row][column] = found.value, words
    top = max(abs(x) for row in values for x in row if x is not None) or 1.0
    names = [str(j) for j in range(size)]
    return Heat(
        values=values,
        rows=names,
        columns=names,
        words=[["" if x is None else f"{x:+.2f}" for x in row] for row in values],
        hover=hover,
        colours="diverging",
        low=-top,
        high=top,
        unit="change",
        row_title="neuron",
        column_title="neuron",
        title=f"Without one neuron (diagonal), and how two interact ({result.method})",
        percent=False,
    ).figure()


@plot.register(Roles)
def _roles(result: Roles) -> "Figure":
    """How well the best signal of each neuron fits, step by step."""
    steps = [result.at(t) for t in range(result.seq_len)]
    return Heat(
        values=[[abs(step[j].correlation) for step in steps] for j in range(result.hidden_size)],
        rows=[str(j) for j in range(result.hidden_size)],
        columns=[str(t) for t in range(result.seq_len)],
        hover=[
            [f"neuron {r.neuron}, step {r.step}<br>{r.signal} {r.correlation:+.3f}" for r in row]
            for row in zip(*steps, strict=True)
        ],
        unit="correlation",
        row_title="neuron",
        column_title="step",
        title="How well the best signal fits each neuron",
        percent=False,
    ).figure()


@plot.register(StandardForm)
def _standard(result: StandardForm) -> "Figure":
    """The recurrent matrix over the output matrix."""
    rows = [floats(row) for row in result.rnn.w_hh]
    top = max(abs(x) for row in rows for x in row) or 1.0
    names = [
        f"{old}{'+' if s > 0 else '−'}" for old, s in zip(result.order, result.signs, strict=True)
    ]
    return Heat(
        values=rows,
        rows=names,
        columns=names,
        words=[[f"{x:+.2f}" for x in row] for row in rows],
        colours="diverging",
        low=-top,
        high=top,
        unit="weight",
        row_title="to neuron",
        column_title="from neuron",
        title="Recurrent weights in standard form",
        percent=False,
    ).figure()


@plot.register(Surprise)
def _surprise(result: Surprise) -> "Figure":
    """Each explanation's bits, stacked; the line is what the weights take."""
    names = [account.name for account in result.accounts]
    go, fig = figures(), figures().Figure()
    parts = (
        ("description", [a.description_bits for a in result.accounts], HUES[0]),
        ("left over", [a.residual_bits for a in result.accounts], HUES[1]),
    )
    for name, values, colour in parts:
        fig.add_trace(go.Bar(x=values, y=names, orientation="h", name=name, marker_color=colour))
    fig.add_vline(x=result.weight_bits, line={"dash": "dot", "color": "#8b949e", "width": 2})
    fig.update_layout(look("What explanations cost; the line is the weights", len(names), 1))
    fig.update_layout(
        barmode="stack",
        showlegend=True,
        xaxis=SOFT | {"title": {"text": "bits"}},
        yaxis={"autorange": "reversed", "automargin": True},
    )
    return fig


@plot.register(LookupTables)
def _lookup(result: LookupTables) -> "Figure":
    """The table of scores."""
    rows = [floats(row) for row in result.scores]
    top = max(abs(x) for row in rows for x in row) or 1.0
    return Heat(
        values=rows,
        rows=result.names,
        columns=result.names,
        words=[[f"{x:.1f}" for x in row] for row in rows],
        colours="diverging",
        low=-top,
        high=top,
        unit="score",
        row_title="from",
        column_title="to",
        title=f"Every score of layer {result.layer}",
        percent=False,
    ).figure()


@plot.register(EveryInput)
def _every(result: EveryInput) -> "Figure":
    """How many inputs are answered right under each edit."""
    names, right = ["nothing changed", *result.edits], [result.right, *result.edits.values()]
    shares = [count / result.inputs for count in right]
    return _bars(names, shares, f"All {result.inputs:,} inputs: how many are answered right")


@plot.register(Training)
def _training(result: Training) -> "Figure":
    """The loss, step by step."""
    fig = figures().Figure(
        figures().Scatter(
            x=list(range(1, len(result.losses) + 1)),
            y=list(result.losses),
            mode="lines",
            line={"color": ACCENT, "width": 1.5},
        )
    )
    fig.update_layout(look(f"Training for {result.network.task.name}", 8, 1))
    fig.update_layout(
        xaxis=SOFT | {"title": {"text": "step"}},
        yaxis=SOFT | {"title": {"text": "loss"}, "type": "log"},
    )
    return fig


@plot.register(Anatomy)
def _anatomy(result: Anatomy) -> "Figure":
    """How many inputs are answered right under each edit."""
    return plot(result.every)


@plot.register(Report)
def _report(result: Report) -> "Figure":
    """The map where there is one, or the ablation."""
    return plot(result.exact if result.exact is not None else result.ablation)


PAGE = (
    "A network this small can be understood completely: where it is linear, what each neuron is "
    "for, and how many bits an explanation of it takes."
)
SECTIONS: dict[type, tuple[str, str]] = {
    ExactRegions: ("Regions, exactly", "Each colour is one linear map; wrong answers are red."),
    Regions: ("Regions among samples", ""),
    NeuronAblation: (
        "Ablation",
        "On the diagonal, the change of the score without a neuron; beside it, by how much the "
        "change without two differs from the sum of theirs.",
    ),
    Roles: ("Roles", "Point at a cell for the signal."),
    StandardForm: ("Standard form", "The input weights are 1 and -1."),
    Surprise: ("Surprise", ""),
    EveryInput: ("Every input", ""),
    LookupTables: ("Lookup table", "A row is the number and the place that looks."),
}


def report_page(result: Report | Anatomy) -> Page:
    """All pictures of a network."""
    sections = [Section(*SECTIONS[type(part)], plot(part)) for part in result.parts()]
    name = f"{result.task}, hidden size {result.hidden_size}, {result.seq_len} inputs"
    return f"Stoicheia · {name}", PAGE, sections
