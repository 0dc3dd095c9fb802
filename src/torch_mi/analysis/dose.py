# SPDX-License-Identifier: MIT OR Apache-2.0
"""Dose and response: how the answer changes as attention to a place is turned up or down.

Steering renormalises, so multiplying an edge's attention a by c makes it c·a / (1 + (c - 1)·a), and
not c·a: what should reach t needs the factor t(1 - a) / (a(1 - t)).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from torch_mi.analysis.changes import one_prompt
from torch_mi.analysis.edges import (
    EdgeSpec,
    check_edges,
    expanded,
    layers_of,
)
from torch_mi.analysis.steering import SteeringSpec, apply_steering, edge_attention
from torch_mi.errors import InterventionError
from torch_mi.hooks.coordinates import Place
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.manifest import Manifest
from torch_mi.model import MIModel
from torch_mi.prompts import Prompt
from torch_mi.results import Result, data_frame, text_of
from torch_mi.sweeps.metrics import kl
from torch_mi.sweeps.run import sweep

FORM = "torch-mi dose 1"
DOSE_LEVELS = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0)
"""Multiples of the attention there is."""
FAINT = 1e-10
HALVINGS = 100


@dataclass(frozen=True)
class SteeringCalibration:
    """How much attention a place gets in two kinds of prompt, in one layer."""

    source_baseline: float
    target_baseline: float
    layer: int
    n_source_samples: int
    n_target_samples: int
    wanted: float | None = None

    def with_target(self, target: float) -> Self:
        """The same, recommending another level."""
        return replace(self, wanted=target)

    @property
    def recommended_target(self) -> float:
        """The source's level, unless another was given."""
        return self.source_baseline if self.wanted is None else self.wanted

    @property
    def attention_ratio(self) -> float:
        """How much more the source gets; 0 if the target gets nothing."""
        return self.source_baseline / self.target_baseline if self.target_baseline > FAINT else 0.0

    def scale_factor_for_target(self, target: float) -> float:
        """The ratio of a level to the target's own; renormalising makes it fall short.

        `exact_scale_factor` is the factor that reaches the level.
        """
        return target / self.target_baseline if self.target_baseline > FAINT else 1.0

    def scale_factor_to_source(self) -> float:
        """The ratio of the source's level to the target's."""
        return self.scale_factor_for_target(self.source_baseline)

    def exact_scale_factor(self, target: float | None = None) -> float:
        """The factor with which one edge reaches the recommended level, or another."""
        level = self.recommended_target if target is None else target
        return exact_scale_factor(self.target_baseline, level)

    def dose_levels_absolute(self) -> list[tuple[float, float]]:
        """Each dose, and the attention it stands for."""
        return [(dose, self.target_baseline * dose) for dose in DOSE_LEVELS]


def exact_scale_factor(attention: float, target: float) -> float:
    """The factor that brings one edge of one head from this attention to that."""
    for name, level in (("attention", attention), ("target", target)):
        if not 0 < level < 1:
            raise InterventionError(
                f"{name}={level:g} is not between 0 and 1: no factor reaches it"
            )
    return target * (1 - attention) / (attention * (1 - target))


def mean_scale_factor(attention: Tensor, target: float) -> float:
    """The one factor that brings the mean over heads [head] of one edge's attention to `target`."""
    levels = attention.double()
    reach = float((levels > 0).double().mean())
    if not 0 < target < reach:
        raise InterventionError(
            f"target={target:g} cannot be reached: factors give 0 … {reach:g}, both excluded"
        )
    low, high = -80.0, 80.0
    for _ in range(HALVINGS):  # the mean rises with the factor
        middle = (low + high) / 2
        scaled = levels * math.exp(middle)
        mean = float((scaled / (1 - levels + scaled)).mean())
        low, high = (middle, high) if mean < target else (low, middle)
    return math.exp((low + high) / 2)


@dataclass(frozen=True)
class DoseResponsePoint:
    """One dose: the factor, the attention it leads to, and how far the answer moves."""

    scale_factor: float
    attention_level: float
    kl_divergence: float


@dataclass(frozen=True, eq=False, repr=False)
class DoseResponseCurve(Result):
    """How the answer changes with the attention along some edges in one layer."""

    form = FORM

    sample_id: str
    condition: str
    layer: int
    baseline_attention: float
    points: tuple[DoseResponsePoint, ...] = ()
    manifest: Manifest | None = None

    def add_point(self, scale_factor: float, attention: float, kl_divergence: float) -> Self:
        """The curve with one more point at its end."""
        point = DoseResponsePoint(scale_factor, attention, kl_divergence)
        return replace(self, points=(*self.points, point))

    def scale_for_target(self, target: float) -> float | None:
        """The factor for a level of attention, between the first two points that it lies between.

        `None` if it lies between none.
        """
        for one, two in zip(self.points, self.points[1:], strict=False):
            low, high = one.attention_level, two.attention_level
            if abs(high - low) < FAINT or not min(low, high) <= target <= max(low, high):
                continue
            part = (target - low) / (high - low)
            return one.scale_factor + part * (two.scale_factor - one.scale_factor)
        return None

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each dose (needs pandas)."""
        return data_frame([dict(vars(point)) for point in self.points])

    def to_dict(self) -> dict[str, object]:
        return {
            "format": FORM,
            "sample_id": self.sample_id,
            "condition": self.condition,
            "layer": self.layer,
            "baseline_attention": self.baseline_attention,
            "points": [dict(vars(point)) for point in self.points],
            "manifest": None if self.manifest is None else self.manifest.to_dict(),
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        manifest = data["manifest"]
        return cls(
            data["sample_id"],
            data["condition"],
            data["layer"],
            data["baseline_attention"],
            tuple(DoseResponsePoint(**point) for point in data["points"]),
            None if manifest is None else Manifest.from_dict(manifest),
        )


def dose_response(
    model: MIModel,
    prompt: Prompt,
    edges: EdgeSpec,
    *,
    doses: Sequence[float] = DOSE_LEVELS,
    exact: bool = False,
    position: Place = -1,
) -> DoseResponseCurve:
    """How far a prompt's answer moves as the attention along `edges`, in one layer, is rescaled.

    A dose multiplies the attention before the row is renormalised. With `exact`, it multiplies the
    mean attention that is left afterwards, and the factor for it is worked out; that takes one
    edge, and doses that leave attention below what the heads can pay.
    """
    ids = one_prompt(model, prompt)
    check_edges(edges, model, len(ids))
    layers = layers_of(edges, model)
    if len(layers) != 1:
        raise InterventionError(
            f"a dose-response curve is of one layer, not of {layers}; choose one with .layer(…)"
        )
    if not doses:
        raise InterventionError("a dose-response curve needs a dose")
    point = HookPoint.AttnPattern(layers[0])
    tokens = torch.tensor([ids])
    pattern = model.forward(tokens, HookSpec().capture(point), stop=layers[0] + 1)[point]
    baseline = float(edge_attention(pattern, edges).mean())
    factors = [_factor(pattern, edges, dose * baseline) for dose in doses] if exact else doses
    specs = [SteeringSpec(edges.layers, edges.heads, edges.edges, "scale", c) for c in factors]
    hooks = [spec.hooks(model, len(ids)) for spec in specs]
    found = sweep(model, tokens, hooks, kl(), position=position, progress=False)
    curve = DoseResponseCurve(
        text_of(model, ids), str(edges), layers[0], baseline, manifest=found.manifest
    )
    for spec, moved in zip(specs, found.scores, strict=True):
        level = float(edge_attention(apply_steering(pattern, spec), spec).mean())
        curve = curve.add_point(spec.amount, level, float(moved))
    return curve


def _factor(pattern: Tensor, edges: EdgeSpec, target: float) -> float:
    """The factor with which the mean over heads reaches a level."""
    if len(expanded(edges, pattern.shape[-1])) != 1:
        raise InterventionError(f"the exact factor is that of one edge, not of {edges}")
    return mean_scale_factor(edge_attention(pattern, edges), target)
