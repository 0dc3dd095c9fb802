# SPDX-License-Identifier: MIT OR Apache-2.0
"""Results as plotly figures."""

from collections.abc import Sequence
from dataclasses import replace
from functools import singledispatch
from html import escape
from typing import TYPE_CHECKING, Any

from torch import Tensor

from torch_mi.analysis.lens import LensReading, LogitLensResult
from torch_mi.errors import MIError, ModelError
from torch_mi.results import floats, format_probability
from torch_mi.show.heat import ACCENT, DENSE, FITS, PAGE, Heat, figures, letters
from torch_mi.show.labels import LONGEST, label, layer_label, markup, one_line, ordinal, tick_labels

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

RANKS = 0.68
"""The part of a picture's width that ranks take where the target's rise is beside them."""
LARGE = 10
"""Weights from here on are written without decimals, so that they fit their cells."""


@singledispatch
def plot(result: object) -> "Figure":
    """A result as a plotly figure."""
    raise MIError(f"there is no picture of a {type(result).__name__}")


@plot.register(LogitLensResult)
def _lens(result: LogitLensResult) -> "Figure":
    return _by_rank(result) if len(result.positions) == 1 else _by_position(result)


def _by_position(result: LogitLensResult) -> "Figure":
    """Layers upwards, positions across; each cell's likeliest token, coloured by probability."""
    cells = {(r.layer, r.position): r for r in result.readings}
    grid = [[cells[layer, p] for p in result.positions] for layer in result.layers]
    rows = [layer_label(layer) for layer in result.layers]
    columns = tick_labels(result.tokens, result.special)
    hover = [[_hover(r, result) for r in row] for row in grid]
    best = Heat(
        values=[[r.predictions[0].probability for r in row] for row in grid],
        words=[
            [markup(r.predictions[0].token, letters(len(columns))) for r in row] for row in grid
        ],
        rows=rows,
        columns=columns,
        hover=hover,
        column_title="after this token",
        title="What each layer expects next",
        wordy=True,
    )
    fig = best.figure()
    if result.target is not None:
        values = [[0.0 if r.target is None else r.target.probability for r in row] for row in grid]
        _offer_target(fig, best, values, markup(result.target[1]))
    return fig


def _offer_target(fig: Any, best: Heat, values: list[list[float]], name: str) -> None:
    """A switch between the likeliest tokens and one token's probability."""
    words = [[f"{100 * p:.0f}" for p in row] for row in values]
    choices = [
        ("likeliest tokens", best.title, best.values, best.words),
        (f"P({name})", f"How likely each layer finds {name} next, in percent", values, words),
    ]
    buttons = [
        {
            "label": label,
            "method": "update",
            "args": [{"z": [z], "text": [text]}, {"title.text": title}],
        }
        for label, title, z, text in choices
    ]
    menu = {"type": "buttons", "direction": "right", "showactive": False, "buttons": buttons}
    corner = {"x": 1, "xanchor": "right", "y": 1.03, "yanchor": "bottom"}
    fig.update_layout(updatemenus=[menu | corner])


def _by_rank(result: LogitLensResult) -> "Figure":
    """Layers upwards, ranks across; beside them, how the target rises."""
    readings = result.at()
    ranks = len(readings[0].predictions)
    beside = RANKS if result.target is not None else 1.0  # of the width
    room = max(4, min(LONGEST, int(PAGE * beside / ranks / 6.6) - len(" 0.016%")))
    heat = Heat(
        values=[[p.probability for p in r.predictions] for r in readings],
        words=[
            [f"{markup(p.token, room)} {format_probability(p.probability)}" for p in r.predictions]
            for r in readings
        ],
        rows=[layer_label(r.layer) for r in readings],
        columns=[ordinal(rank + 1) for rank in range(ranks)],
        hover=[[_hover(r, result)] * len(r.predictions) for r in readings],
        column_title="likeliest next tokens",
        title=f"What each layer expects after {escape(one_line(result.prompt, 60), quote=False)}",
        wordy=True,
    )
    if result.target is None:
        return heat.figure()
    fig = heat.figure()
    x, _ = heat.axes()
    fig.add_trace(_rising(result, readings))
    fig.update_layout(
        xaxis=x | {"domain": [0, RANKS]},
        xaxis2={
            "domain": [0.74, 1],
            "range": [-0.03, 1.03],
            "tickformat": ".0%",
            "tickvals": [0, 0.5, 1],
            "title": {"text": f"probability of {markup(result.target[1])}"},
            "gridcolor": "rgba(128,128,128,.25)",
            "zeroline": False,
        },
    )
    fig.data[0].showscale = False
    return fig


def _rising(result: LogitLensResult, readings: list[LensReading]) -> Any:
    """The target's probability by layer."""
    return figures().Scatter(
        x=result.target_probabilities(),
        y=list(range(len(readings))),
        xaxis="x2",
        mode="lines+markers",
        line={"color": ACCENT, "width": 2},
        marker={"size": 8},
        customdata=[_hover(reading, result) for reading in readings],
        hovertemplate="%{customdata}<extra></extra>",
    )


def _hover(reading: LensReading, result: LogitLensResult) -> str:
    """A reading in words: where, the likeliest tokens, the target."""
    after = markup(result.tokens[reading.position])
    lines = [f"<b>layer {layer_label(reading.layer)}</b>, after {after}"]
    lines += [
        f"{format_probability(p.probability):>7}  {markup(p.token)}" for p in reading.predictions
    ]
    if reading.target is not None and result.target is not None:
        chance = format_probability(reading.target.probability)
        lines.append(f"{markup(result.target[1])}: {chance}, rank {reading.target.rank:,}")
    return "<br>".join(lines)


def attention(
    pattern: Tensor,
    tokens: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    special: Sequence[bool] | None = None,
    title: str = "Where each token looks",
    unit: str = "attention",
) -> "Figure":
    """Attention patterns [query key] or [head query key] as a heat map, with a choice of heads.

    Where weights are not attention, as `unit` says, each head has a scale of its own; if any are
    below zero, around zero.
    """
    heads = pattern[None] if pattern.ndim == 2 else pattern  # noqa: PLR2004
    if heads.shape[1:] != (len(tokens), len(tokens)):
        raise ModelError(f"a pattern of {list(pattern.shape)} does not fit {len(tokens)} tokens")
    named = list(names or [f"head {i}" for i in range(len(heads))])
    labels = tick_labels(tokens, special or [False] * len(tokens))
    signed = bool((heads < 0).any())
    maps = [_attention_map(head, tokens, labels, title, unit) for head in heads]
    maps = [replace(m, colours="diverging", low=-m.high) for m in maps] if signed else maps
    if signed and len(tokens) > FITS:  # with a sign in front, words would touch
        maps = [replace(m, words=[[""] * len(tokens)] * len(tokens)) for m in maps]
    fig = maps[0].figure()
    upright = len(tokens) > DENSE
    side = max(380, min(960, 34 * len(tokens) + 160))
    x, y = maps[0].axes()
    turn = 1.0 if upright else 0.71  # how much of its length a word takes upwards
    words = int(7.3 * max(len(label(token)) for token in tokens) * turn) + 14
    fig.update_layout(
        height=side + 60 * (len(maps) > 1),
        width=side + 90,
        xaxis=x | {"side": "top", "tickangle": -90 if upright else -45},
        yaxis=y | {"autorange": "reversed", "range": None},
        margin={
            "l": 90,
            "r": 30,
            "t": words + 40 + 40 * bool(title) + 50 * (len(maps) > 1),
            "b": 30,
        },
        title={"yref": "container", "y": 1, "yanchor": "top", "pad": {"t": 12}},
    )
    if len(maps) > 1:
        _offer_heads(fig, maps, named, words + 34)
    return fig


def _attention_map(
    head: Tensor, tokens: Sequence[str], labels: list[str], title: str, unit: str
) -> Heat:
    weights = [floats(row) for row in head.detach().float().cpu()]
    attends = unit == "attention"
    high = 1.0 if attends else float(head.abs().max()) or 1.0
    digits = 2 if high < LARGE else 0
    looks = "looks at" if attends else "reads of"
    least = max(high / 200, 10**-digits / 2)
    shown = [[w if k <= q else None for k, w in enumerate(row)] for q, row in enumerate(weights)]
    return Heat(
        values=shown,
        rows=labels,
        columns=labels,
        words=[
            ["" if w is None or abs(w) < least else f"{w:.{digits}f}" for w in row] for row in shown
        ],
        hover=[
            [f"{markup(tokens[q])} {looks} {markup(tokens[k])}: {w:.3f}" for k, w in enumerate(row)]
            for q, row in enumerate(weights)
        ],
        high=high,
        unit=unit,
        row_title="from this token",
        column_title="to this token",
        title=title,
        percent=False,
    )


def _offer_heads(fig: Any, maps: list[Heat], names: list[str], above: int) -> None:
    """A menu of heads, so many pixels above the cells."""
    fig.update_layout(
        updatemenus=[
            {
                "x": 0,
                "xanchor": "left",
                "y": 1,
                "yanchor": "bottom",
                "pad": {"b": above},
                "buttons": [
                    {
                        "label": name,
                        "method": "restyle",
                        "args": [_drawn(m)],
                    }
                    for name, m in zip(names, maps, strict=True)
                ],
            }
        ]
    )


def _drawn(m: Heat) -> dict[str, Any]:
    """What a menu puts in the place of the map that is shown."""
    return {
        "z": [m.values],
        "text": [m.words],
        "customdata": [m.hover],
        "zmin": m.low,
        "zmax": m.high,
    }
