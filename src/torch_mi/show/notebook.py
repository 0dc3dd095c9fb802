# SPDX-License-Identifier: MIT OR Apache-2.0
"""Results in notebooks: plain HTML tables, coloured like the plots, for light and dark themes."""

import html as markup
from functools import singledispatch

from torch_mi.analysis.lens import LensReading, LogitLensResult
from torch_mi.results import format_probability
from torch_mi.show.labels import label, layer_label, one_line, ordinal
from torch_mi.show.tables import text

DARK_ENOUGH = 0.6
CELL = "padding:2px 8px;text-align:left;font-family:monospace;white-space:pre;border:0"


@singledispatch
def html(result: object) -> str:
    """A result as HTML for a notebook."""
    return f"<pre>{markup.escape(text(result))}</pre>"


def heat_cell(words: str, p: float, hover: str = "") -> str:
    """A table cell coloured by a probability."""
    colour = f"background:color-mix(in srgb, #2171b5 {100 * p:.0f}%, transparent)"
    ink = ";color:#fff" if p > DARK_ENOUGH else ""
    title = f' title="{markup.escape(hover)}"' if hover else ""
    return f'<td style="{CELL};{colour}{ink}"{title}>{markup.escape(words)}</td>'


def heat_table(head: list[str], rows: list[tuple[str, list[str]]], caption: str) -> str:
    """A table of cells that are already HTML, under a head, each row with its name."""
    top = "".join(f'<th style="{CELL}">{markup.escape(name)}</th>' for name in ["", *head])
    body = "".join(
        f'<tr><th style="{CELL};text-align:right">{markup.escape(name)}</th>{"".join(cells)}</tr>'
        for name, cells in rows
    )
    return (
        f'<div style="overflow-x:auto"><p style="margin:4px 0">{markup.escape(caption)}</p>'
        f'<table style="border-collapse:collapse"><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


@html.register(LogitLensResult)
def _lens(result: LogitLensResult) -> str:
    """Layer upwards; ranks across for one position, positions across for all."""
    caption = f"logit lens · {result.model_id} · {one_line(result.prompt)}"
    if len(result.positions) == 1:
        readings = result.at()
        head = [ordinal(rank + 1) for rank in range(len(readings[0].predictions))]
        head += [] if result.target is None else [f"P({label(result.target[1])})"]
        rows = [(layer_label(r.layer), _ranks(r)) for r in reversed(readings)]
        return heat_table(head, rows, caption)
    cells = {(r.layer, r.position): r for r in result.readings}
    rows = [
        (layer_label(layer), [_best(cells[layer, p]) for p in result.positions])
        for layer in reversed(result.layers)
    ]
    return heat_table([label(token) for token in result.tokens], rows, caption)


def _ranks(reading: LensReading) -> list[str]:
    cells = [
        heat_cell(f"{label(p.token)} {format_probability(p.probability)}", p.probability)
        for p in reading.predictions
    ]
    if reading.target is not None:
        words = f"{format_probability(reading.target.probability)} (#{reading.target.rank})"
        cells.append(heat_cell(words, reading.target.probability))
    return cells


def _best(reading: LensReading) -> str:
    hover = "\n".join(
        f"{label(p.token)} {format_probability(p.probability)}" for p in reading.predictions
    )
    best = reading.predictions[0]
    return heat_cell(label(best.token), best.probability, hover)
