# SPDX-License-Identifier: MIT OR Apache-2.0
"""Attribution patching: what activation patching would find, estimated for all places at once.

The score of a run with one activation replaced is, to first order, its score without edits plus
(new activation - old) · gradient. Two forward passes and a backward pass so stand for thousands of
runs (Nanda 2023; Kramár et al. 2024). Gradients may be averaged on the way from the one prompt's
embeddings to the other's, which sees past saturation (integrated gradients; Sundararajan et al.
2017).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from torch_mi.analysis.gradients import Reading, Slopes, differentiable, slopes
from torch_mi.analysis.patching import (
    Axis,
    Cut,
    Direction,
    Pairs,
    cut_of,
    labels_along,
    points_of,
    read_pairs,
)
from torch_mi.cache import HookCache
from torch_mi.errors import InterventionError, ModelError, did_you_mean
from torch_mi.hooks.coordinates import NAME, Place
from torch_mi.hooks.interventions import Add
from torch_mi.hooks.point import Hook, HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.manifest import Manifest
from torch_mi.model import MIModel, batch_of
from torch_mi.prompts import Prompt
from torch_mi.results import Result, data_frame, floats
from torch_mi.sweeps.grid import Grid
from torch_mi.sweeps.metrics import Judge, Metric, as_metric
from torch_mi.sweeps.result import standard_errors
from torch_mi.types import numbers

FORM = "torch-mi comparison 1"
Method = Literal["gradient", "integrated"]
METHODS = ("gradient", "integrated")
_PUT: dict[Direction, str] = {
    "denoising": "the clean prompt, put into the corrupted one",
    "noising": "the corrupted prompt, put into the clean one",
}
TOGETHER = 4096
"""Tokens that are differentiated at a time, if no single prompt has more."""


def attribution_patch(  # noqa: PLR0913 - an experiment is made of choices
    model: MIModel,
    clean: Prompt,
    corrupted: Prompt,
    *,
    at: str,
    metric: Metric | Judge,
    by: Sequence[Axis] | None = None,
    layers: int | Sequence[int] | None = None,
    method: Method = "gradient",
    steps: int = 8,
    direction: Direction = "denoising",
    position: Place = -1,
) -> Grid:
    """An estimate of what `mi.patch` would find, from a gradient; arguments as there.

    `method="integrated"` averages the gradients of `steps` runs on the way from the edited
    prompt's embeddings to the other's. `compare` holds the estimate against true patching.
    """
    found = attribution_patches(
        model,
        clean,
        corrupted,
        at=(at,),
        metric=metric,
        by=by,
        layers=layers,
        method=method,
        steps=steps,
        direction=direction,
        position=position,
    )
    return found[at]


def attribution_patches(  # noqa: PLR0913 - an experiment is made of choices
    model: MIModel,
    clean: Prompt,
    corrupted: Prompt,
    *,
    at: Sequence[str] | None = None,
    metric: Metric | Judge,
    by: Sequence[Axis] | None = None,
    layers: int | Sequence[int] | None = None,
    method: Method = "gradient",
    steps: int = 8,
    direction: Direction = "denoising",
    position: Place = -1,
) -> dict[str, Grid]:
    """`attribution_patch` at several places, or at all the model has, for the price of one."""
    check_method(method, steps)
    pairs = read_pairs(model, clean, corrupted, direction)
    names = at or differentiable_names(model)
    cuts = {name: cut_of(model, name, by, layers, pairs) for name in names}
    for name, cut in cuts.items():
        if "layer" not in cut.axes and len(cut.layers) > 1:
            raise InterventionError(
                f"the gradients of {name} in several layers do not add up, for each is that of "
                "changing its layer alone; put 'layer' among the axes, or name one layer"
            )
    hooks = differentiable(model, [point(i) for cut in cuts.values() for point, i in cut.hooks])
    parts = [
        between(two, hooks, method, steps)
        for two in twos(model, pairs, as_metric(metric), position)
    ]
    edited = torch.cat([part.edited_scores for part in parts])
    source = torch.cat([part.source_scores for part in parts])
    said = pairs.said(model) | {"method": method, "direction": direction}
    said |= {"steps": steps} if method == "integrated" else {}
    grids = dict[str, Grid]()
    for name, cut in cuts.items():
        effects = torch.cat([_effects(part, cut) for part in parts])
        scores = edited.reshape(-1, *(1 for _ in cut.axes)) + effects
        grids[name] = Grid(
            title=f"{name} of {_PUT[direction]}, estimated",
            metric=repr(as_metric(metric)),
            axes=cut.axes,
            labels=labels_along(model, pairs, cut.axes),
            values=scores.mean(0),
            baseline=float(edited.mean()),
            reference=float(source.mean()),
            options=said | {"at": name},
            manifest=replace(parts[0].manifest, tokens=pairs.runs, spec=None),
            errors=standard_errors(scores),
            prompts=len(scores),
            noising=pairs.noising,
        )
    return grids


def differentiable_names(model: MIModel) -> list[str]:
    """What of the things that can be patched has a gradient in this model."""
    offered = model.backend.hook_points
    named = points_of(model).items()
    return [name for name, point in named if point in offered and not point.stepwise]


def check_method(method: str, steps: int) -> None:
    """Refuse a method that there is not, and no steps at all."""
    if method not in METHODS:
        raise InterventionError(
            f"method={method!r} is none of {', '.join(METHODS)}{did_you_mean(method, METHODS)}"
        )
    if steps < 1:
        raise InterventionError(f"steps={steps}: an average needs one step or more")


@dataclass(frozen=True, eq=False)
class Twos:
    """Some prompts that are edited, and their twins, each as one batch."""

    edited: Reading
    source: Reading


@dataclass(frozen=True, eq=False)
class Between:
    """Activations of the edited prompts and of their twins, and slopes between the two."""

    edited: Mapping[str, Tensor]
    source: Mapping[str, Tensor]
    slopes: Mapping[str, Tensor]
    edited_scores: Tensor
    source_scores: Tensor
    manifest: Manifest


def twos(
    model: MIModel, pairs: Pairs, metric: Metric, position: Place, together: int = TOGETHER
) -> Iterator[Twos]:
    """Pairs of prompts, as many at a time as there is room for."""
    edited, source = pairs.runs, pairs.source.rows()
    count, each = len(edited), max(1, together // max(map(len, edited)))
    for first in range(0, count, each):
        items = tuple(range(first, min(first + each, count)))

        def some(rows: list[list[int]], items: tuple[int, ...] = items) -> Reading:
            batch = batch_of(model, [rows[i] for i in items])
            return Reading(model, batch, metric, position, items, count)

        yield Twos(some(edited), some(source))


def between(
    two: Twos,
    hooks: Sequence[Hook],
    method: Method,
    steps: int,
    of: Callable[[Slopes], Mapping[str, Tensor]] = lambda found: found.gradients,
) -> Between:
    """What gradient attributions are made of: both sides' activations, and slopes.

    The slopes are what `of` makes of the edited run's gradients; integrated, the mean of what it
    makes of runs whose embeddings are in between.
    """
    embed = Hook(HookPoint.Embed)
    far, source_scores, _ = _plain(two.source, [*hooks, embed])
    if method == "gradient":
        found = slopes(two.edited, hooks)
        return Between(
            {hook: value.detach() for hook, value in found.values.items()},
            far,
            of(found),
            found.scores,
            source_scores,
            found.run.manifest,
        )
    near, scores, metrics = _plain(two.edited, [*hooks, embed])
    total: dict[str, Tensor] = {}
    for step in range(steps):
        part = (step + 0.5) / steps
        spec = HookSpec().intervene(embed, Add(part * (far[embed] - near[embed])))
        found = of(slopes(two.edited, hooks, spec, metrics))
        total = {hook: total[hook] + x if total else x for hook, x in found.items()}
    mean = {hook: x / steps for hook, x in total.items()}
    return Between(near, far, mean, scores, source_scores, near.manifest)


def _plain(reading: Reading, hooks: Sequence[Hook]) -> tuple[HookCache, Tensor, list[list[Metric]]]:
    """Activations without gradients, the scores [row], and the metric of each that is read."""
    model = reading.model
    spec = HookSpec().capture(*hooks)
    run = model.forward(reading.batch.rows(), spec, stop=model.num_layers)
    with torch.no_grad():
        logits = reading.logits(run, ended=False)
        metrics = reading.metrics(logits)
        return run, reading.scores(logits, metrics).cpu(), metrics


def _effects(part: Between, cut: Cut) -> Tensor:
    """What putting in the twin's activations does, to first order: [prompt axis …]."""
    names = [NAME.get(axis, axis) for axis in cut.point.axes]
    gone = [i for i, name in enumerate(names) if name not in ("batch", *cut.axes)]
    layers: list[Tensor] = []
    for point, layer in cut.hooks:
        hook = point(layer)
        moved = part.source[hook].float() - part.edited[hook].float()
        effect = moved.mul_(part.slopes[hook].float())
        layers.append(effect.sum(gone) if gone else effect)
    left = ["layer", *(name for name in names if name in ("batch", *cut.axes))]
    kept = ["batch", *(("layer",) if "layer" not in cut.axes else ()), *cut.axes]
    effects = torch.stack(layers).permute([left.index(name) for name in kept]).cpu()
    return effects if "layer" in cut.axes else effects[:, 0]


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Result):
    """An estimate of patching beside patching itself."""

    form = FORM

    estimate: Grid
    truth: Grid

    @property
    def effects(self) -> tuple[Tensor, Tensor]:
        """How much each place moves the score: estimated, and in truth."""
        return (
            (self.estimate.values - self.estimate.baseline).flatten(),
            (self.truth.values - self.truth.baseline).flatten(),
        )

    @property
    def spearman(self) -> float | None:
        """The rank correlation of the effects; `None` if all on one side are the same."""
        guessed, true = self.effects
        return correlation(ranks(guessed), ranks(true))

    @property
    def pearson(self) -> float | None:
        """The correlation of the effects; `None` if all on one side are the same."""
        return correlation(*self.effects)

    def overlap(self, k: int = 10) -> float:
        """Of the `k` places that weigh most in truth, how many the estimate has in its first `k`.

        As a share of `k`, or of all places if they are fewer.
        """
        guessed, true = (
            set(numbers(x.abs().argsort(descending=True, stable=True)[:k])) for x in self.effects
        )
        return len(guessed & true) / len(true)

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each place (needs pandas)."""
        guessed, true = self.effects
        return data_frame(
            [
                {**place, "estimate": guess, "truth": truth}
                for (place, _), guess, truth in zip(
                    self.truth.cells(), floats(guessed), floats(true), strict=True
                )
            ]
        )

    def to_dict(self) -> dict[str, object]:
        return {
            "format": FORM,
            "spearman": self.spearman,
            "pearson": self.pearson,
            "estimate": self.estimate.to_dict(),
            "truth": self.truth.to_dict(),
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        return cls(Grid.from_dict(data["estimate"]), Grid.from_dict(data["truth"]))


def compare(estimate: Grid, truth: Grid) -> Comparison:
    """An estimate of `attribution_patch` beside the grid of `mi.patch` for the same places."""
    if dict(estimate.axes) != dict(truth.axes):
        raise ModelError(f"these grids have different places: {_size(estimate)} and {_size(truth)}")
    if estimate.options.get("at") != truth.options.get("at"):
        raise ModelError(
            f"these grids are of different activations: {estimate.options.get('at')} and "
            f"{truth.options.get('at')}"
        )
    return Comparison(estimate, truth)


def ranks(x: Tensor) -> Tensor:
    """The rank of each entry, from 0; equal entries share the mean of theirs."""
    order = x.sort().values
    first, after = torch.searchsorted(order, x), torch.searchsorted(order, x, right=True)
    return (first + after - 1).double() / 2


def correlation(x: Tensor, y: Tensor) -> float | None:
    """Pearson's correlation; `None` if one side is constant."""
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    size = float((x @ x) * (y @ y)) ** 0.5
    return float(x @ y) / size if size else None


def _size(grid: Grid) -> str:
    return " × ".join(f"{len(places)} {axis}" for axis, places in grid.axes.items())
