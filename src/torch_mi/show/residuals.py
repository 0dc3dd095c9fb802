# SPDX-License-Identifier: MIT OR Apache-2.0
"""How residual streams taken apart look."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from torch_mi.analysis.decomposition import LogitAttributions, Residuals, Words
from torch_mi.results import floats
from torch_mi.show.heat import Heat
from torch_mi.show.labels import label, markup, tick_labels
from torch_mi.show.plots import plot
from torch_mi.show.tables import WIDTH, plain, table, titled

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from rich.console import RenderableType

SHOWN = 12
"""Terms that a table shows."""
TERMS = 40
"""Terms that a picture of one position shows, those that weigh most."""


@plot.register(Residuals)
def _residuals(result: Residuals) -> "Figure":
    """Terms upwards, positions across: how long each vector is."""
    title = "How long each vector of the residual stream is"
    return _heat([term.name for term in result.terms], result.words, result.norms, title)


@plot.register(LogitAttributions)
def _attrs(result: LogitAttributions) -> "Figure":
    """Attention layers and MLPs at every position, or the weightiest terms at one."""
    title = f"What each part adds to {_what(result, html=True)}"
    if len(result.words.positions) > 1:
        names, values = result.by_layer()
        return _heat(names, result.words, values, title, unit="logit")
    best = result.best(TERMS)
    order = [result.terms.index(term) for term, _ in best][::-1]
    names = [result.terms[i].name for i in order]
    return _heat(names, result.words, result.values[order], title, unit="logit")


def _heat(
    names: list[str], words: Words, values: Tensor, title: str, unit: str = "length"
) -> "Figure":
    signed = unit == "logit"
    rows = [floats(row) for row in values]
    reach = max((abs(value) for row in rows for value in row), default=1.0) or 1.0
    return Heat(
        values=rows,
        rows=names,
        columns=tick_labels(words.tokens, words.special),
        words=[[f"{round(v, 2) + 0.0:+.2f}" if signed else _size(v) for v in row] for row in rows],
        hover=[
            [f"{name} at {markup(token)}: {v:.4g}" for token, v in _pairs(words, row)]
            for name, row in zip(names, rows, strict=True)
        ],
        colours="diverging" if signed else "sequential",
        low=-reach if signed else 0.0,
        high=reach,
        unit=unit,
        row_title="",
        column_title="at this token",
        title=title,
        percent=False,
    ).figure()


def _size(value: float) -> str:
    """A length in few letters, without powers of ten."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"  # noqa: PLR2004


def _pairs(words: Words, row: Sequence[float]) -> list[tuple[str, float]]:
    return list(zip(words.tokens, row, strict=True))


def _what(result: LogitAttributions, *, html: bool = False) -> str:
    said = markup if html else label
    versus = "" if result.versus is None else f" over {said(result.versus)}"
    return f"the logit of {said(result.target)}{versus}"


@table.register(Residuals)
def _residuals_table(result: Residuals, width: int = WIDTH) -> "RenderableType":  # noqa: ARG001
    """The longest vectors at the last position."""
    out = plain()
    out.add_column("term")
    out.add_column("length", justify="right")
    norms = result.norms[:, -1]
    order = norms.argsort(descending=True, stable=True)[:SHOWN]
    for i in order:
        out.add_row(result.terms[int(i)].name, f"{float(norms[int(i)]):.4g}")
    where = label(result.words.tokens[-1])
    title = f"{len(result.terms):,} vectors of the residual stream · {result.model_id} · at {where}"
    return titled(title, out, "longest first")


@table.register(LogitAttributions)
def _attrs_table(result: LogitAttributions, width: int = WIDTH) -> "RenderableType":  # noqa: ARG001
    """The terms that weigh most at the last position."""
    out = plain()
    out.add_column("part")
    out.add_column("share", justify="right")
    best = result.best(SHOWN)
    for term, value in best:
        out.add_row(term.name, f"{value:+.3f}")
    total = float(result.logits[-1])
    out.add_row("all others", f"{total - sum(value for _, value in best):+.3f}")
    after = label(result.words.tokens[-1])
    return titled(f"shares of {_what(result)} after {after}: {total:.3f} in all", out)
