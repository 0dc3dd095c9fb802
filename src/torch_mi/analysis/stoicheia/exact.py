# SPDX-License-Identifier: MIT OR Apache-2.0
"""Every region of a small recurrent network, its exact share, and the exact share of its errors.

Space is cut by the plane of each neuron at each step, given what the steps before decided; then,
for the errors, by the planes on which an answer changes. Nothing is sampled.
"""

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Self, cast

import torch
from torch import Tensor

from torch_mi.analysis.stoicheia.cones import Cones, cut, orthants
from torch_mi.analysis.stoicheia.networks import StoicheiaRnn
from torch_mi.analysis.stoicheia.regions import region_maps
from torch_mi.analysis.stoicheia.standardise import network_dict, network_of
from torch_mi.errors import ModelError
from torch_mi.results import Result, data_frame, floats
from torch_mi.types import numbers

FORM = "torch-mi stoicheia exact regions 1"
PLANE = 2
"""Inputs whose regions can be drawn."""


@dataclass(frozen=True)
class ExactRegion:
    """One region: its pattern, its part of all inputs, and the part that is answered wrong."""

    bits: str
    share: float
    error: float
    """The part of all inputs that lies in this region and is answered wrong."""
    map: tuple[tuple[float, ...], ...]
    """The outputs [out n] for each input."""
    arcs: tuple[tuple[float, float], ...] = ()
    """Of two inputs: the angles in degrees between which the region lies."""
    wrong: tuple[tuple[float, float], ...] = ()
    """Of two inputs: the angles between which it is answered wrong."""


@dataclass(frozen=True, eq=False, repr=False)
class ExactRegions(Result):
    """Every region that has any share of the inputs, the largest first."""

    form = FORM

    rnn: StoicheiaRnn
    regions: tuple[ExactRegion, ...]

    @property
    def accuracy(self) -> float:
        """The exact accuracy on inputs of N(0, 1)."""
        return 1 - self.error

    @property
    def error(self) -> float:
        """The exact part of the inputs that is answered wrong."""
        return sum(region.error for region in self.regions)

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each region (needs pandas)."""
        return data_frame(
            [
                {"bits": region.bits, "share": region.share, "error": region.error}
                for region in self.regions
            ]
        )

    def to_dict(self) -> dict[str, object]:
        return {
            "format": FORM,
            **network_dict(self.rnn),
            "accuracy": self.accuracy,
            "regions": [
                {
                    "bits": region.bits,
                    "share": region.share,
                    "error": region.error,
                    "map": [list(row) for row in region.map],
                    "arcs": [list(arc) for arc in region.arcs],
                    "wrong": [list(arc) for arc in region.wrong],
                }
                for region in self.regions
            ],
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        regions = tuple(
            ExactRegion(
                row["bits"],
                row["share"],
                row["error"],
                tuple(tuple(line) for line in row["map"]),
                tuple((a, b) for a, b in row["arcs"]),
                tuple((a, b) for a, b in row["wrong"]),
            )
            for row in data["regions"]
        )
        return cls(network_of(data), regions)


def exact_regions(rnn: StoicheiaRnn) -> ExactRegions:
    """Every region of a network of two or three inputs, with exact shares and errors."""
    if rnn.task.scalar:
        raise ModelError(
            f"{rnn.task.name} has no right and wrong answers to count; activation_regions gives "
            "mean squared errors"
        )
    cones = linear_cones(rnn)
    patterns, group = distinct(cones.labels)
    maps = region_maps(rnn, patterns.bool())
    answered, source = _constant_answers(rnn, cones, maps[group])
    inside = answered.inside
    outputs = (maps[group[source]] @ inside[:, :, None])[:, :, 0]
    wrong = rnn.task.answers(outputs) != rnn.task.truth(inside)
    zero = torch.zeros(len(patterns), dtype=torch.float64)
    shares = zero.index_add(0, group, cones.shares())
    errors = zero.index_add(0, group[source][wrong], answered.pick(wrong).shares())
    flat = rnn.seq_len == PLANE
    found = [
        ExactRegion(
            "".join(map(str, numbers(patterns[i]))),
            float(shares[i]),
            float(errors[i]),
            tuple(tuple(floats(row)) for row in maps[i]),
            _arcs(cones.rays[group == i]) if flat else (),
            _arcs(answered.rays[wrong & (group[source] == i)]) if flat else (),
        )
        for i in range(len(patterns))
    ]
    return ExactRegions(rnn, tuple(sorted(found, key=lambda region: -region.share)))


def distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The different rows, and which of them each row is."""
    found = torch.unique(rows, dim=0, return_inverse=True)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - torch's stub
    return cast("tuple[Tensor, Tensor]", found)


def linear_cones(rnn: StoicheiaRnn) -> Cones:
    """All of space in cones on which no neuron crosses zero; labels are the pattern's bits."""
    n, hidden = rnn.seq_len, rnn.hidden_size
    w_hh, w_ih = rnn.w_hh.detach().double(), rnn.w_ih.detach().double()
    cones = orthants(n)
    states = torch.zeros(len(cones), hidden, n, dtype=torch.float64)
    for t in range(n):
        before = w_hh @ states
        before[:, :, t] += w_ih
        for j in range(hidden):
            cones, above, source = cut(cones, before[:, j])
            before = before[source]
            cones = cones.labelled(above)
        states = before * cones.labels[:, t * hidden :, None]
    return cones


def _constant_answers(rnn: StoicheiaRnn, cones: Cones, maps: Tensor) -> tuple[Cones, Tensor]:
    """The cones cut on, until neither the answer given nor the right one changes within any.

    Beside them, which of the first cones each is a piece of.
    """
    source = torch.arange(len(cones))
    bare = Cones(cones.rays, cones.labels[:, :0])
    for a, b in combinations(range(rnn.output_size), 2):
        bare, _, came = cut(bare, (maps[:, a] - maps[:, b])[source])
        source = source[came]
    for plane in _answer_planes(rnn):
        bare, _, came = cut(bare, plane[None])
        source = source[came]
    return bare, source


def _answer_planes(rnn: StoicheiaRnn) -> list[Tensor]:
    """Planes between which the right answer is one and the same.

    Two inputs change order where they are equal, and are equally far from the mean where they are
    equal or their sum is twice the mean.
    """
    n = rnn.seq_len
    unit, centre = torch.eye(n, dtype=torch.float64), torch.full((n,), 2 / n, dtype=torch.float64)
    pairs = list(combinations(range(n), 2))
    planes = [unit[a] - unit[b] for a, b in pairs]
    if rnn.task.name == "argoutlier":
        planes += [plane for a, b in pairs if bool((plane := unit[a] + unit[b] - centre).any())]
    return planes


def _arcs(rays: Tensor) -> tuple[tuple[float, float], ...]:
    """Cones of the plane as stretches of angles in degrees, neighbours joined."""
    found: list[tuple[float, float]] = []
    for pair in rays:
        a, b = sorted(math.degrees(math.atan2(float(y), float(x))) for x, y in pair)
        found.append((a, b) if b - a <= 180 else (b, a + 360))  # noqa: PLR2004 - half a turn
    joined: list[tuple[float, float]] = []
    for a, b in sorted(found):
        if joined and a - joined[-1][1] <= 1e-9:  # noqa: PLR2004 - rounding
            joined[-1] = (joined[-1][0], b)
        else:
            joined.append((a, b))
    return tuple(joined)
