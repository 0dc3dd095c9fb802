# SPDX-License-Identifier: MIT OR Apache-2.0
"""Timing of several ways to do one thing, in turns, so that a busy machine is busy for all.

What is compared is the ratio within a turn; a median of such ratios outlives a noisy neighbour
that would spoil any absolute time.
"""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from torch_mi.errors import MIError

Work = Callable[[], object]


class BenchmarkError(MIError):
    """A benchmark that cannot be run, or whose sides disagree."""


@dataclass(frozen=True)
class Effort:
    """How long to measure: at least `least` turns, then on until `seconds` or `most` turns."""

    least: int = 5
    most: int = 40
    seconds: float = 6.0
    warm_up: int = 1


def nothing() -> None:
    """A processor is done when it returns: there is nothing to wait for."""


SMOKE = Effort(least=2, most=2, seconds=0.0, warm_up=1)
"""Enough to see that a benchmark runs."""


@dataclass(frozen=True)
class Times:
    """Seconds of each turn, by the clock and by the processor."""

    wall: list[float] = field(default_factory=list[float])
    cpu: list[float] = field(default_factory=list[float])


@dataclass(frozen=True)
class Ratio:
    """A median of ratios with its extremes."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(above: Sequence[float], below: Sequence[float]) -> "Ratio":
        """The ratios of paired measurements, as far as both go."""
        ratios = [a / b for a, b in zip(above, below, strict=False)]
        return Ratio(median(ratios), min(ratios), max(ratios))


@dataclass(frozen=True)
class Row:
    """One line of the result: ours, theirs, and the ratio that a bound may apply to."""

    case: str
    setting: str
    ours: str
    peer: str
    unit: str
    value: float
    peer_value: float
    ratio: Ratio
    cpu_ratio: Ratio | None = None
    """The same of processor time, which hardly notices other programs."""
    bound: float | None = None

    @property
    def verdict(self) -> str:
        """Whether the median is within the bound; empty without one."""
        if self.bound is None:
            return ""
        return "within" if self.ratio.median <= self.bound else "above"

    def to_dict(self) -> dict[str, object]:
        """This, as JSON values."""
        return {
            "case": self.case,
            "setting": self.setting,
            "ours": self.ours,
            "peer": self.peer,
            "unit": self.unit,
            "value": self.value,
            "peer_value": self.peer_value,
            "ratio": vars(self.ratio),
            "cpu_ratio": None if self.cpu_ratio is None else vars(self.cpu_ratio),
            "bound": self.bound,
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class Pair:
    """Two entries of a race to be compared, and the bound on their ratio."""

    ours: str
    peer: str
    bound: float | None = None


def race(works: Mapping[str, Work], effort: Effort, settle: Work = nothing) -> dict[str, Times]:
    """Times of every work, one of each per turn, each turn starting with the next of them.

    `settle` is called before the clock starts and before it stops: a GPU is waited for there.
    """
    names = list(works)
    for name in names * effort.warm_up:
        works[name]()
    times = {name: Times() for name in names}
    began = time.perf_counter()
    for turn in range(effort.most):
        if turn >= effort.least and time.perf_counter() - began > effort.seconds:
            break
        gc.collect()
        gc.disable()
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            wall, cpu = _timed(works[name], settle)
            times[name].wall.append(wall)
            times[name].cpu.append(cpu)
        gc.enable()
    return times


def _timed(work: Work, settle: Work) -> tuple[float, float]:
    settle()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    settle()
    return time.perf_counter() - wall, time.process_time() - cpu


def rows(case: str, setting: str, times: Mapping[str, Times], pairs: Sequence[Pair]) -> list[Row]:
    """The compared pairs of a race, in milliseconds."""
    return [
        Row(
            case,
            setting,
            pair.ours,
            pair.peer,
            "ms",
            1e3 * median(times[pair.ours].wall),
            1e3 * median(times[pair.peer].wall),
            Ratio.of(times[pair.ours].wall, times[pair.peer].wall),
            Ratio.of(times[pair.ours].cpu, times[pair.peer].cpu),
            pair.bound,
        )
        for pair in pairs
        if pair.ours in times and pair.peer in times
    ]
