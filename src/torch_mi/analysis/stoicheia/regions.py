# SPDX-License-Identifier: MIT OR Apache-2.0
"""Where a recurrent network is linear: patterns of active neurons, and the map within each.

A pattern says of each step and neuron whether the neuron is at or above zero before the relu. On
all inputs with one pattern the outputs are one matrix times the inputs.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from torch_mi.analysis.stoicheia.kernel import Kernel, batches, sample, summed
from torch_mi.analysis.stoicheia.networks import StoicheiaRnn
from torch_mi.analysis.stoicheia.standardise import network_dict, network_of
from torch_mi.analysis.stoicheia.statistics import Estimate, share
from torch_mi.errors import ModelError
from torch_mi.results import Result, data_frame, floats

FORM = "torch-mi stoicheia regions 1"
KEPT = 1000


@dataclass(frozen=True)
class Region:
    """The inputs on which the same neurons are active at the same steps."""

    bits: str
    """A 1 for each neuron at or above zero, a 0 for each other: step by step, neuron by neuron."""
    count: int
    share: Estimate
    """The part of all samples."""
    score: Estimate
    """The accuracy within the region, or the mean squared error."""
    map: tuple[tuple[float, ...], ...]
    """The outputs [out n] for each input."""

    def count_active(self) -> int:
        return self.bits.count("1")

    def active_at(self, steps: int) -> tuple[int, ...]:
        """How many neurons are active at each of the steps."""
        width = len(self.bits) // steps
        return tuple(self.bits[t * width : (t + 1) * width].count("1") for t in range(steps))


@dataclass(frozen=True, eq=False, repr=False)
class Regions(Result):
    """The patterns seen among samples, the most frequent first."""

    form = FORM

    rnn: StoicheiaRnn
    samples: int
    seed: int | None
    distinct: int
    """How many patterns were seen; those listed are the most frequent."""
    regions: tuple[Region, ...]

    @property
    def covered(self) -> float:
        """The part of the samples in the regions that are listed."""
        return sum(region.count for region in self.regions) / self.samples

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each region (needs pandas)."""
        return data_frame(
            [
                {
                    "bits": region.bits,
                    "count": region.count,
                    "share": region.share.value,
                    "score": region.score.value,
                    "active": region.count_active(),
                }
                for region in self.regions
            ]
        )

    def to_dict(self) -> dict[str, object]:
        return {
            "format": FORM,
            **network_dict(self.rnn),
            "samples": self.samples,
            "seed": self.seed,
            "distinct": self.distinct,
            "regions": [
                {
                    "bits": region.bits,
                    "count": region.count,
                    "share": region.share.row,
                    "score": region.score.row,
                    "map": [list(row) for row in region.map],
                }
                for region in self.regions
            ],
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        regions = tuple(
            Region(
                row["bits"],
                row["count"],
                Estimate.of(row["share"]),
                Estimate.of(row["score"]),
                tuple(tuple(line) for line in row["map"]),
            )
            for row in data["regions"]
        )
        return cls(network_of(data), data["samples"], data["seed"], data["distinct"], regions)


def activation_regions(
    rnn: StoicheiaRnn,
    samples: int | Tensor = 100_000,
    *,
    seed: int = 0,
    keep: int = KEPT,
) -> Regions:
    """The patterns among inputs of N(0, 1), or given ones; the `keep` most frequent in full."""
    drawn, kernel = sample(rnn, samples, seed), Kernel(rnn)
    packed: list[np.ndarray[Any, Any]] = []
    scores: list[Tensor] = []
    for x, truth in batches(kernel, drawn):
        before = kernel.states(x)
        active = (before >= 0).flatten(0, 1).T.contiguous().numpy()
        packed.append(np.packbits(active, axis=1))
        scores.append(kernel.scores(before[-1].clamp(min=0), truth).double())
    rows = np.ascontiguousarray(np.concatenate(packed))
    keys = rows.view(np.dtype((np.void, rows.shape[1])))[:, 0]
    _, first, where, counts = np.unique(
        keys, return_index=True, return_inverse=True, return_counts=True
    )
    scored, place = torch.cat(scores), torch.tensor(where.reshape(-1))
    sums = torch.zeros(len(counts), dtype=torch.float64).index_add(0, place, scored)
    squares = torch.zeros(len(counts), dtype=torch.float64).index_add(0, place, scored.square())
    order = np.lexsort((first, -counts))[:keep]
    bits = np.unpackbits(rows[first[order]], axis=1, count=rnn.seq_len * rnn.hidden_size)
    maps = region_maps(rnn, torch.tensor(bits).bool())
    found = tuple(
        Region(
            "".join(map(str, bits[i].tolist())),
            int(counts[j]),
            share(float(counts[j]), drawn.count),
            summed(rnn, float(sums[j]), float(squares[j]), int(counts[j])),
            tuple(tuple(floats(row)) for row in maps[i]),
        )
        for i, j in enumerate(order.tolist())
    )
    return Regions(rnn, drawn.count, drawn.seed, len(counts), found)


def region_maps(
    rnn: StoicheiaRnn, active: Bool[Tensor, "region bit"]
) -> Float[Tensor, "region out n"]:
    """The matrix of the outputs by the inputs in each region, in float64.

    A[:, t] = w_oh (Π_{s from the last to t+1} G_s w_hh) G_t w_ih, with G_s the diagonal of the
    pattern at step s.
    """
    steps, hidden = rnn.seq_len, rnn.hidden_size
    gates = active.reshape(-1, steps, hidden).double()
    w_hh, w_ih = rnn.w_hh.detach().double(), rnn.w_ih.detach().double()
    carried = rnn.w_oh.detach().double().expand(len(gates), -1, -1)
    columns: list[Tensor] = []
    for t in reversed(range(steps)):
        carried = carried * gates[:, t, None, :]
        columns.append(carried @ w_ih)
        carried = carried @ w_hh
    found = torch.stack(columns[::-1], -1)
    if not bool(found.isfinite().all()):
        raise ModelError("these weights are so large that a region's map is not finite")
    return found
