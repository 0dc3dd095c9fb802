# SPDX-License-Identifier: MIT OR Apache-2.0
"""How grids of scores, scores of heads, and shares of a logit look."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch_mi.analysis.attribution import Attribution, Share
from torch_mi.analysis.heads import SCORES, HeadScores
from torch_mi.errors import MIError
from torch_mi.results import floats
from torch_mi.show.heat import ACCENT, DENSE, MONO, PAGE, SHARED, Heat, figures, look
from torch_mi.show.labels import label, markup, metric_markup, metric_words, one_line, spelt_labels
from torch_mi.show.panels import stacked
from torch_mi.show.plots import plot
from torch_mi.show.tables import WIDTH, plain, table, titled
from torch_mi.sweeps.grid import Coordinate, Grid

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from rich.console import RenderableType
    from rich.text import Text

SAID = {"pos": "at this token", "key": "attention to this token", "query": "from this token"}
"""What an axis of places is called under a picture."""
FLAT, PANELS = 2, 8
"""A picture has two axes; a third becomes panels, if it has no more places than this."""


@plot.register(Grid)
def _grid(result: Grid) -> "Figure":
    """Two axes as a heat map around the baseline, one as a line; of three the first as panels."""
    first, places = next(iter(result.axes.items()))
    if len(result.axes) == FLAT + 1 and len(places) <= PANELS:
        return _panels(result, first)
    if len(result.axes) > FLAT:
        raise MIError(f"a picture has two axes, this grid {len(result.axes)}: {list(result.axes)}")
    if len(result.axes) < FLAT:
        return _line(result)
    up, across = _upright(result)
    values = result.values if next(iter(result.axes)) == up else result.values.T
    rows, columns = _names(result, up), _names(result, across)
    reach = float((values - result.baseline).abs().max()) or 1.0
    digits = decimals(reach)
    return Heat(
        values=[floats(row) for row in values],
        rows=rows,
        columns=columns,
        words=[[rounded(value, digits) for value in floats(row)] for row in values],
        hover=[
            [
                f"{up} {rows[i]}, {across} {columns[j]}: {value:.4g}"
                for j, value in enumerate(floats(row))
            ]
            for i, row in enumerate(values)
        ],
        colours="diverging",
        low=result.baseline - reach,
        high=result.baseline + reach,
        unit=metric_markup(result.metric),
        ticks=_ticks(result, digits),
        row_title=up,
        column_title=SAID.get(across, across),
        title=markup_title(result.title),
        percent=False,
    ).figure()


def _panels(result: Grid, axis: str) -> "Figure":
    """The places of an axis one above the other, on one scale."""
    reach = float((result.values - result.baseline).abs().max()) or 1.0
    parts = [plot(replace(result.at(axis, place), title=str(place))) for place in result.axes[axis]]
    ends = (result.baseline - reach, result.baseline + reach)
    fig: Any = stacked(parts, markup_title(result.title), ends)
    ticks = _ticks(result, decimals(reach))
    fig.data[0].colorbar.update(tickvals=list(ticks), ticktext=list(ticks.values()))
    return fig


def _ticks(result: Grid, digits: int) -> dict[float, str]:
    """The ends of the scale and the run without edits, unless they would touch."""
    low, high = float(result.values.min()), float(result.values.max())
    near = max(high - result.baseline, result.baseline - low) / 4
    ends = [v for v in (low, high) if abs(v - result.baseline) > near]
    plain = f"{rounded(result.baseline, digits)}<br>unedited"
    return {result.baseline: plain} | {v: rounded(v, digits) for v in ends}


def decimals(reach: float) -> int:
    """How many decimals tell scores apart that differ by up to `reach`.

    >>> [decimals(reach) for reach in (300.0, 4.0, 0.03, 1e-7)]
    [2, 2, 3, 5]
    """
    return max(2, min(5, 1 - math.floor(math.log10(reach))))


def rounded(value: float, digits: int = 2) -> str:
    """A score with so many decimals; nothing is less than nothing."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def markup_title(title: str) -> str:
    """A title in plotly's kind of HTML, its spaces as they are."""
    return title.replace("&", "&amp;").replace("<", "&lt;")


def _upright(result: Grid) -> tuple[str, str]:
    """Which axis goes upwards: the layers, if there are layers."""
    first, second = result.axes
    return (second, first) if second == "layer" else (first, second)


def _names(result: Grid, axis: str) -> list[str]:
    """What stands at the places of an axis: words where there are any."""
    words = result.labels.get(axis)
    if words is None:
        return [str(place) for place in result.axes[axis]]
    return spelt_labels(words)


def _line(result: Grid) -> "Figure":
    axis = next(iter(result.axes))
    names = _names(result, axis)
    fig = figures().Figure(
        figures().Scatter(
            x=list(range(len(names))),
            y=floats(result.values),
            customdata=names,
            mode="lines+markers",
            line={"color": ACCENT, "width": 2},
            hovertemplate="%{customdata}: %{y:.4g}<extra></extra>",
        )
    )
    fig.add_hline(y=result.baseline, line={"dash": "dot", "color": "#8b949e", "width": 1})
    layout = look(markup_title(result.title), 8, 1)
    soft = {"gridcolor": "rgba(128,128,128,.25)", "zeroline": False}
    fig.update_layout(layout)
    fig.update_layout(
        xaxis=few_ticks(names) | {"title": {"text": SAID.get(axis, axis)}} | soft,
        yaxis={"title": {"text": metric_markup(result.metric, 40)}} | soft,
    )
    return fig


def few_ticks(names: Sequence[str]) -> dict[str, Any]:
    """Names under a line, as many as there is room for."""
    step = -(-len(names) // SHARED)
    some = list(range(0, len(names), step))
    turned = len(names) > DENSE or sum(map(len, names)) > PAGE // 8
    return {
        "tickvals": some,
        "ticktext": [names[i] for i in some],
        "tickangle": (-90 if len(names) > DENSE else -45) if turned else 0,
        "tickfont": {"family": MONO, "size": 12},
    }


@table.register(Grid)
def _grid_table(result: Grid, width: int = WIDTH) -> "RenderableType":
    from rich.console import Group  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    parts = [f"{metric_words(result.metric)} · without edits {result.baseline:.4g}"]
    if result.reference is not None:
        parts.append(f"the reference {result.reference:.4g}")
    head = Text.assemble((result.title, "bold"), "\n", " · ".join(parts))
    best = plain()
    for axis in result.axes:
        best.add_column(axis, justify="right" if axis not in result.labels else "left")
    best.add_column("score", justify="right")
    for place, value in result.best(5):
        best.add_row(*(_place(result, a, p) for a, p in place.items()), f"{value:.4g}")
    far = titled("furthest from the run without edits", best)
    first, places = next(iter(result.axes.items()))
    if len(result.axes) == FLAT + 1 and len(places) <= PANELS:
        cells = [_cells(result.at(first, one), width, f"{one}: ") for one in places]
        return Group(head, *cells, far)
    return Group(head, _cells(result, width), far) if len(result.axes) == FLAT else Group(head, far)


def _place(result: Grid, axis: str, place: Coordinate) -> str:
    words = result.labels.get(axis)
    if words is None:
        return str(place)
    return f"{label(words[result.axes[axis].index(place)])} ({place})"


def _cells(result: Grid, width: int, name: str = "") -> "RenderableType":
    """The grid itself, as many of its last columns as fit."""
    up, across = _upright(result)
    values = result.values if next(iter(result.axes)) == up else result.values.T
    words = result.labels.get(across, tuple(map(str, result.axes[across])))
    names = [label(word, 9) for word in words]
    reach = float((values - result.baseline).abs().max()) or 1.0
    digits = decimals(reach)
    fit = max(1, (width - 8) // (max(map(len, [*names, f"00.{'0' * digits}"])) + 2))
    first = max(0, len(names) - fit)
    note = f" (the last {fit} of {len(names)})" if first else ""
    out = plain()
    out.add_column(up, justify="right", no_wrap=True)
    for word in names[first:]:
        out.add_column(word, justify="right", no_wrap=True)
    for place, row in zip(result.axes[up], values[:, first:], strict=True):
        cells = [_score(v, abs(v - result.baseline) / reach, digits) for v in floats(row)]
        out.add_row(str(place), *cells)
    return titled(f"{name}{up} × {across}{note}", out)


def _score(value: float, weight: float, digits: int = 2) -> "Text":
    from rich.text import Text  # noqa: PLC0415

    style = "bold cyan" if weight > 0.5 else "" if weight > 0.1 else "dim"  # noqa: PLR2004
    return Text(rounded(value, digits), style=style)


@plot.register(HeadScores)
def _heads(result: HeadScores) -> "Figure":
    rows = [floats(row) for row in result.scores]
    return Heat(
        values=rows,
        rows=[str(i) for i in range(len(rows))],
        columns=[str(i) for i in range(len(rows[0]))],
        words=[[f"{value:.2f}" for value in row] for row in rows],
        hover=[
            [f"layer {i}, head {j}: {value:.3f}" for j, value in enumerate(row)]
            for i, row in enumerate(rows)
        ],
        unit="score",
        column_title="head",
        title=SCORES[result.kind].capitalize(),
        percent=False,
    ).figure()


@table.register(HeadScores)
def _heads_table(result: HeadScores, width: int = WIDTH) -> "RenderableType":  # noqa: ARG001
    kind = result.kind.replace("_", "-")
    out = plain()
    out.add_column("layer", justify="right")
    out.add_column("head", justify="right")
    out.add_column("score", justify="right")
    for layer, head, score in result.best(8):
        out.add_row(str(layer), str(head), _score(score, score))
    title = f"{kind} heads · {result.model_id} · chance is {result.chance:.3f}"
    return titled(title, out, f"score: {SCORES[result.kind]}")


@plot.register(Attribution)
def _attribution(result: Attribution) -> "Figure":
    """Layers upwards; heads and the MLP across; the rest is in the title."""
    heads = [floats(row) for row in result.heads()]
    mlps = {share.layer: share.value for share in result.shares if share.kind == "mlp"}
    rows = [[*row, mlps.get(i, 0.0)] for i, row in enumerate(heads)]
    apart = any(share.kind == "head" for share in result.shares)
    names = [*(str(i) for i in range(len(heads[0]))), "MLP"] if apart else ["mixing", "MLP"]
    reach = max(abs(value) for row in rows for value in row) or 1.0
    versus = "" if result.versus is None else f" over {markup(result.versus)}"
    return Heat(
        values=rows,
        rows=[str(i) for i in range(len(rows))],
        columns=names,
        words=[[f"{value:+.2f}" for value in row] for row in rows],
        hover=[
            [f"layer {i}, {_part(name)}: {v:+.4f}" for name, v in zip(names, row, strict=True)]
            for i, row in enumerate(rows)
        ],
        colours="diverging",
        low=-reach,
        high=reach,
        unit="logit",
        column_title="head",
        title=f"What each part adds to the logit of {markup(result.target)}{versus}"
        + _beyond(result),
        percent=False,
    ).figure()


def _beyond(result: Attribution) -> str:
    """What belongs to no head and no MLP, and the sum."""
    rest = [share for share in result.shares if share.kind not in ("head", "mlp")]
    totals: dict[str, float] = {}
    for share in rest:
        totals[share.kind] = totals.get(share.kind, 0.0) + share.value
    said = ", ".join(f"{kind} {value:+.2f}" for kind, value in totals.items())
    return f"<br><sup>{result.logit:.2f} in all; not shown: {said}</sup>"


def _part(name: str) -> str:
    return f"head {name}" if name.isdecimal() else name


@table.register(Attribution)
def _attribution_table(result: Attribution, width: int = WIDTH) -> "RenderableType":  # noqa: ARG001
    versus = "" if result.versus is None else f" over {label(result.versus)}"
    out = plain()
    out.add_column("part")
    out.add_column("share", justify="right")
    out.add_column("")
    best: list[Share] = result.best(12)
    reach = max((abs(share.value) for share in best), default=1.0) or 1.0
    for share in best:
        bar = "█" * round(24 * abs(share.value) / reach)
        out.add_row(
            share.name, f"{share.value:+.3f}", f"[{'cyan' if share.value > 0 else 'red'}]{bar}[/]"
        )
    rest = result.logit - sum(share.value for share in best)
    out.add_row("all others", f"{rest:+.3f}", "")
    title = f"shares of the logit of {label(result.target)}{versus}: {result.logit:.3f} in all"
    return titled(f"{title}\n{one_line(result.prompt)}", out)
