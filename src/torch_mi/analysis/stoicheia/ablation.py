# SPDX-License-Identifier: MIT OR Apache-2.0
"""What neurons are for, by taking them away: singly, in pairs, or at one step.

Δ is the score without a neuron less the score with it, on the same inputs; the score is the
accuracy, or for scalar tasks the mean squared error. Of a pair, the interaction is
Δ_ab − (Δ_a + Δ_b): for accuracies, below zero means that each makes up for the other's loss; above
zero, that both serve one purpose, so that the second loss costs little more.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal, Self

import torch
from torch import Tensor

from torch_mi.analysis.stoicheia.kernel import Hold, Kernel, Sample, batches, sample, summed
from torch_mi.analysis.stoicheia.networks import StoicheiaRnn
from torch_mi.analysis.stoicheia.statistics import Estimate, mean, paired
from torch_mi.errors import ModelError
from torch_mi.results import Result, data_frame

FORM = "torch-mi stoicheia ablation 1"
Method = Literal["zero", "mean", "resample"]
METHODS = ("zero", "mean", "resample")


@dataclass(frozen=True)
class Cell:
    """One ablation: which neurons, at which step, and what it did."""

    neurons: tuple[int, ...]
    step: int | None
    """The one step at which they were taken away; `None` is every step."""
    score: Estimate
    delta: Estimate
    interaction: Estimate | None = None
    """Of a pair: how its delta differs from the sum of the two alone."""


@dataclass(frozen=True, eq=False, repr=False)
class NeuronAblation(Result):
    """What the score is without each neuron, each pair, each neuron at one step."""

    form = FORM

    task: str
    seq_len: int
    hidden_size: int
    method: str
    samples: int
    seed: int | None
    base: Estimate
    """The score of the whole network: an accuracy, or a mean squared error."""
    singles: tuple[Cell, ...]
    """One for each neuron, in order."""
    pairs: tuple[Cell, ...]
    """One for each pair, in order, if asked for."""
    steps: tuple[Cell, ...]
    """One for each neuron and step, step by step, if asked for."""

    @property
    def is_error(self) -> bool:
        """Whether scores are squared errors, so that more is worse."""
        return self.task == "median"

    def ranked(self, cells: tuple[Cell, ...] | None = None) -> tuple[Cell, ...]:
        """Ablations of single neurons, or the given ones, the most damaging first."""
        sign = -1 if self.is_error else 1
        return tuple(
            sorted(self.singles if cells is None else cells, key=lambda c: sign * c.delta.value)
        )

    def pair(self, a: int, b: int) -> Cell:
        """The ablation of two neurons together."""
        wanted = tuple(sorted((a, b)))
        for cell in self.pairs:
            if cell.neurons == wanted:
                return cell
        raise ModelError(
            f"neurons {a} and {b} were not ablated together: 0 … {self.hidden_size - 1}"
        )

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each ablation (needs pandas)."""
        rows: list[dict[str, object]] = [
            {
                "neurons": " ".join(map(str, cell.neurons)),
                "step": cell.step,
                "score": cell.score.value,
                "delta": cell.delta.value,
                "low": cell.delta.low,
                "high": cell.delta.high,
                "interaction": None if cell.interaction is None else cell.interaction.value,
            }
            for cell in (*self.singles, *self.pairs, *self.steps)
        ]
        return data_frame(rows)

    def to_dict(self) -> dict[str, object]:
        return {
            "format": FORM,
            "task": self.task,
            "seq_len": self.seq_len,
            "hidden_size": self.hidden_size,
            "method": self.method,
            "samples": self.samples,
            "seed": self.seed,
            "base": self.base.row,
            "singles": [_cell_dict(cell) for cell in self.singles],
            "pairs": [_cell_dict(cell) for cell in self.pairs],
            "steps": [_cell_dict(cell) for cell in self.steps],
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        plain = {key: value for key, value in data.items() if key not in ("format", "time_secs")}
        told: dict[str, Any] = {"base": Estimate.of(plain["base"])}
        for key in ("singles", "pairs", "steps"):
            told[key] = tuple(map(_cell_of, plain[key]))
        return cls(**plain | told)


def _cell_dict(cell: Cell) -> dict[str, object]:
    return {
        "neurons": list(cell.neurons),
        "step": cell.step,
        "score": cell.score.row,
        "delta": cell.delta.row,
        "interaction": None if cell.interaction is None else cell.interaction.row,
    }


def _cell_of(row: Mapping[str, Any]) -> Cell:
    both = row["interaction"]
    return Cell(
        tuple(row["neurons"]),
        row["step"],
        Estimate.of(row["score"]),
        Estimate.of(row["delta"]),
        None if both is None else Estimate.of(both),
    )


def ablate_neurons(  # noqa: PLR0913 - an ablation is made of choices
    rnn: StoicheiaRnn,
    samples: int | Tensor = 100_000,
    *,
    method: Method = "zero",
    pairs: bool = True,
    steps: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> NeuronAblation:
    """Take neurons away, after the relu, on inputs of N(0, 1) or on given ones.

    They are held at zero, at their mean at each step, or at what they are on another input
    ("resample"). In `dtype` float32, runs take half the time; answers by a hair may differ.
    """
    if method not in METHODS:
        raise ModelError(f"method={method!r} is none of {', '.join(METHODS)}")
    drawn = sample(rnn, samples, seed, dtype)
    if method == "resample" and drawn.count < 2:  # noqa: PLR2004 - there is no other
        raise ModelError("resampling takes a neuron's value from another input; give two or more")
    counts = _Counts.of(rnn, drawn, method, pairs=pairs, steps=steps)
    n, hidden = drawn.count, rnn.hidden_size
    delta = mean if rnn.task.scalar else _share_of

    def cell(tally: "_Tally") -> Cell:
        both = mean(tally.extra, tally.extras, n) if len(tally.neurons) > 1 else None
        score = summed(rnn, tally.score, tally.scores, n)
        return Cell(tally.neurons, tally.step, score, delta(tally.change, tally.changes, n), both)

    base = summed(rnn, counts.base.score, counts.base.scores, n)
    cells = [tuple(map(cell, each)) for each in (counts.singles, counts.pairs, counts.steps)]
    about = (rnn.task.name, rnn.seq_len, hidden, method, n, drawn.seed)
    return NeuronAblation(*about, base, *cells)


def _share_of(change: float, changes: float, count: int) -> Estimate:
    return paired(change, changes, count)


@dataclass
class _Tally:
    """Sums over samples of one ablation."""

    neurons: tuple[int, ...] = ()
    step: int | None = None
    score: float = 0.0
    scores: float = 0.0
    change: float = 0.0
    changes: float = 0.0
    extra: float = 0.0
    extras: float = 0.0

    def add(self, scores: Tensor, change: Tensor, extra: Tensor | None = None) -> None:
        self.score += float(scores.sum())
        self.scores += float(scores.square().sum())
        self.change += float(change.sum())
        self.changes += float(change.square().sum())
        if extra is not None:
            self.extra += float(extra.sum())
            self.extras += float(extra.square().sum())


@dataclass
class _Counts:
    """The tallies of all ablations of a network, filled a cacheful of samples at a time."""

    kernel: Kernel
    method: Method
    means: Tensor | None
    singles: list[_Tally]
    pairs: list[_Tally]
    steps: list[_Tally]
    base: _Tally = field(default_factory=_Tally)

    @classmethod
    def of(
        cls, rnn: StoicheiaRnn, drawn: Sample, method: Method, *, pairs: bool, steps: bool
    ) -> "_Counts":
        kernel, neurons = Kernel(rnn, drawn.inputs.dtype), range(rnn.hidden_size)
        means = _means(kernel, drawn) if method == "mean" else None
        both = [_Tally(pair) for pair in combinations(neurons, 2)] if pairs else []
        later = [_Tally((j,), t) for t in range(rnn.seq_len) for j in neurons] if steps else []
        counts = cls(kernel, method, means, [_Tally((j,)) for j in neurons], both, later)
        for x, truth in batches(kernel, drawn):
            counts.fill(x, truth)
        return counts

    def fill(self, x: Tensor, truth: Tensor) -> None:
        states = self.kernel.states(x).clamp(min=0)
        base = self.kernel.scores(states[-1], truth).double()
        self.base.add(base, torch.zeros_like(base))
        values = self.means if self.method == "mean" else None
        if self.method == "resample":
            values = states.roll(x.shape[1] // 2 or 1, 2)
        alone: list[Tensor] = []
        for tally in (*self.singles, *self.pairs, *self.steps):
            hold = Hold(tally.neurons, values, tally.step)
            scores = self.kernel.scores(self.kernel.final(x, hold, states), truth).double()
            change, extra = scores - base, None
            if len(tally.neurons) > 1:
                extra = change - sum(alone[j] for j in tally.neurons)
            elif tally.step is None:
                alone.append(change)
            tally.add(scores, change, extra)


def _means(kernel: Kernel, drawn: Sample) -> Tensor:
    """Each neuron's mean after the relu [n hidden 1], step by step."""
    total = torch.zeros(kernel.rnn.seq_len, kernel.hidden, dtype=kernel.dtype)
    for x, _ in batches(kernel, drawn):
        total += kernel.states(x).clamp(min=0).sum(2)
    return (total / drawn.count)[:, :, None]
