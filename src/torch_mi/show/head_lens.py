# SPDX-License-Identifier: MIT OR Apache-2.0
"""How what each head says looks."""

from typing import TYPE_CHECKING

from torch_mi.analysis.lens_heads import HeadLens
from torch_mi.show.heat import Heat, letters
from torch_mi.show.labels import label, markup
from torch_mi.show.plots import plot
from torch_mi.show.tables import WIDTH, plain, table, titled

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from rich.console import RenderableType

SHOWN = 12
"""Heads that a table shows."""


@plot.register(HeadLens)
def _head_lens(result: HeadLens) -> "Figure":
    """Layers upwards, heads across; the token that each raises most."""
    found = {(r.layer, r.head): r for r in result.readings}
    layers = sorted({layer for layer, _ in found})
    heads = sorted({head for _, head in found})
    grid = [[found[layer, head] for head in heads] for layer in layers]
    return Heat(
        values=[[r.raised[0].logit for r in row] for row in grid],
        words=[[markup(r.raised[0].token, letters(len(heads))) for r in row] for row in grid],
        rows=[str(layer) for layer in layers],
        columns=[str(head) for head in heads],
        hover=[
            [
                "<br>".join(
                    [f"<b>layer {r.layer}, head {r.head}</b>"]
                    + [f"{one.logit:+.3f}  {markup(one.token)}" for one in r.raised]
                )
                for r in row
            ]
            for row in grid
        ],
        high=max(r.raised[0].logit for r in result.readings),
        unit="logit above the mean",
        column_title="head",
        title=f"What each head says after {markup(result.words.tokens[0])}",
        percent=False,
        wordy=True,
    ).figure()


@table.register(HeadLens)
def _head_lens_table(result: HeadLens, width: int = WIDTH) -> "RenderableType":  # noqa: ARG001
    """The heads that raise a token most."""
    out = plain()
    for name in ("layer", "head"):
        out.add_column(name, justify="right")
    out.add_column("raises most")
    out.add_column("logit", justify="right")
    out.add_column("and then")
    for r in result.best(SHOWN):
        first, rest = r.raised[0], " ".join(label(one.token) for one in r.raised[1:4])
        out.add_row(str(r.layer), str(r.head), label(first.token), f"{first.logit:+.3f}", rest)
    after = label(result.words.tokens[0])
    return titled(f"what each head says after {after} · {result.model_id}", out)
