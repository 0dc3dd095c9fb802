# SPDX-License-Identifier: MIT OR Apache-2.0
"""How recurrent states look: their norms, effective attention, what each source wrote."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from torch_mi.analysis.effective import FORMS, EffectiveAttention
from torch_mi.analysis.sources import REST, Sources, SourceShares
from torch_mi.analysis.state_norms import StateNorms
from torch_mi.analysis.states import StateAblationResult
from torch_mi.results import floats
from torch_mi.show.causal import change_in_words, writes_of
from torch_mi.show.heat import Heat
from torch_mi.show.labels import label, markup, one_line, tick_labels
from torch_mi.show.page import Section
from torch_mi.show.pages import Page
from torch_mi.show.patterns import MAPS
from torch_mi.show.plots import attention, plot
from torch_mi.show.sweeps import rounded
from torch_mi.show.tables import WIDTH, plain, table, titled
from torch_mi.sweeps.grid import Grid
from torch_mi.types import numbers

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from rich.console import RenderableType
    from rich.table import Table

ROWS = 24
"""Heads, layers or sources that a table shows."""
MANY = 8
"""More heads than this have their norms drawn as the mean of each layer's."""
LEAD = (
    "A recurrent model does not look back at earlier tokens: each layer carries a state, to which "
    "every token writes its key and value, and from which later tokens read."
)


@plot.register(StateNorms)
def _norms(result: StateNorms) -> "Figure":
    """Layers and heads upwards, tokens across; of very many heads each layer's mean."""
    count = result.norms.shape[1]
    means = count * len(result.layers) > MAPS or count > MANY
    values = result.norms.mean(1) if means else result.norms.flatten(0, 1)
    names = [
        str(layer) if means else f"{layer}.{head}"
        for layer in result.layers
        for head in ([0] if means else range(count))
    ]
    rows = [floats(row) for row in values]
    return Heat(
        values=rows,
        rows=names,
        columns=tick_labels(result.tokens, result.special),
        words=[[short(v) for v in row] for row in rows],
        hover=[
            [
                f"layer {names[i]}, after {markup(result.tokens[j])}: {v:.4g}"
                for j, v in enumerate(row)
            ]
            for i, row in enumerate(rows)
        ],
        high=max(map(max, rows)) or 1.0,
        unit=result.what,
        row_title="layer" if means else "layer.head",
        column_title="after this token",
        title=f"How large the state is{', mean of heads' if means else ''}",
        percent=False,
    ).figure()


def short(value: float) -> str:
    """A number in three digits or so."""
    return rounded(value) if abs(value) < 10 else f"{value:.3g}"  # noqa: PLR2004 - width


@table.register(StateNorms)
def _norms_table(result: StateNorms, width: int = WIDTH) -> "RenderableType":
    """Each layer's mean over heads, after as many of the last tokens as fit."""
    names = [label(token, 9) for token in result.tokens]
    fit = max(1, (width - 8) // (max(map(len, [*names, "00.00"])) + 2))
    first = max(0, len(names) - fit)
    out = plain()
    out.add_column("layer", justify="right", no_wrap=True)
    for name in names[first:]:
        out.add_column(name, justify="right", no_wrap=True)
    for layer, row in zip(result.layers, result.norms.mean(1)[:, first:], strict=True):
        out.add_row(str(layer), *(short(v) for v in floats(row)))
    note = f"after the last {fit} of {len(names)} tokens" if first else ""
    title = f"{result.what}, mean of heads · {result.model_id}\n{one_line(result.prompt, width)}"
    return titled(title, out, note)


@plot.register(EffectiveAttention)
def _effective(result: EffectiveAttention) -> "Figure":
    """One heat map, and a menu of the heads; of very many heads, of each layer's mean."""
    means = len(result.layers) * len(result.heads) > MAPS or result.averaged
    maps = result.patterns.mean(1) if means else result.patterns.flatten(0, 1)
    every = "channels" if result.averaged else "heads"
    names = [
        f"layer {layer}, mean of {every}" if means else f"layer {layer}, head {head}"
        for layer in result.layers
        for head in ([0] if means else result.heads)
    ]
    return attention(
        maps,
        result.tokens,
        names=names,
        special=result.special,
        title="What each token reads of earlier ones",
        unit=FORMS[result.kind],
    )


@table.register(EffectiveAttention)
def _effective_table(result: EffectiveAttention, width: int = WIDTH) -> "RenderableType":
    """What the last token reads most, in each head."""
    out = plain()
    out.add_column("layer", justify="right")
    out.add_column("head", justify="right")
    out.add_column("reads most of")
    out.add_column(FORMS[result.kind], justify="right")
    found: list[tuple[float, tuple[str, str, str, str]]] = []
    for layer in result.layers:
        for head in result.heads:
            row = result.from_position(layer, -1, head)
            key = max(range(len(row)), key=lambda i: abs(row[i]))
            where = f"{label(result.tokens[key])} ({key})"
            name = "mean" if result.averaged else str(head)
            found.append((abs(row[key]), (str(layer), name, where, f"{row[key]:.3g}")))
    for _, cells in sorted(found, key=lambda each: -each[0])[:ROWS]:
        out.add_row(*cells)
    left = len(found) - ROWS
    title = f"effective attention of {label(result.tokens[-1])} · {result.model_id}"
    title = f"{title}\n{one_line(result.prompt, width - 4)}"
    return titled(title, out, f"and {left} more heads" if left > 0 else "")


def _places(result: Sources | SourceShares) -> list[str]:
    """What the rows of a picture of sources are called."""
    return [f"{markup(t)} ({p})" for t, p in zip(*_words(result), strict=True)]


def _words(result: Sources | SourceShares) -> tuple[Sequence[str], Sequence[int]]:
    return result.words.tokens, result.words.positions


def _by_source(
    result: Sources | SourceShares, values: Tensor, *, signed: bool, unit: str, title: str
) -> "Figure":
    """Positions that are written to upwards, sources across."""
    rows = [floats(row) for row in values]
    names = [*map(markup, result.tokens), *(f"<i>{name}</i>" for name in REST)]
    reach = float(values.abs().max()) or 1.0
    places = _places(result)
    return Heat(
        values=rows,
        rows=places,
        columns=names,
        words=[["" if abs(v) < reach / 200 else short(v) for v in row] for row in rows],
        hover=[
            [f"{names[j]} to {places[i]}: {v:.4g}" for j, v in enumerate(row)]
            for i, row in enumerate(rows)
        ],
        colours="diverging" if signed else "sequential",
        low=-reach if signed else 0.0,
        high=reach,
        unit=unit,
        row_title="written to",
        column_title="comes from",
        title=title,
        percent=False,
    ).figure()


@plot.register(Sources)
def _sources(result: Sources) -> "Figure":
    title = f"How much of what layer {result.layer} writes comes from each token"
    sizes = result.sizes()
    return _by_source(result, sizes, signed=False, unit="size of the share", title=title)


@plot.register(SourceShares)
def _shares(result: SourceShares) -> "Figure":
    title = f"What layer {result.layer} adds to {markup(result.toward)}, by source"
    return _by_source(result, result.values, signed=True, unit="share", title=title)


@table.register(Sources)
def _sources_table(result: Sources, width: int = WIDTH) -> "RenderableType":  # noqa: ARG001
    sizes = result.sizes()[-1]
    title = f"what layer {result.layer} writes to {label(result.words.tokens[-1])}, by source"
    out = _ranked(result, sizes, "size of the share")
    return titled(f"{title} · {result.model_id}", out, f"the shares add up, to {result.error:.1e}")


@table.register(SourceShares)
def _shares_table(result: SourceShares, width: int = WIDTH) -> "RenderableType":  # noqa: ARG001
    title = f"what layer {result.layer} adds to {label(result.toward, 30)}, by source"
    return titled(f"{title} · {result.model_id}", _ranked(result, result.values[-1], "share"))


def _ranked(result: Sources | SourceShares, values: Tensor, what: str) -> "Table":
    """The sources of the last position that weigh most."""
    out = plain()
    out.add_column("from")
    out.add_column(what, justify="right")
    order = values.abs().argsort(descending=True, stable=True)[:ROWS]
    for i, value in zip(numbers(order), floats(values[order]), strict=True):
        here = i < len(result.tokens)
        name = f"{label(result.tokens[i])} ({i})" if here else result.sources[i]
        out.add_row(name, short(value) if what != "share" else f"{value:+.3f}")
    return out


def state_page(
    norms: StateNorms,
    weights: EffectiveAttention,
    swept: Grid,
    gone: Sequence[StateAblationResult] = (),
) -> Page:
    """What the states of one prompt's run do."""
    prompt = one_line(norms.prompt)
    sections = [
        Section(
            "Norms over time",
            f"On {prompt}: the {norms.what} of each layer, after every token.",
            plot(norms),
        ),
        Section(
            "Effective attention",
            "What is read is linear in the values that tokens wrote, so each token has a weight "
            f"on each earlier one, as if it attended. Shown is: {FORMS[weights.kind]}. Choose a "
            "head in the menu.",
            plot(weights),
        ),
        Section(
            "Knockout, token by token",
            "Each cell is a run in which one token wrote nothing to the state of one layer. By "
            f"itself the run scores {swept.baseline:.4g}.",
            plot(swept),
        ),
        *(Section(writes_of(r), f"{change_in_words(r)}.", plot(r)) for r in gone),
    ]
    return f"Recurrent state · {norms.model_id}", LEAD, sections
