# SPDX-License-Identifier: MIT OR Apache-2.0
"""How causal traces look."""

from dataclasses import replace
from typing import TYPE_CHECKING

from torch_mi.analysis.tracing import CausalTrace
from torch_mi.show.labels import one_line
from torch_mi.show.page import Section
from torch_mi.show.pages import Page
from torch_mi.show.plots import plot
from torch_mi.show.sweeps import markup_title
from torch_mi.show.tables import WIDTH, table
from torch_mi.sweeps.grid import Grid

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from rich.console import RenderableType

WHAT = {
    "resid": "the residual stream entering a layer",
    "attn": "attention's output",
    "mlp": "the MLPs' output",
}
LEAD = (
    "The subject of the sentence was spoilt with noise, so that the model no longer knows the "
    "answer. Then one place of the clean run was given back at a time. Where the answer returns, "
    "what makes it passes through."
)


@plot.register(CausalTrace)
def _trace(result: CausalTrace) -> "Figure":
    """The kinds one above the other, layers upwards, tokens across."""
    if len(result.kinds) == 1:
        return plot(_named(result, result.kinds[0]))
    parts = [plot(_named(result, kind)) for kind in result.kinds]
    count, gap = len(parts), 0.28 / len(parts)
    height = (1 - gap * (count - 1)) / count
    reach = float((result.grid.values - result.grid.baseline).abs().max()) or 1.0
    fig = parts[0]
    changes: dict[str, object] = {}
    titles: list[dict[str, object]] = []
    for i, (kind, part) in enumerate(zip(result.kinds, parts, strict=True)):
        top = 1 - i * (height + gap)
        number = "" if i == 0 else str(i + 1)
        trace = part.data[0]
        trace.update(
            xaxis=f"x{number}",
            yaxis=f"y{number}",
            zmin=result.grid.baseline - reach,
            zmax=result.grid.baseline + reach,
            showscale=i == 0,
        )
        if i:
            fig.add_trace(trace)
        across, up = part.layout.xaxis.to_plotly_json(), part.layout.yaxis.to_plotly_json()
        across["title"] = across["title"] if i == count - 1 else None
        changes[f"xaxis{number}"] = across | {"anchor": f"y{number}", "domain": [0, 1]}
        changes[f"yaxis{number}"] = up | {"anchor": f"x{number}", "domain": [max(0.0, top - height), top]}
        titles.append(
            {
                "text": _title(result, kind),
                "x": 0,
                "xref": "paper",
                "xanchor": "left",
                "y": top,
                "yref": "paper",
                "yanchor": "bottom",
                "showarrow": False,
                "font": {"size": 13},
            }
        )
    changes["height"] = int(sum(part.layout.height for part in parts) * 0.9)
    said = markup_title(f"Given back after the subject was spoilt: {result.grid.metric}")
    fig.update_layout(annotations=titles, title={"text": said, "y": 0.99, "yanchor": "top"})
    fig.update_layout(**changes)
    return fig


def _title(result: CausalTrace, kind: str) -> str:
    layers = f", {result.window} layers" if kind != "resid" and result.window > 1 else ""
    return WHAT[kind] + layers


def _named(result: CausalTrace, kind: str) -> Grid:
    """One kind's grid, with stars at the spoilt tokens."""
    grid = result.restored(kind)
    words = [f"{w}*" if i in result.subject else w for i, w in enumerate(grid.labels["pos"])]
    return replace(grid, title=_title(result, kind), labels={"pos": tuple(words)})


@table.register(CausalTrace)
def _trace_table(result: CausalTrace, width: int = WIDTH) -> "RenderableType":
    from rich.console import Group  # noqa: PLC0415

    return Group(*(table(_named(result, kind), width) for kind in result.kinds))


def trace_page(result: CausalTrace) -> Page:
    """A causal trace."""
    grid = result.grid
    words = (
        f"On {one_line(str(grid.options['prompt']))}; spoilt tokens bear a star. The clean run "
        f"scores {grid.reference:.4g}, the spoilt one {grid.baseline:.4g} (the mean of "
        f"{result.samples} draws of noise)."
    )
    sections = [Section("Layer by layer, token by token", words, plot(result))]
    return "Causal tracing", LEAD, sections
