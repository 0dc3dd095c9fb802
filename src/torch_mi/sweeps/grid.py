# SPDX-License-Identifier: MIT OR Apache-2.0
"""Scores on named axes."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from torch_mi.errors import ModelError
from torch_mi.manifest import Manifest
from torch_mi.results import Result, data_frame, floats

FORM = "torch-mi grid 2"
Coordinate = int | float | str


@dataclass(frozen=True, eq=False, repr=False)
class Grid(Result):
    """`values[i, j]` is the score at the i-th place of the first axis, the j-th of the second."""

    form = FORM

    title: str
    metric: str
    axes: Mapping[str, tuple[Coordinate, ...]]
    labels: Mapping[str, tuple[str, ...]]
    """What to write at the places of an axis, where that is more than the place itself."""
    values: Tensor
    baseline: float
    """The score of the run that is edited, without edits."""
    reference: float | None
    """The score of the run whose activations were put in, if there is one."""
    options: Mapping[str, object]
    """What was asked for: prompts and choices."""
    manifest: Manifest
    errors: Tensor | None = None
    """The standard error of each score, where it is a mean over prompts."""
    prompts: int = 1
    noising: bool = False
    """Whether the reference is the corrupted run, which `normalized` puts at 0."""

    def normalized(self) -> "Grid":
        """The same with 0 where nothing changed and 1 where the reference's score was reached.

        Where corrupted activations are put into the clean run it is the other way round: 0 is
        always the corrupted run's score and 1 the clean one's.
        """
        if self.reference is None or self.reference == self.baseline:
            raise ModelError("there is no reference score that differs from the baseline")
        zero, one = self.baseline, self.reference
        words = "0 as unchanged and 1 as the reference"
        if self.noising:
            zero, one, words = one, zero, "1 as unchanged and 0 as the reference"
        return replace(
            self,
            metric=f"{self.metric}, {words}",
            values=(self.values - zero) / (one - zero),
            baseline=1.0 if self.noising else 0.0,
            reference=0.0 if self.noising else 1.0,
            errors=None if self.errors is None else self.errors / abs(one - zero),
        )

    def at(self, axis: str, place: Coordinate) -> "Grid":
        """The part of this at one place of an axis, which it no longer has."""
        if axis not in self.axes or place not in self.axes[axis]:
            known = self.axes.get(axis, tuple(self.axes))
            raise ModelError(f"this grid has no {axis}={place!r}; it has {list(known)}")
        dim, i = list(self.axes).index(axis), self.axes[axis].index(place)
        return replace(
            self,
            title=f"{self.title}, {axis} {place}",
            axes={name: places for name, places in self.axes.items() if name != axis},
            labels={name: words for name, words in self.labels.items() if name != axis},
            values=self.values.select(dim, i),
            errors=None if self.errors is None else self.errors.select(dim, i),
        )

    def best(self, k: int = 5) -> list[tuple[dict[str, Coordinate], float]]:
        """The `k` places whose score is furthest from the baseline, furthest first."""
        cells = list(self.cells())
        return sorted(cells, key=lambda cell: -abs(cell[1] - self.baseline))[:k]

    def cells(self) -> Iterator[tuple[dict[str, Coordinate], float]]:
        """Every place and its score."""
        places = itertools.product(*self.axes.values())
        for place, value in zip(places, floats(self.values.flatten()), strict=True):
            yield dict(zip(self.axes, place, strict=True)), value

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each place (needs pandas)."""
        return data_frame([{**place, "score": value} for place, value in self.cells()])

    def to_dict(self) -> dict[str, object]:
        return {
            "format": FORM,
            "title": self.title,
            "metric": self.metric,
            "axes": {name: list(places) for name, places in self.axes.items()},
            "labels": {name: list(labels) for name, labels in self.labels.items()},
            "values": floats(self.values.flatten()),
            "baseline": self.baseline,
            "reference": self.reference,
            "options": dict(self.options),
            "manifest": self.manifest.to_dict(),
            "errors": None if self.errors is None else floats(self.errors.flatten()),
            "prompts": self.prompts,
            "noising": self.noising,
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        axes = {name: tuple(places) for name, places in data["axes"].items()}
        sizes = [len(places) for places in axes.values()]
        errors = data["errors"]
        return cls(
            data["title"],
            data["metric"],
            axes,
            {name: tuple(labels) for name, labels in data["labels"].items()},
            torch.tensor(data["values"]).reshape(sizes),
            data["baseline"],
            data["reference"],
            data["options"],
            Manifest.from_dict(data["manifest"]),
            None if errors is None else torch.tensor(errors).reshape(sizes),
            data["prompts"],
            data["noising"],
        )
