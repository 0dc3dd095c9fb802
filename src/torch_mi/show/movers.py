# SPDX-License-Identifier: MIT OR Apache-2.0
"""How heads that say a word at the end look."""

from typing import TYPE_CHECKING

from torch_mi.analysis.movers import Movers
from torch_mi.results import floats
from torch_mi.show.heat import Heat
from torch_mi.show.labels import label, one_line
from torch_mi.show.plots import plot
from torch_mi.show.tables import WIDTH, plain, table, titled

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from rich.console import RenderableType

SHOWN = 8


@plot.register(Movers)
def _movers(result: Movers) -> "Figure":
    """Layers upwards, heads across: the mean share."""
    rows = [floats(row) for row in result.mean]
    reach = max(abs(value) for row in rows for value in row) or 1.0
    return Heat(
        values=rows,
        rows=[str(i) for i in range(len(rows))],
        columns=[str(i) for i in range(len(rows[0]))],
        words=[[f"{value:+.2f}" for value in row] for row in rows],
        hover=[
            [f"layer {i}, head {j}: {_said(result, i, j)}" for j in range(len(row))]
            for i, row in enumerate(rows)
        ],
        colours="diverging",
        low=-reach,
        high=reach,
        unit="logit",
        column_title="head",
        title=f"What each head adds to the right word's lead, {_over(result)}",
        percent=False,
    ).figure()


def _over(result: Movers) -> str:
    count = len(result.prompts)
    return f"mean of {count:,} prompts" if count > 1 else "in one prompt"


def _said(result: Movers, layer: int, head: int) -> str:
    """A head's mean share, its error, and where it looks."""
    at = (layer, head)
    error = f" ± {float(result.standard_errors[at]):.3f}" if len(result.prompts) > 1 else ""
    looks = {"it": result.to_target, "the other word": result.to_versus}
    words = ", ".join(f"looks at {name} {float(x.mean(0)[at]):.0%}" for name, x in looks.items())
    return f"{float(result.mean[at]):+.3f}{error}<br>{words}"


@table.register(Movers)
def _movers_table(result: Movers, width: int = WIDTH) -> "RenderableType":
    out = plain()
    for name in ("layer", "head", "share", "± error", "looks at it", "at the other"):
        out.add_column(name, justify="right")
    several = len(result.prompts) > 1
    looks = [x.mean(0) for x in (result.to_target, result.to_versus)]
    for layer, head, share in result.best(SHOWN):
        error = f"{float(result.standard_errors[layer, head]):.2g}" if several else ""
        there = [f"{float(x[layer, head]):.0%}" for x in looks]
        out.add_row(str(layer), str(head), f"{share:+.3f}", error, *there)
    lead = f"a lead of {float(result.leads.mean()):.3f}, {_over(result)}"
    words = f"{label(result.targets[0])} over {label(result.versus[0])}"
    title = f"heads that say the word · {result.model_id} · {lead}"
    first = f"as {words} after {one_line(result.prompts[0], width - 42)}"
    note = "share: what the head adds to the right word's lead over the other, in logits"
    return titled(f"{title}\n{first}", out, note)
