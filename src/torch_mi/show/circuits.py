# SPDX-License-Identifier: MIT OR Apache-2.0
"""How gradients, estimates of patching, edges and circuits look."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch_mi.analysis.attribution_patching import Comparison
from torch_mi.analysis.circuits import Circuit, Faithfulness
from torch_mi.analysis.edge_patching import Edges
from torch_mi.analysis.gradients import Gradients
from torch_mi.analysis.parts import INPUT, LOGITS
from torch_mi.errors import MIError
from torch_mi.results import floats
from torch_mi.show.heat import ACCENT, PAGE, Heat, figures, look
from torch_mi.show.labels import label, markup, metric_markup, metric_words, one_line, spelt_labels
from torch_mi.show.page import Section
from torch_mi.show.pages import Page
from torch_mi.show.plots import plot
from torch_mi.show.sweeps import markup_title
from torch_mi.show.tables import WIDTH, plain, table, titled

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from rich.console import RenderableType

SOFT = {"gridcolor": "rgba(128,128,128,.25)", "zeroline": False}
FEW = 8
ROUND = 38
"""Pixels across a part of a circuit."""
Spot = tuple[float, float]


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
        columns=spelt_labels(result.tokens[0]),
        words=[[_short_size(value) for value in row] for row in rows],
        hover=[
            [f"{name}, {word}: {value:.4g}" for word, value in zip(words, row, strict=True)]
            for name, row in zip(sizes, rows, strict=True)
        ],
        high=top,
        unit="size of the gradient",
        row_title="",
        column_title="at this token",
        title=f"What the {metric_markup(result.metric)} depends on",
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
    return titled(f"gradients of the {metric_words(result.metric)}, which is {scores}", out, note)


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
    metric = metric_markup(result.truth.metric)
    title = (
        f"{markup_title(result.truth.title)}: estimate and truth"
        f"<br><sup>{metric}; the line is where they agree</sup>"
    )
    fig.update_layout(look(title, 8, 1))
    fig.update_layout(
        xaxis={"title": {"text": "change of the score by patching"}} | SOFT,
        yaxis={"title": {"text": "the same, estimated"}} | SOFT,
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
        places = [_cell(result, axis, i) for axis in cells[i]]
        out.add_row(*places, f"{guessed[i]:+.4g}", f"{true[i]:+.4g}")
    said = [("rank correlation", result.spearman), ("correlation", result.pearson)]
    words = " · ".join(f"{name} {'none' if r is None else f'{r:.3f}'}" for name, r in said)
    title = f"{result.truth.title}: estimate and truth\n{words} · {len(cells)} places"
    return titled(title, out, "how much each place moves the score; the largest in truth")


def _cell(result: Comparison, axis: str, cell: int) -> str:
    places = result.truth.axes[axis]
    at = [place for place, _ in result.truth.cells()][cell][axis]
    words = result.truth.labels.get(axis)
    return str(at) if words is None else f"{label(words[places.index(at)])} ({at})"


@plot.register(Edges)
def _edges(result: Edges) -> "Figure":
    """Who reads upwards, who writes across: the sum of the sizes of all edges between them."""
    writers = _groups(w.name for w in result.graph.writers)
    readers = _groups(r.name for r in result.graph.readers)
    weights = result.scores.abs()
    cells = [
        [float(weights[[[w] for w in ws], rs].sum()) for ws in writers.values()]
        for rs in readers.values()
    ]
    across, up = list(writers), list(readers)
    return Heat(
        values=cells,
        rows=up,
        columns=across,
        words=[[_short_size(value) for value in row] for row in cells],
        hover=[
            [f"{up[i]} listens to {across[j]}: {value:.4g}" for j, value in enumerate(row)]
            for i, row in enumerate(cells)
        ],
        high=max(map(max, cells)) or 1.0,
        unit="sum of sizes",
        row_title="reads",
        column_title="writes",
        title=f"Which part listens to which · {markup_title(result.model_id)}",
        percent=False,
    ).figure()


def _short_size(value: float) -> str:
    """A size in four letters; nothing where there is no edge."""
    if not value:
        return ""
    return "~0" if value < 0.005 else f"{value:.2f}" if value < 10 else f"{value:.3g}"  # noqa: PLR2004


def _groups(names: Iterable[str]) -> dict[str, list[int]]:
    """The heads of a layer together; MLPs, input and logits by themselves."""
    found: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        found.setdefault(name.split(".")[0], []).append(i)
    return found


@table.register(Edges)
def _edges_table(result: Edges, width: int = WIDTH) -> "RenderableType":  # noqa: ARG001
    out = plain()
    for name in ("writes", "reads"):
        out.add_column(name)
    out.add_column("score", justify="right")
    out.add_column("")
    best = result.best(12)
    top = max(abs(score) for _, _, score in best) or 1.0
    for writes, reads, score in best:
        bar = "█" * round(24 * abs(score) / top)
        out.add_row(writes, reads, f"{score:+.4g}", f"[{'cyan' if score > 0 else 'red'}]{bar}[/]")
    title = (
        f"edges of {result.model_id} · {metric_words(result.metric)}\n"
        f"clean {result.clean:.4g} · corrupted {result.corrupted:.4g} · {len(result)} edges"
    )
    return titled(title, out, "score: what the metric would lose without the edge, to first order")


@plot.register(Circuit)
def _circuit(result: Circuit) -> "Figure":
    """Parts by layer, upwards; an edge is a line, as thick as it weighs."""
    pruned, go = result.pruned(), figures()
    if not len(pruned):
        raise MIError("nothing comes through this circuit, so there is nothing to draw")
    # a head that shares keys and values with one of the circuit is none of it by that
    heard = {pruned.graph.writers[w].name for w, _ in pruned.edges} | {LOGITS}
    places = _places([name for name in pruned.nodes if name in heard], pruned.graph.layers)
    top = max((abs(score) for score in pruned.scores.values()), default=1.0) or 1.0
    fig = go.Figure()
    for w, r in sorted(pruned.edges):
        score = pruned.scores.get((w, r), top)
        colour = "#2f7dbd" if score > 0 else ACCENT
        line = {"width": 0.7 + 4 * abs(score) / top, "color": colour, "shape": "spline"}
        for node in pruned.graph.readers[r].nodes:
            if node in places:
                x, y = _bend(places[pruned.graph.writers[w].name], places[node])
                fig.add_scatter(x=x, y=y, mode="lines", line=line, opacity=0.6, hoverinfo="skip")
    names = list(places)
    fig.add_scatter(
        x=[places[name][0] for name in names],
        y=[places[name][1] for name in names],
        mode="markers+text",
        marker={"size": ROUND, "color": "#57606a"},
        text=names,
        textfont={"color": "#ffffff", "size": 10},
        cliponaxis=False,
        hovertemplate="%{text}<extra></extra>",
    )
    levels = len({y for _, y in places.values()})
    widest = max(Counter(y for _, y in places.values()).values())
    fig.update_layout(look(f"A circuit of {len(pruned)} edges", 2 * levels, 1))
    fig.update_layout(
        xaxis={"visible": False},
        yaxis={"visible": False},
        width=None if widest * (ROUND + 4) <= PAGE else 140 + widest * (ROUND + 4),
    )
    return fig


def _bend(start: Spot, end: Spot) -> tuple[list[float], list[float]]:
    """A line that swings out, the further the more it skips: it hides nothing that is between."""
    (x0, y0), (x1, y1) = start, end
    out = 0.12 * (y1 - y0 - 1)
    return [x0, (x0 + x1) / 2 - out, x1], [y0, (y0 + y1) / 2, y1]


def _places(nodes: Sequence[str], layers: int) -> dict[str, Spot]:
    """Where each part is drawn: layers upwards, an MLP above the heads of its layer."""
    levels: dict[int, list[str]] = {}
    for name in nodes:
        if name == INPUT:
            level = -1
        elif name == LOGITS:
            level = 2 * layers
        else:
            level = 2 * int(name[1:].split(".")[0]) + (name[0] == "m")
        levels.setdefault(level, []).append(name)
    # empty levels take no room
    return {
        name: (i - (len(names) - 1) / 2, float(y))
        for y, (_, names) in enumerate(sorted(levels.items()))
        for i, name in enumerate(names)
    }


@table.register(Circuit)
def _circuit_table(result: Circuit, width: int = WIDTH) -> "RenderableType":  # noqa: ARG001
    heard: dict[str, list[str]] = {}
    for writes, reads in result.names:
        heard.setdefault(reads, []).append(writes)
    out = plain()
    out.add_column("reads", no_wrap=True)
    out.add_column("listens to")
    for reads, writers in heard.items():
        out.add_row(reads, " ".join(writers))
    live = len(result.pruned())
    dead = len(result) - live
    note = f"{dead} of them {'carries' if dead == 1 else 'carry'} nothing on" if dead else ""
    return titled(f"a circuit of {len(result)} edges", out, note)


@plot.register(Faithfulness)
def _faithfulness(result: Faithfulness) -> "Figure":
    """Edges across, faithfulness upwards."""
    values = floats(result.values)
    order = sorted(range(len(values)), key=lambda i: result.sizes[i])
    fig = figures().Figure(
        figures().Scatter(
            x=[max(result.sizes[i], 1) for i in order],
            y=[values[i] for i in order],
            mode="lines+markers",
            line={"color": ACCENT, "width": 2},
            text=[result.names[i] for i in order],
            hovertemplate="%{text}: %{x} edges, %{y:.3f}<extra></extra>",
        )
    )
    for y in (0, 1):
        fig.add_hline(y=y, line={"dash": "dot", "color": "#8b949e", "width": 1})
    fig.update_layout(look(f"How faithful circuits are, of {result.edges} edges", 8, 1))
    fig.update_layout(
        xaxis={"title": {"text": "edges"}, "type": "log", "dtick": 1} | SOFT,
        yaxis={"title": {"text": "faithfulness<br>(0 corrupted, 1 clean)"}} | SOFT,
    )
    return fig


@table.register(Faithfulness)
def _faithfulness_table(result: Faithfulness, width: int = WIDTH) -> "RenderableType":  # noqa: ARG001
    out = plain()
    out.add_column("circuit")
    for name in ("edges", "share", "score", "faithfulness"):
        out.add_column(name, justify="right")
    found = zip(
        result.names, result.sizes, floats(result.scores), floats(result.values), strict=True
    )
    for name, size, score, value in found:
        out.add_row(name, str(size), f"{size / result.edges:.1%}", f"{score:.4g}", f"{value:.3f}")
    title = (
        f"how faithful circuits are · {metric_words(result.metric)}\n"
        f"clean {result.clean:.4g} (1) · corrupted {result.corrupted:.4g} (0)"
    )
    return titled(title, out)


def edges_page(found: Edges, circuit: Circuit, scored: Faithfulness) -> Page:
    """Edges, a circuit of them, and how faithful circuits are."""
    lead = (
        "Every part of a model writes into the residual stream, and every later part reads it. "
        "Each such edge was scored by what the answer would lose, to first order, if what the "
        f"other prompt gives went along it: {one_line(str(found.options['clean']))} against "
        f"{one_line(str(found.options['corrupted']))}."
    )
    writes, reads, score = found.best(1)[0]
    words = f"The heaviest: {reads} listens to {writes} ({score:+.3g})."
    values = (
        f"All other edges come from the other prompt's run. {len(circuit)} edges are drawn above."
    )
    return (
        f"Edges · {found.model_id}",
        lead,
        [
            Section("Edges", words, plot(found)),
            Section("Circuit", "Blue edges help the answer, orange ones hinder it.", plot(circuit)),
            Section("Faithfulness", values, plot(scored)),
        ],
    )
