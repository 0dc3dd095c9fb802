# SPDX-License-Identifier: MIT OR Apache-2.0
"""Attention knockout: what the model says when some positions may not look at others."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, Self

from torch import Tensor

from torch_mi.analysis.changes import Changed, Contrast, contrast, one_prompt
from torch_mi.analysis.edges import (
    KnockoutSpec,
    edge_fields,
    layers_of,
)
from torch_mi.errors import InterventionError, did_you_mean
from torch_mi.hooks.coordinates import Place
from torch_mi.hooks.spec import HookSpec
from torch_mi.model import MIModel, batch_of
from torch_mi.prompts import Prompt
from torch_mi.results import text_of
from torch_mi.sweeps.grid import Coordinate, Grid
from torch_mi.sweeps.metrics import Judge, Metric
from torch_mi.sweeps.run import sweep

FORM = "torch-mi knockout 1"
Axis = Literal["layer", "head"]


@dataclass(frozen=True, eq=False, repr=False)
class AblationResult(Changed):
    """The logits at one position, with attention edges and without them."""

    form = FORM

    spec: KnockoutSpec

    @property
    def ablated_logits(self) -> Tensor:
        """The logits [vocab] without the edges."""
        return self.contrast.after

    def _made_by(self) -> dict[str, object]:
        return {"spec": self.spec.to_dict()}

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        spec = KnockoutSpec(**edge_fields(data["spec"]))
        return cls(Contrast.from_dict(data["contrast"]), spec)


def knockout(
    model: MIModel, prompt: Prompt, spec: KnockoutSpec, *, position: int = -1
) -> AblationResult:
    """What one prompt's answer at `position` becomes without the attention edges of `spec`."""
    hooks = spec.hooks(model, len(one_prompt(model, prompt)))
    return AblationResult(contrast(model, prompt, hooks, position), spec)


def knockout_grid(  # noqa: PLR0913 - an experiment is made of choices
    model: MIModel,
    prompts: Prompt,
    spec: KnockoutSpec,
    *,
    metric: Metric | Judge,
    by: Sequence[Axis] = ("layer",),
    position: Place = -1,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
) -> Grid:
    """The score without the edges of `spec`, in each of its layers, or each head, by itself.

    `by` is `("layer",)` or `("layer", "head")`; `("head",)` takes a head out of all layers at once.
    """
    rows = batch_of(model, prompts).rows()
    axes = _axes(model, spec, by)
    places = [dict(zip(axes, place, strict=True)) for place in product(*axes.values())]

    def specs(i: int) -> list[HookSpec]:
        return [_limited(spec, place).hooks(model, len(rows[i])) for place in places]

    found = sweep(
        model,
        rows,
        specs,
        metric,
        position=position,
        checkpoint=checkpoint,
        progress=progress,
    )
    title = f"attention {', '.join(_edges(spec))} knocked out"
    options = {"prompts": [text_of(model, row) for row in rows], "spec": spec.to_dict()}
    return found.grid(title, axes, None, options)


def _axes(
    model: MIModel, spec: KnockoutSpec, by: Sequence[Axis]
) -> dict[str, tuple[Coordinate, ...]]:
    heads = range(model.num_heads) if spec.heads is None else spec.heads
    sizes = {"layer": tuple(layers_of(spec, model)), "head": tuple(heads)}
    wrong = [axis for axis in by if axis not in sizes]
    if wrong or not by or len(set(by)) < len(by):
        hint = did_you_mean(wrong[0], sizes) if wrong else ""
        raise InterventionError(f"by={tuple(by)!r}: edges are knocked out by layer or head{hint}")
    return {axis: sizes[axis] for axis in by}


def _limited(spec: KnockoutSpec, place: dict[str, Coordinate]) -> KnockoutSpec:
    """The same edges at one place."""
    if "layer" in place:
        spec = spec.layer(int(place["layer"]))
    return replace(spec, heads=(int(place["head"]),)) if "head" in place else spec


def _edges(spec: KnockoutSpec) -> list[str]:
    ends = [("all" if p is None else str(p) for p in (e.from_pos, e.to_pos)) for e in spec.edges]
    return [" → ".join(pair) for pair in ends]
