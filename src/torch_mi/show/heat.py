# SPDX-License-Identifier: MIT OR Apache-2.0
"""One look for every picture: colours, fonts, and the heat map most of them are."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch_mi.errors import MIError

Colours = Literal["sequential", "diverging"]

SCALES: dict[str, list[str]] = {
    "sequential": ["#f7fafd", "#c9ddf0", "#7fb3dc", "#2f7dbd", "#08306b"],
    "diverging": ["#2166ac", "#92c5de", "#f7f7f7", "#f4a582", "#b2182b"],
}
"""Evenly spaced colours, safe for colour-blind readers; pages swap them on a dark screen."""
DARK_SCALES: dict[str, list[str]] = {
    "sequential": ["#141a22", "#173a5e", "#1f67a8", "#5aa9e6", "#b9dcff"],
    "diverging": ["#6cb6ff", "#24527d", "#171c23", "#7d3a33", "#ff9384"],
}
ACCENT = "#d95f02"
FONT = "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', sans-serif"
MONO = "ui-monospace, 'SF Mono', Menlo, 'DejaVu Sans Mono', monospace"
CELL_HEIGHT = 30
FITS, READABLE = 16, 80
"""Up to so many columns share the width there is; up to so many have words in their cells."""
WORD_WIDTH, BARE_WIDTH = 48, 14
"""Pixels of a column with a word and without, where they do not share the width there is."""
TALL = 40
"""More rows than this are drawn thinner."""


def figures() -> Any:
    """`plotly.graph_objects`, if plotly is installed."""
    try:
        import plotly.graph_objects as go  # noqa: PLC0415 - an optional extra
    except ImportError as cause:
        raise MIError("plots need plotly: pip install torch-mi[viz]") from cause
    return go


def scale(colours: Colours) -> list[list[float | str]]:
    """A colour scale as plotly takes it."""
    stops = SCALES[colours]
    return [[i / (len(stops) - 1), colour] for i, colour in enumerate(stops)]


@dataclass(frozen=True)
class Heat:
    """Values [row column], rows from the bottom up; what each cell and hovering over it says."""

    values: Sequence[Sequence[float | None]]
    rows: Sequence[str]
    columns: Sequence[str]
    words: Sequence[Sequence[str]] | None = None
    hover: Sequence[Sequence[str]] | None = None
    colours: Colours = "sequential"
    low: float = 0.0
    high: float = 1.0
    unit: str = "probability"
    row_title: str = "layer"
    column_title: str = ""
    title: str = ""
    percent: bool = True
    """Whether the values are fractions of one, written as percentages."""
    ticks: Mapping[float, str] | None = None
    """What the colour bar says, and where; plotly decides unless given."""

    def trace(self) -> Any:
        go = figures()
        written = self.words is not None and len(self.columns) <= READABLE
        return go.Heatmap(
            z=self.values,
            text=self.words,
            customdata=self.hover,
            texttemplate="%{text}" if written else None,
            textfont={"family": MONO, "size": 12 if len(self.columns) <= FITS else 11},
            hovertemplate="%{customdata}<extra></extra>" if self.hover is not None else None,
            colorscale=scale(self.colours),
            zmin=self.low,
            zmax=self.high,
            meta=self.colours,
            xgap=1,
            ygap=1,
            colorbar={
                "title": {"text": self.unit, "side": "right"},
                "thickness": 12,
                "outlinewidth": 0,
                "tickformat": ".0%" if self.percent else None,
                "tickvals": None if self.ticks is None else list(self.ticks),
                "ticktext": None if self.ticks is None else list(self.ticks.values()),
            },
        )

    def axes(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The x and the y axis: numbered underneath, so that equal tokens stay apart."""
        bare = {"showgrid": False, "zeroline": False, "ticks": "", "ticklabelstandoff": 5}
        longest = max(len(html.unescape(re.sub("<[^>]*>", "", name))) for name in self.columns)
        x = bare | {
            "tickvals": list(range(len(self.columns))),
            "ticktext": list(self.columns),
            "title": {"text": self.column_title},
            "tickfont": {"family": MONO, "size": 12},
            "range": [-0.5, len(self.columns) - 0.5],
            "tickangle": 0 if longest <= letters(len(self.columns)) else -45,
        }
        y = bare | {
            "tickvals": list(range(len(self.rows))),
            "ticktext": list(self.rows),
            "title": {"text": self.row_title},
            "tickfont": {"family": MONO, "size": 12},
            "range": [-0.5, len(self.rows) - 0.5],
        }
        return x, y

    def figure(self) -> Any:
        """The plotly figure; plotly has no types to speak of."""
        x, y = self.axes()
        fig = figures().Figure(self.trace())
        fig.update_layout(
            look(self.title, len(self.rows), len(self.columns)) | {"xaxis": x, "yaxis": y}
        )
        return fig


def look(title: str, rows: int, columns: int) -> dict[str, Any]:
    """The layout that all figures share, for this many cells."""
    return {
        "title": {"text": title, "x": 0, "xref": "paper", "font": {"size": 15}},
        "font": {"family": FONT, "size": 13, "color": "#1f2328"},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "height": max(260, 140 + (CELL_HEIGHT if rows <= TALL else CELL_HEIGHT // 2) * rows),
        "width": _width(columns),
        "margin": {"l": 60, "r": 30, "t": 60, "b": 70},
        "hoverlabel": {"font": {"family": MONO}, "align": "left"},
        "dragmode": False,
        "showlegend": False,
    }


def _width(columns: int) -> int | None:
    """How wide a figure is, if it does not take the width there is."""
    if columns <= FITS:
        return None
    return 180 + columns * (WORD_WIDTH if columns <= READABLE else BARE_WIDTH)


def letters(columns: int) -> int:
    """How many letters of a word a cell has room for."""
    room = 780 // max(1, columns) if columns <= FITS else WORD_WIDTH
    return max(3, min(14, room // 7))
