# SPDX-License-Identifier: MIT OR Apache-2.0
"""What neurons say about the inputs so far: their correlation with signals of known meaning.

Measured on inputs of N(0, 1), at every step. A neuron has a role if its largest correlation is 0.8
or more in size. `certain` says whether that holds with 95 % confidence for all neurons, signals
and steps together (Bonferroni, on Fisher's z).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Any, Self, cast

import torch
from jaxtyping import Float
from torch import Tensor

from torch_mi.analysis.stoicheia.kernel import Kernel, sample
from torch_mi.analysis.stoicheia.networks import StoicheiaRnn
from torch_mi.analysis.stoicheia.statistics import LEVEL, deviations
from torch_mi.errors import ModelError
from torch_mi.results import Result, data_frame, floats

FORM = "torch-mi stoicheia roles 1"
THRESHOLD = 0.8
UNKNOWN = "Unknown"
PLAIN = 5
"""The signals that are not comparators."""
SPENT = 1e-12
"""A variance that the other signals account for, up to rounding."""
FEWEST = 30
"""Samples below which Fisher's z is not to be relied on."""


@dataclass(frozen=True)
class Role:
    """What one neuron says at one step."""

    neuron: int
    step: int
    role: str
    """The best signal's name, or Unknown where its correlation is below 0.8 in size."""
    signal: str
    """The signal with the largest correlation."""
    correlation: float
    bound: float
    """What the correlation's size exceeds with 95 % confidence, all comparisons together."""
    partial: float
    """The correlation that is left when other signals are held fixed (see `probe_roles`)."""
    runner_up: str
    runner_up_correlation: float

    @property
    def certain(self) -> bool:
        """Whether the role would survive chance, however many comparisons were made."""
        return self.role != UNKNOWN and self.bound >= THRESHOLD


@dataclass(frozen=True, eq=False, repr=False)
class Roles(Result):
    """Each neuron's best signal, at each step."""

    form = FORM

    task: str
    seq_len: int
    hidden_size: int
    samples: int
    seed: int | None
    comparisons: int
    roles: tuple[Role, ...]
    """Step by step, neuron by neuron."""

    @property
    def final(self) -> tuple[Role, ...]:
        """What each neuron says after the last input."""
        return self.roles[-self.hidden_size :]

    def at(self, step: int) -> tuple[Role, ...]:
        """What each neuron says after one input."""
        if not -self.seq_len <= step < self.seq_len:
            raise ModelError(f"step={step} is out of range: 0 … {self.seq_len - 1}")
        first = step % self.seq_len * self.hidden_size
        return self.roles[first : first + self.hidden_size]

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each neuron and step (needs pandas)."""
        rows: list[dict[str, object]] = [
            {**asdict(role), "certain": role.certain} for role in self.roles
        ]
        return data_frame(rows)

    def to_dict(self) -> dict[str, object]:
        return {
            "format": FORM,
            "task": self.task,
            "seq_len": self.seq_len,
            "hidden_size": self.hidden_size,
            "samples": self.samples,
            "seed": self.seed,
            "comparisons": self.comparisons,
            "roles": [asdict(role) for role in self.roles],
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        plain = {key: value for key, value in data.items() if key not in ("format", "time_secs")}
        told: dict[str, Any] = {"roles": tuple(Role(**row) for row in data["roles"])}
        return cls(**plain | told)


def probe_roles(rnn: StoicheiaRnn, samples: int | Tensor = 20_000, *, seed: int = 0) -> Roles:
    """Correlate each neuron, after each input, with signals of the inputs so far.

    The signals, in this order (an earlier one wins a draw): RunningMax max(0, x…), RunningMin
    min(0, x…), MaxIncrement (by how much the last input raised RunningMax), LeaveOneOutMax
    relu(RunningMax − last), RecentInput relu(last), and Comparator(a,b) relu(x_a − x_b) for every
    two inputs. The partial correlation holds the first five fixed, but for the best itself.
    """
    drawn, kernel = sample(rnn, samples, seed), Kernel(rnn)
    if drawn.count < FEWEST:
        raise ModelError(
            f"{drawn.count} samples are too few for correlations; give {FEWEST} or more"
        )
    x = kernel.columns(drawn.inputs)
    states = kernel.states(x).clamp(min=0)
    named = [signals(x[: t + 1]) for t in range(rnn.seq_len)]
    comparisons = rnn.hidden_size * sum(map(len, named))
    found: list[Role] = []
    for t, step in enumerate(named):
        found += _judge(states[t], step, t, comparisons)
    about = (rnn.task.name, rnn.seq_len, rnn.hidden_size, drawn.count, drawn.seed)
    return Roles(*about, comparisons, tuple(found))


def signals(x: Float[Tensor, "step batch"]) -> dict[str, Float[Tensor, " batch"]]:
    """What may be said of the inputs up to the last one given."""
    last, top = x[-1], x.amax(0).clamp(min=0)
    before = x[:-1].amax(0).clamp(min=0) if len(x) > 1 else torch.zeros_like(last)
    found = {
        "RunningMax": top,
        "RunningMin": x.amin(0).clamp(max=0),
        "MaxIncrement": (top - before).clamp(min=0),
        "LeaveOneOutMax": (top - last).clamp(min=0),
        "RecentInput": last.clamp(min=0),
    }
    pairs = permutations(range(len(x)), 2)
    return found | {f"Comparator({a},{b})": (x[a] - x[b]).clamp(min=0) for a, b in pairs}


def _unit(rows: Tensor) -> Tensor:
    """Rows about their means, of length one; rows that do not vary become zero."""
    centred = rows - rows.mean(1, keepdim=True)
    length = centred.square().sum(1, keepdim=True).sqrt()
    tiny = 1e-9 * rows.abs().amax(1, keepdim=True) * rows.shape[1] ** 0.5
    return torch.where(length > tiny, centred / length.clamp(min=1e-300), 0)


def _judge(state: Tensor, named: Mapping[str, Tensor], step: int, comparisons: int) -> list[Role]:
    """Every neuron's best signal at one step."""
    names = list(named)
    signal, neuron = _unit(torch.stack(list(named.values()))), _unit(state)
    table, among = (neuron @ signal.T).clamp(-1, 1), signal @ signal[:PLAIN].T
    found: list[Role] = []
    for j, row in enumerate(table):
        sizes = [round(size, 12) for size in floats(row.abs())]
        best, second = sorted(range(len(names)), key=lambda i: -sizes[i])[:2]
        found.append(
            Role(
                j,
                step,
                names[best] if sizes[best] >= THRESHOLD else UNKNOWN,
                names[best],
                float(row[best]),
                min(abs(float(row[best])), _bound(sizes[best], state.shape[1], comparisons)),
                _partial(row, among, best),
                names[second],
                float(row[second]),
            )
        )
    return found


def _bound(size: float, samples: int, comparisons: int) -> float:
    """What a correlation of this size exceeds, with confidence over all comparisons."""
    z = deviations(1 - (1 - LEVEL) / comparisons)
    low = math.atanh(min(size, 1 - 1e-15)) - z / math.sqrt(samples - 3)
    return max(0.0, math.tanh(low))


def _partial(
    row: Float[Tensor, " signal"], among: Float[Tensor, "signal plain"], best: int
) -> float:
    """The correlation of a neuron and a signal, the plain signals' part taken off both.

    `row` are the neuron's correlations with all signals, `among` those of signals with plain ones.
    """
    others = [i for i in range(PLAIN) if i != best and float(among[i, i]) > 0]
    inverse = torch.linalg.pinv(among[others][:, others])  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - torch's stub
    within = cast("Tensor", inverse)
    ours, theirs = row[others], among[best, others]
    left = float(row[best] - ours @ within @ theirs)
    rest = (1 - float(ours @ within @ ours)) * (1 - float(theirs @ within @ theirs))
    return 0.0 if rest < SPENT else max(-1.0, min(1.0, left / rest**0.5))
