# SPDX-License-Identifier: MIT OR Apache-2.0
"""How analyses of AlgZoo's networks look in a terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch_mi.analysis.stoicheia.ablation import Cell, NeuronAblation
from torch_mi.analysis.stoicheia.answers import Anatomy, Answers
from torch_mi.analysis.stoicheia.exact import ExactRegions
from torch_mi.analysis.stoicheia.regions import Regions
from torch_mi.analysis.stoicheia.report import Report
from torch_mi.analysis.stoicheia.roles import UNKNOWN, Roles
from torch_mi.analysis.stoicheia.standardise import StandardForm
from torch_mi.analysis.stoicheia.statistics import Estimate
from torch_mi.analysis.stoicheia.surprise import Surprise
from torch_mi.analysis.stoicheia.tables import EveryInput, LookupTables
from torch_mi.analysis.stoicheia.training import Training
from torch_mi.results import floats
from torch_mi.show.tables import WIDTH, plain, table, titled

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

SHOWN = 12
"""Rows that a table shows."""


def interval(found: Estimate, *, signed: bool = False) -> str:
    """An estimate and its interval, in a cell."""
    sign = "+" if signed else ""
    low, high = f"{found.low:{sign}.4f}", f"{found.high:{sign}.4f}"
    return f"{found.value:{sign}.4f} [dim]{low} … {high}[/]"


def spelt(called: str, found: Estimate) -> str:
    """An estimate and its interval, in a sentence."""
    return f"{called} {found.value:.5g} ({found.low:.5g} … {found.high:.5g})"


def bits(pattern: str, steps: int) -> str:
    """A pattern, step by step."""
    width = len(pattern) // steps
    return " ".join(pattern[i : i + width] for i in range(0, len(pattern), width))


def rest(total: int, shown: int, what: str) -> str:
    """How many rows are not shown."""
    return f"and {total - shown:,} more {what}" if total > shown else ""


@table.register(StandardForm)
def _standard(result: StandardForm, width: int = WIDTH) -> "RenderableType":
    out = plain()
    for name in ("neuron", "sign", "scale", "itself", "read by outputs"):
        out.add_column(name, justify="left" if name == "read by outputs" else "right")
    own, room = floats(result.rnn.w_hh.diagonal()), max(1, (width - 40) // 8)
    zero = result.zeros()["output"]
    for i, (old, sign, scale) in enumerate(
        zip(result.order, result.signs, floats(result.scales), strict=True)
    ):
        column = floats(result.rnn.w_oh[:, i])
        read = ["·" if zero[o][i] else f"{value:.1f}" for o, value in enumerate(column)]
        more = [] if len(read) <= room else ["…"]
        said = " ".join(f"{word:>7}" for word in [*read[:room], *more])
        out.add_row(str(old), "+" if sign > 0 else "−", f"{scale:.4g}", f"{own[i]:+.3f}", said)
    none = sum(entry for rows in result.zeros().values() for row in rows for entry in row)
    note = f"input weights are ±1 within {result.deviation:.1g}; {none} entries are as good as zero"
    return titled("standard form", out, note)


@table.register(Regions)
def _regions(result: Regions, width: int = WIDTH) -> "RenderableType":
    out = plain()
    called = "error²" if result.rnn.task.scalar else "accuracy"
    out.add_column("active neurons, step by step", overflow="ellipsis", no_wrap=True)
    for name in ("share", called):
        out.add_column(name, justify="right", no_wrap=True)
    room = max(20, width - 60)
    for region in result.regions[:SHOWN]:
        said = bits(region.bits, result.rnn.seq_len)
        said = said if len(said) <= room else said[: room - 1] + "…"
        out.add_row(said, interval(region.share), interval(region.score))
    title = f"{result.distinct:,} regions in {result.samples:,} samples"
    return titled(title, out, rest(result.distinct, min(SHOWN, len(result.regions)), "regions"))


@table.register(ExactRegions)
def _exact(result: ExactRegions, width: int = WIDTH) -> "RenderableType":  # noqa: ARG001
    out = plain()
    out.add_column("active neurons")
    for name in ("share", "wrong"):
        out.add_column(name, justify="right")
    if len(result.regions[0].map[0]) <= 3:  # noqa: PLR2004 - what fits
        out.add_column("first output")
    for region in result.regions[:SHOWN]:
        said = bits(region.bits, result.rnn.seq_len)
        first = " ".join(f"{value:+.2f}·x{t}" for t, value in enumerate(region.map[0]))
        out.add_row(said, f"{100 * region.share:.4f} %", f"{100 * region.error:.5f} %", first)
    title = f"all {len(result.regions):,} regions · exact accuracy {result.accuracy:.8f}"
    return titled(title, out, rest(len(result.regions), SHOWN, "regions"))


@table.register(NeuronAblation)
def _ablation(result: NeuronAblation, width: int = WIDTH) -> "RenderableType":  # noqa: ARG001
    from rich.console import Group  # noqa: PLC0415

    called = "mean squared error" if result.is_error else "accuracy"
    head = f"without neurons ({result.method}) · whole: {spelt(called, result.base)}"
    parts = [titled(head, _cells(result.ranked()[:SHOWN], called))]
    if result.pairs:
        most = sorted(result.pairs, key=_size)[: SHOWN // 2]
        parts.append(titled("pairs whose interaction is largest", _cells(most, called)))
    if result.steps:
        worst = result.ranked(result.steps)[: SHOWN // 2]
        parts.append(titled("at one step only, the most damaging", _cells(worst, called)))
    return Group(*parts)


def _size(cell: Cell) -> float:
    return 0.0 if cell.interaction is None else -abs(cell.interaction.value)


def _cells(cells: Sequence[Cell], called: str) -> "Table":
    out = plain()
    stepped = any(cell.step is not None for cell in cells)
    paired = any(cell.interaction is not None for cell in cells)
    out.add_column("neurons" if paired else "neuron", justify="right")
    if stepped:
        out.add_column("step", justify="right")
    out.add_column(called if len(called) < SHOWN else "error²", justify="right")
    out.add_column("change", justify="right", no_wrap=True)
    if paired:
        out.add_column("interaction", justify="right", no_wrap=True)
    for cell in cells:
        row = [" ".join(map(str, cell.neurons))] + ([str(cell.step)] if stepped else [])
        row += [f"{cell.score.value:.4f}", interval(cell.delta, signed=True)]
        if cell.interaction is not None:
            row.append(interval(cell.interaction, signed=True))
        out.add_row(*row)
    return out


@table.register(Roles)
def _roles(result: Roles, width: int = WIDTH) -> "RenderableType":  # noqa: ARG001
    out = plain()
    out.add_column("neuron", justify="right")
    out.add_column("role")
    for name in ("r", "surely above", "partial"):
        out.add_column(name, justify="right")
    out.add_column("next best")
    for role in result.final:
        named = role.role if role.certain else f"[dim]{role.role}[/]"
        best = role.role if role.role != UNKNOWN else f"[dim]{role.signal}?[/]"
        out.add_row(
            str(role.neuron),
            named if role.role != UNKNOWN else best,
            f"{role.correlation:+.3f}",
            f"{role.bound:.3f}",
            f"{role.partial:+.3f}",
            f"{role.runner_up} {role.runner_up_correlation:+.3f}",
        )
    title = f"what neurons say after the last input · {result.samples:,} samples"
    note = f"bounds hold together for {result.comparisons:,} comparisons; ? is below 0.8"
    return titled(title, out, note)


@table.register(Surprise)
def _surprise(result: Surprise, width: int = WIDTH) -> "RenderableType":  # noqa: ARG001
    out = plain()
    out.add_column("explanation", no_wrap=True)
    for name in ("agrees", "described", "left", "in all", "valid", "beats"):
        out.add_column(name, justify="right")
    for account in result.accounts:
        out.add_row(
            account.name,
            f"{100 * account.agreement.value:.2f} %",
            f"{account.description_bits:,.1f}",
            f"{account.residual_bits:,.1f}",
            f"{account.total_bits:,.1f}",
            "[cyan]yes[/]" if result.valid(account) else "no",
            "[cyan]yes[/]" if result.beats_sampling(account) else "no",
        )
    title = (
        f"surprise, in bits, over {result.samples:,} answers · without explanation "
        f"{result.baseline_bits:,.0f}"
    )
    note = (
        f"valid: no more bits than the weights, {result.weight_bits:,.0f} "
        f"({result.parameters:,} of {result.bits_per_weight} bits)\n beats: tells the accuracy "
        "better than as many forward passes"
    )
    return titled(title, out, note)


@table.register(LookupTables)
def _lookup(result: LookupTables, width: int = WIDTH) -> "RenderableType":
    out = plain()
    shown = max(1, (width - 8) // 9)
    keys = list(range(len(result.names)))[:shown]
    out.add_column("from \\ to", justify="right")
    for key in keys:
        out.add_column(result.names[key], justify="right")
    first = (result.n - 1) * result.n
    for query in range(first, len(result.names)):
        out.add_row(result.names[query], *(f"{float(result.scores[query, k]):+.2f}" for k in keys))
    title = f"scores of layer {result.layer}, from the last place"
    return titled(title, out, rest(len(result.names), len(keys), "columns"))


@table.register(EveryInput)
def _every(result: EveryInput, width: int = WIDTH) -> "RenderableType":  # noqa: ARG001
    out = plain()
    out.add_column("changed")
    out.add_column("right", justify="right")
    out.add_row("nothing", f"{result.right:,}")
    for name, right in result.edits.items():
        out.add_row(name, f"{right:,}")
    title = f"{result.task} · all {result.inputs:,} inputs · {result.right:,} answered right"
    return titled(title, out)


@table.register(Answers)
def _answers(result: Answers, width: int = WIDTH) -> "RenderableType":
    out, whole = plain(), result.task != "median"
    out.add_column("inputs", overflow="ellipsis", no_wrap=True)
    for name in ("answer", "truth"):
        out.add_column(name, justify="right")
    room = max(1, (width - 24) // 7)
    for x, answer, truth in zip(result.inputs, result.answers, result.truth, strict=True):
        read = [f"{value:+.2f}" if value % 1 else f"{value:.0f}" for value in x[:room]]
        said = " ".join(f"{word:>6}" for word in read) + (" …" if len(x) > room else "")
        right = whole and answer == truth
        shown = [f"{value:.0f}" if whole else f"{value:+.3f}" for value in (answer, truth)]
        out.add_row(said, shown[0] if right or not whole else f"[red]{shown[0]}[/]", shown[1])
    called = "accuracy" if whole else "mean squared error"
    return titled(_about(result), out, f"{spelt(called, result.score)} on {result.samples:,}")


@table.register(Training)
def _training(result: Training, width: int = WIDTH) -> "RenderableType":  # noqa: ARG001
    out = plain()
    out.add_column("after step", justify="right")
    out.add_column("loss", justify="right")
    count = len(result.losses)
    for i in sorted({0, *(count * k // 5 - 1 for k in range(1, 6) if count * k >= 5)}):  # noqa: PLR2004
        out.add_row(f"{i + 1:,}", f"{result.losses[i]:.4g}")
    called = "mean squared error" if result.network.task.scalar else "accuracy"
    title = f"{result.network!r}"[1:-1].replace("[", "\\[")
    note = f"{spelt(called, result.score)} after {result.sequences:,} sequences"
    return titled(title, out, note)


def _about(result: "Report | Anatomy | Answers") -> str:
    return (
        f"{result.task} · hidden size {result.hidden_size}, {result.seq_len} inputs, "
        f"{result.parameters:,} parameters"
    )


@table.register(Anatomy)
def _anatomy(result: Anatomy, width: int = WIDTH) -> "RenderableType":
    from rich.console import Group  # noqa: PLC0415

    return Group(f"{_about(result)}\n", *(table(part, width) for part in result.parts()))


@table.register(Report)
def _report(result: Report, width: int = WIDTH) -> "RenderableType":
    from rich.console import Group  # noqa: PLC0415

    called = "mean squared error" if result.ablation.is_error else "accuracy"
    head = f"{_about(result)}\n{spelt(called, result.score)}\n"
    return Group(head, *(table(part, width) for part in result.parts()))
