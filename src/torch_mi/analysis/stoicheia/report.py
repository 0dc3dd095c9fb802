# SPDX-License-Identifier: MIT OR Apache-2.0
"""Everything there is to say about one recurrent network, in one result."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch

from torch_mi.analysis.stoicheia.ablation import Method, NeuronAblation, ablate_neurons
from torch_mi.analysis.stoicheia.cones import ANGLES
from torch_mi.analysis.stoicheia.exact import ExactRegions, exact_regions
from torch_mi.analysis.stoicheia.kernel import performance
from torch_mi.analysis.stoicheia.networks import StoicheiaRnn
from torch_mi.analysis.stoicheia.regions import Regions, activation_regions
from torch_mi.analysis.stoicheia.roles import Roles, probe_roles
from torch_mi.analysis.stoicheia.standardise import StandardForm, standardise
from torch_mi.analysis.stoicheia.statistics import Estimate
from torch_mi.analysis.stoicheia.surprise import Surprise, account_for
from torch_mi.results import Result

FORM = "torch-mi stoicheia report 1"
SMALL = 24
"""Steps times neurons up to which regions are enumerated."""
Said = Callable[[str], object]


@dataclass(frozen=True, eq=False, repr=False)
class Report(Result):
    """The six analyses of one network; what does not apply to it is `None`."""

    form = FORM

    task: str
    seq_len: int
    hidden_size: int
    parameters: int
    samples: int
    seed: int
    score: Estimate
    """The accuracy, or of a scalar task the mean squared error."""
    standard: StandardForm
    regions: Regions
    exact: ExactRegions | None
    """Of two or three inputs and few neurons."""
    ablation: NeuronAblation
    roles: Roles
    surprise: Surprise | None
    """Of tasks with answers to count."""

    def parts(self) -> tuple[Result, ...]:
        """The analyses that apply, in the order in which they are shown."""
        every = (
            self.standard, self.exact, self.regions, self.ablation, self.roles, self.surprise,
        )  # fmt: skip
        return tuple(part for part in every if part is not None)

    def to_dict(self) -> dict[str, object]:
        plain = ("task", "seq_len", "hidden_size", "parameters", "samples", "seed")
        return {
            "format": FORM,
            **{key: self.__dict__[key] for key in plain},
            "score": self.score.row,
            "standard": self.standard.to_dict(),
            "regions": self.regions.to_dict(),
            "exact": None if self.exact is None else self.exact.to_dict(),
            "ablation": self.ablation.to_dict(),
            "roles": self.roles.to_dict(),
            "surprise": None if self.surprise is None else self.surprise.to_dict(),
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        told: dict[str, Any] = {
            key: value for key, value in data.items() if key not in ("format", "time_secs")
        }
        told |= {
            "score": Estimate.of(data["score"]),
            "standard": StandardForm.from_dict(data["standard"]),
            "regions": Regions.from_dict(data["regions"]),
            "exact": None if data["exact"] is None else ExactRegions.from_dict(data["exact"]),
            "ablation": NeuronAblation.from_dict(data["ablation"]),
            "roles": Roles.from_dict(data["roles"]),
            "surprise": None if data["surprise"] is None else Surprise.from_dict(data["surprise"]),
        }
        return cls(**told)


def analyse(  # noqa: PLR0913 - a report is made of choices
    rnn: StoicheiaRnn,
    samples: int = 100_000,
    *,
    probes: int = 20_000,
    method: Method = "zero",
    keep: int = 50,
    seed: int = 0,
    progress: Said = str,
) -> Report:
    """All analyses of a network on inputs of N(0, 1).

    `probes` samples are used for roles and surprise; the `keep` most frequent regions are listed;
    `progress` is told what comes next. All is computed in float64, but for ablations.
    """
    progress("standard form")
    standard = standardise(rnn)
    score = performance(rnn, samples, seed=seed)
    progress("regions")
    found = activation_regions(rnn, samples, seed=seed, keep=keep)
    bounded = rnn.seq_len in ANGLES and rnn.seq_len * rnn.hidden_size <= SMALL
    exact = exact_regions(rnn) if bounded and not rnn.task.scalar else None
    progress("ablation")
    ablation = ablate_neurons(rnn, samples, method=method, seed=seed, dtype=torch.float32)
    progress("roles")
    roles = probe_roles(rnn, probes, seed=seed)
    surprise = None if rnn.task.scalar else account_for(rnn, samples=probes, seed=seed)
    size = (rnn.seq_len, rnn.hidden_size, rnn.num_parameters, samples, seed)
    parts = (standard, found, exact, ablation, roles, surprise)
    return Report(rnn.task.name, *size, score, *parts)
