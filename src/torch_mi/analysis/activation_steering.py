# SPDX-License-Identifier: MIT OR Apache-2.0
"""Activation steering: add a direction to the residual stream and see how the answer turns.

The direction is the difference between the mean activations on two sets of prompts (Turner et al.
2023; Rimsky et al. 2024).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from torch_mi.analysis.changes import one_prompt
from torch_mi.errors import InterventionError
from torch_mi.hooks.coordinates import At, Place
from torch_mi.hooks.interventions import Add
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.manifest import Manifest
from torch_mi.model import MIModel, batch_of
from torch_mi.prompts import Prompt
from torch_mi.results import Result, data_frame, floats, position_in, text_of
from torch_mi.sweeps.grid import Coordinate, Grid
from torch_mi.sweeps.metrics import Judge, Metric
from torch_mi.sweeps.run import sweep

FORM = "torch-mi directions 1"
STRENGTHS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
ABSORBED = 0.95
"""A cosine from which on a steered stream counts as the plain one again."""


@dataclass(frozen=True, eq=False, repr=False)
class Directions(Result):
    """A direction for the residual stream leaving each layer [layer d_model]."""

    form = FORM

    model_id: str
    layers: tuple[int, ...]
    vectors: Tensor
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    manifest: Manifest

    @property
    def lengths(self) -> list[float]:
        """How long the direction is at each layer."""
        return floats(self.vectors.square().sum(1).sqrt())

    def at(self, layer: int) -> Tensor:
        """The direction [d_model] at one layer."""
        if layer not in self.layers:
            raise InterventionError(
                f"layer {layer} has no direction; layers {list(self.layers)} do"
            )
        return self.vectors[self.layers.index(layer)]

    def spec(self, layer: int, strength: float = 1.0, pos: Place | None = -1) -> HookSpec:
        """The edit that adds the direction after a layer, at `pos` or everywhere."""
        at = None if pos is None else At(pos=pos)
        return HookSpec().intervene(
            HookPoint.ResidPost(layer), Add(strength * self.at(layer), at=at)
        )

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each layer (needs pandas)."""
        rows = zip(self.layers, self.lengths, strict=True)
        return data_frame([{"layer": layer, "length": length} for layer, length in rows])

    def to_dict(self) -> dict[str, object]:
        return {
            "format": FORM,
            "model_id": self.model_id,
            "layers": list(self.layers),
            "vectors": [floats(row) for row in self.vectors],
            "positive": list(self.positive),
            "negative": list(self.negative),
            "manifest": self.manifest.to_dict(),
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        return cls(
            data["model_id"],
            tuple(data["layers"]),
            torch.tensor(data["vectors"]),
            tuple(data["positive"]),
            tuple(data["negative"]),
            Manifest.from_dict(data["manifest"]),
        )


def directions(
    model: MIModel,
    positive: Prompt,
    negative: Prompt,
    *,
    layers: Sequence[int] | None = None,
    position: int = -1,
) -> Directions:
    """The mean residual stream on `positive` prompts less that on `negative` ones, by layer."""
    chosen = tuple(range(model.num_layers)) if layers is None else tuple(layers)
    points = [HookPoint.ResidPost(layer) for layer in chosen]
    if not chosen:
        raise InterventionError("layers=() leaves no layer to find a direction in")
    means: list[Tensor] = []
    rows: list[list[list[int]]] = []
    manifest: Manifest | None = None
    for side in (positive, negative):
        rows.append(batch_of(model, side).rows())
        total = torch.zeros(len(chosen), model.hidden_size, dtype=torch.float64)
        for row in rows[-1]:
            at = position_in(len(row), position)
            spec = HookSpec().capture(*points)
            run = model.forward(torch.tensor([row]), spec, stop=model.num_layers)
            total += torch.stack([run[point][0, at] for point in points]).double().cpu()
            manifest = manifest or run.manifest
        means.append(total / len(rows[-1]))
    if manifest is None:
        raise InterventionError("directions need prompts on both sides")
    texts = [tuple(text_of(model, row) for row in side) for side in rows]
    vectors = (means[0] - means[1]).float()
    return Directions(model.origin.model_id, chosen, vectors, texts[0], texts[1], manifest)


def steering_grid(  # noqa: PLR0913 - an experiment is made of choices
    model: MIModel,
    prompts: Prompt,
    along: Directions,
    *,
    metric: Metric | Judge,
    strengths: Sequence[float] = STRENGTHS,
    pos: Place | None = -1,
    position: Place = -1,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
) -> Grid:
    """The score with a direction added at `pos` after each of its layers, at each strength."""
    rows = batch_of(model, prompts).rows()
    specs = [along.spec(layer, s, pos) for layer, s in product(along.layers, strengths)]
    found = sweep(
        model, rows, specs, metric, position=position, checkpoint=checkpoint, progress=progress
    )
    axes: dict[str, tuple[Coordinate, ...]] = {
        "layer": along.layers,
        "strength": tuple(strengths),
    }
    options: dict[str, object] = {
        "prompts": [text_of(model, row) for row in rows],
        "positive": list(along.positive),
        "negative": list(along.negative),
        "pos": repr(pos),
    }
    return found.grid("a direction added to the residual stream", axes, None, options)


@dataclass(frozen=True, eq=False, repr=False)
class Convergence(Result):
    """How like the plain stream a steered one is at each layer [steered layer], as a cosine.

    Layers before the steered one are 1.
    """

    form = "torch-mi convergence 1"

    model_id: str
    prompt: str
    strength: float
    layers: tuple[int, ...]
    """The layers after which the direction was added."""
    cosines: Tensor
    manifest: Manifest

    def depth(self, layer: int) -> int | None:
        """Layers after the steered one until the stream is like the plain one; `None` if never."""
        row = floats(self.cosines[self.layers.index(layer)])
        return next((i - layer for i in range(layer, len(row)) if row[i] >= ABSORBED), None)

    @property
    def absorbed(self) -> float:
        """The share of layers whose steering is lost before the end."""
        depths = [self.depth(layer) for layer in self.layers]
        return sum(depth is not None for depth in depths) / len(depths)

    def cells(self) -> Iterator[tuple[int, int, float]]:
        """Steered layer, layer and cosine."""
        for layer, row in zip(self.layers, self.cosines, strict=True):
            for i, cosine in enumerate(floats(row)):
                yield layer, i, cosine

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each pair of layers (needs pandas)."""
        return data_frame([{"steered": a, "layer": b, "cosine": c} for a, b, c in self.cells()])

    def to_dict(self) -> dict[str, object]:
        return {
            "format": self.form,
            "model_id": self.model_id,
            "prompt": self.prompt,
            "strength": self.strength,
            "layers": list(self.layers),
            "cosines": [floats(row) for row in self.cosines],
            "absorbed": self.absorbed,
            "depths": [self.depth(layer) for layer in self.layers],
            "manifest": self.manifest.to_dict(),
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        return cls(
            data["model_id"],
            data["prompt"],
            data["strength"],
            tuple(data["layers"]),
            torch.tensor(data["cosines"]),
            Manifest.from_dict(data["manifest"]),
        )


def convergence(
    model: MIModel, prompt: Prompt, along: Directions, *, strength: float = 1.0
) -> Convergence:
    """How soon the stream at a prompt's last token forgets a direction added after a layer.

    A steered stream is compared with the plain one of the same prompt. All layers are steered in
    one run, a row of the batch for each.
    """
    ids = one_prompt(model, prompt)
    spec = HookSpec().capture(HookPoint.ResidPost)
    plain = model.forward(torch.tensor([ids]), spec, stop=model.num_layers)
    for row, layer in enumerate(along.layers):
        at = At(batch=row, pos=-1)
        spec.intervene(HookPoint.ResidPost(layer), Add(strength * along.at(layer), at=at))
    rows = torch.tensor([ids] * len(along.layers))
    steered = model.forward(rows, spec, stop=model.num_layers)
    cosines = [
        torch.cosine_similarity(steered[p][:, -1].float(), plain[p][:, -1].float())
        for p in HookPoint.ResidPost.on(model.num_layers)
    ]
    return Convergence(
        model.origin.model_id,
        text_of(model, ids),
        strength,
        along.layers,
        torch.stack(cosines, 1).cpu(),
        steered.manifest,
    )
