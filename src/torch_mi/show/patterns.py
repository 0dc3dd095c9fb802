# SPDX-License-Identifier: MIT OR Apache-2.0
"""How attention patterns look."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch_mi.analysis.attention import AttentionPatterns
from torch_mi.show.labels import label, one_line
from torch_mi.show.page import Section
from torch_mi.show.pages import Page
from torch_mi.show.plots import attention, plot
from torch_mi.show.tables import WIDTH, plain, table, titled

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from rich.console import RenderableType

MAPS = 48
"""More heads than this are drawn as the mean of each layer's."""
ROWS = 24
"""Heads that a table shows, those that look most at one token."""
LEAD = (
    "Each token of a text looks back at others, once in every head. The darker a cell, the more "
    "the token of its row takes up from the token of its column. Choose a head in the menu."
)


@plot.register(AttentionPatterns)
def _patterns(result: AttentionPatterns) -> "Figure":
    """One heat map, and a menu of the heads; of very many heads, of each layer's mean."""
    means = len(result.layers) * len(result.heads) > MAPS
    maps = result.patterns.mean(1) if means else result.patterns.flatten(0, 1)
    names = [
        f"layer {layer}, mean of heads" if means else f"layer {layer}, head {head}"
        for layer in result.layers
        for head in ([0] if means else result.heads)
    ]
    return attention(maps, result.tokens, names=names, special=result.special)


@table.register(AttentionPatterns)
def _patterns_table(result: AttentionPatterns, width: int = WIDTH) -> "RenderableType":  # noqa: ARG001
    """What the last token looks at, in the heads that look most at one thing."""
    found = [
        (layer, head, *result.top(layer, -1, 1, head)[0])
        for layer in result.layers
        for head in result.heads
    ]
    found.sort(key=lambda row: -row[3])
    out = plain()
    for name in ("layer", "head"):
        out.add_column(name, justify="right")
    out.add_column("looks most at")
    out.add_column("weight", justify="right")
    for layer, head, key, weight in found[:ROWS]:
        where = f"{label(result.tokens[key])} ({key})"
        out.add_row(str(layer), str(head), where, f"{weight:.3f}")
    left = len(found) - ROWS
    note = f"and {left} more heads" if left > 0 else ""
    title = f"attention from {label(result.tokens[-1])} · {result.model_id}"
    return titled(f"{title}\n{one_line(result.prompt)}", out, note)


def attention_page(results: Sequence[AttentionPatterns]) -> Page:
    """Attention patterns, one prompt below the other."""
    sections = [Section(one_line(found.prompt), "", plot(found)) for found in results]
    return f"Attention · {results[0].model_id}", LEAD, sections
