# SPDX-License-Identifier: MIT OR Apache-2.0
"""One look for every picture: colours, fonts, and the heat map most of them are."""

import html
import re
import textwrap
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
PAGE = 780
"""Pixels across that the cells of a figure have on a page."""
CELL_HEIGHT = 30
FITS, READABLE = 16, 80
"""Up to so many columns have numbers in their cells; up to so many have words."""
SHARED = 72
"""Up to so many columns without words share the width there is."""
WORD_WIDTH, BARE_WIDTH = 48, 14
"""Pixels of a column with a word and without, where they do not share the width there is."""
LOW, TALL = 16, 40
"""More rows than this are drawn thinner, where they bear no words; and where they do."""
DENSE = 36
"""The names of more columns than this stand upright."""


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
    wordy: bool = False
    """Whether the words in the cells say more than the colours do."""

    @property
    def written(self) -> bool:
        """Whether there is room for words in the cells."""
        most = READABLE if self.wordy else FITS
        return self.words is not None and len(self.columns) <= most

    def trace(self) -> Any:
        go = figures()
        written = self.written
        return go.Heatmap(
            z=self.values,
            text=self.words,
            customdata=self.hover,
            texttemplate="%{text}" if written else None,
            textfont={"family": MONO, "size": 11 if self.wordy else 12},
            hovertemplate="%{customdata}<extra></extra>" if self.hover is not None else None,
            colorscale=scale(self.colours),
            zmin=self.low,
            zmax=self.high,
            meta=self.colours,
            xgap=1,
            ygap=1,
            colorbar={
                "title": {"text": self._unit(), "side": "right", "font": {"size": 12}},
                "thickness": 12,
                "outlinewidth": 0,
                "tickfont": {"size": 12},
                "tickformat": ".0%" if self.percent else None,
                "tickvals": None if self.ticks is None else list(self.ticks),
                "ticktext": None if self.ticks is None else list(self.ticks.values()),
            },
        )

    def _unit(self) -> str:
        """The unit, in lines that are no longer than the colour bar is."""
        room = max(24, (height_of(len(self.rows), written=self.written) - 140) // 8)
        return "<br>".join(textwrap.wrap(self.unit, room)) + "<br> "

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
            "tickangle": self._angle(longest),
        }
        y = bare | {
            "tickvals": list(range(len(self.rows))),
            "ticktext": list(self.rows),
            "title": {"text": self.row_title},
            "tickfont": {"family": MONO, "size": 12 if len(self.rows) <= TALL else 10},
            "range": [-0.5, len(self.rows) - 0.5],
        }
        return x, y

    def _angle(self, longest: int) -> int:
        """How the columns' names are turned so that none touches another."""
        if self.written or len(self.columns) <= FITS:
            return 0 if longest <= letters(len(self.columns)) else -45
        room = PAGE // len(self.columns)
        return 0 if 8 * longest <= room else -90 if len(self.columns) > DENSE else -45

    def figure(self) -> Any:
        """The plotly figure; plotly has no types to speak of."""
        x, y = self.axes()
        fig = figures().Figure(self.trace())
        fig.update_layout(
            look(self.title, len(self.rows), len(self.columns), written=self.written)
            | {"xaxis": x, "yaxis": y}
        )
        return fig


def look(title: str, rows: int, columns: int, *, written: bool = True) -> dict[str, Any]:
    """The layout that all figures share, for this many cells, with words in them or without."""
    return {
        "title": {"text": title, "x": 0, "xref": "paper", "font": {"size": 15}},
        "font": {"family": FONT, "size": 13, "color": "#1f2328"},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "height": height_of(rows, written=written),
        "width": _width(columns, written=written),
        "margin": {"l": 60, "r": 30, "t": 60, "b": 70},
        "hoverlabel": {"font": {"family": MONO}, "align": "left"},
        "dragmode": False,
        "showlegend": False,
    }


def height_of(rows: int, *, written: bool) -> int:
    """How high a figure of so many rows is."""
    thin = rows > (TALL if written else LOW)
    return max(260, 140 + (CELL_HEIGHT // 2 if thin else CELL_HEIGHT) * rows)


def _width(columns: int, *, written: bool) -> int | None:
    """How wide a figure is, if it does not take the width there is."""
    if columns <= (FITS if written else SHARED):
        return None
    return 180 + columns * (WORD_WIDTH if written else BARE_WIDTH)


def letters(columns: int) -> int:
    """How many letters of a word a cell has room for."""
    room = PAGE // max(1, columns) if columns <= FITS else WORD_WIDTH
    return max(3, min(14, room // 7))
