# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a sweep finds: a score for each cell, on one prompt or on many."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from torch_mi.errors import ModelError
from torch_mi.manifest import Manifest
from torch_mi.results import Result, data_frame, floats
from torch_mi.sweeps.grid import Coordinate, Grid
from torch_mi.sweeps.plan import Plan

FORM = "torch-mi sweep 1"


@dataclass(frozen=True, eq=False, repr=False)
class SweepResult(Result):
    """The score of every cell, in the order in which the specs came."""

    form = FORM

    metric: str
    names: tuple[str, ...]
    """What each cell is called: its key if the specs were a mapping, else its number."""
    per_prompt: Tensor
    """[prompt cell]"""
    baselines: Tensor
    """The score of each prompt's plain run [prompt]."""
    plan: Plan
    manifest: Manifest

    @property
    def scores(self) -> Tensor:
        """The score of each cell, the mean over the prompts."""
        return self.per_prompt.mean(0)

    @property
    def baseline(self) -> float:
        """The score of the plain run, the mean over the prompts."""
        return float(self.baselines.mean())

    @property
    def standard_errors(self) -> Tensor | None:
        """How far off each mean may be; `None` for a single prompt."""
        return standard_errors(self.per_prompt)

    def explain(self) -> str:
        """What was run and what was saved, in words."""
        return self.plan.explain()

    def best(self, k: int = 5) -> list[tuple[str, float]]:
        """The `k` cells whose score is furthest from the baseline, furthest first."""
        cells = list(zip(self.names, floats(self.scores), strict=True))
        return sorted(cells, key=lambda cell: -abs(cell[1] - self.baseline))[:k]

    def grid(
        self,
        title: str,
        axes: Mapping[str, tuple[Coordinate, ...]],
        labels: Mapping[str, tuple[str, ...]] | None = None,
        options: Mapping[str, object] | None = None,
    ) -> Grid:
        """The same scores on named axes, the last of which runs fastest."""
        sizes = [len(places) for places in axes.values()]
        if torch.Size(sizes).numel() != len(self.names):
            raise ModelError(f"{len(self.names)} cells do not fill axes of {sizes} places")
        errors = self.standard_errors
        return Grid(
            title=title,
            metric=self.metric,
            axes=dict(axes),
            labels=dict(labels or {}),
            values=self.scores.reshape(sizes),
            baseline=self.baseline,
            reference=None,
            options=dict(options or {}),
            manifest=self.manifest,
            errors=None if errors is None else errors.reshape(sizes),
            prompts=len(self.per_prompt),
        )

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each cell and prompt (needs pandas)."""
        return data_frame(
            [
                {"cell": name, "prompt": prompt, "score": value, "baseline": base}
                for prompt, (row, base) in enumerate(
                    zip(self.per_prompt, floats(self.baselines), strict=True)
                )
                for name, value in zip(self.names, floats(row), strict=True)
            ]
        )

    def to_dict(self) -> dict[str, object]:
        return {
            "format": FORM,
            "metric": self.metric,
            "names": list(self.names),
            "per_prompt": [floats(row) for row in self.per_prompt],
            "baselines": floats(self.baselines),
            "plan": self.plan.to_dict(),
            "manifest": self.manifest.to_dict(),
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        return cls(
            data["metric"],
            tuple(data["names"]),
            torch.tensor(data["per_prompt"]),
            torch.tensor(data["baselines"]),
            Plan(**data["plan"]),
            Manifest.from_dict(data["manifest"]),
        )


def standard_errors(per_prompt: Tensor) -> Tensor | None:
    """The standard error of the mean over the first axis, if it has two places or more."""
    count = len(per_prompt)
    return None if count == 1 else per_prompt.std(0) / count**0.5


def with_reference(grid: Grid, reference: float, *, noising: bool) -> Grid:
    """The same grid, with the score of the run whose activations were put in."""
    return replace(grid, reference=reference, noising=noising)
