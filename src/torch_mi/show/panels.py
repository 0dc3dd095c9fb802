# SPDX-License-Identifier: MIT OR Apache-2.0
"""Heat maps one above the other, on one scale."""

from collections.abc import Sequence
from typing import Any

from torch_mi.show.heat import figures, look

TITLE, TURNED = 60, 150
"""Pixels between two panels: a title and tokens, and more where those are turned."""
TOP, BOTTOM = 96, 90


def stacked(parts: Sequence[Any], title: str, reach: tuple[float, float]) -> Any:
    """Figures of one heat map each, under a common title; `reach` is the ends of the scale."""
    first = parts[0].layout
    gap = TURNED if first.xaxis.tickangle else TITLE
    heights = [part.layout.height - 140 for part in parts]
    whole = sum(heights) + gap * (len(parts) - 1)
    fig: Any = figures().Figure()
    fig.update_layout(look(title, 1, 1))
    margin = {"l": 60, "r": 30, "t": TOP, "b": BOTTOM}
    fig.update_layout(height=whole + TOP + BOTTOM, width=first.width, margin=margin)
    top = whole
    for i, (part, height) in enumerate(zip(parts, heights, strict=True)):
        trace = part.data[0]
        trace.zmin, trace.zmax = reach
        trace.showscale = i == 0
        ends = ((top - height) / whole, top / whole)
        trace.colorbar.update(len=ends[1] - ends[0], y=sum(ends) / 2)
        _put(fig, part, i, ends)
        top -= height + gap
    return fig


def _put(fig: Any, part: Any, i: int, ends: tuple[float, float]) -> None:
    """One panel between two heights, under its own title."""
    number, trace = "" if i == 0 else str(i + 1), part.data[0]
    trace.xaxis, trace.yaxis = f"x{number}", f"y{number}"
    across, up = part.layout.xaxis.to_plotly_json(), part.layout.yaxis.to_plotly_json()
    if ends[0] > 0:
        across["title"] = None
    title = {"text": part.layout.title.text, "x": 0, "y": ends[1], "showarrow": False}
    corner = {"xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
    fig.add_trace(trace)
    fig.add_annotation(title | corner)
    fig.update_layout(
        {
            f"xaxis{number}": across | {"anchor": f"y{number}"},
            f"yaxis{number}": up | {"anchor": f"x{number}", "domain": [max(0.0, ends[0]), ends[1]]},
        }
    )
