# SPDX-License-Identifier: MIT OR Apache-2.0
"""Ablation: take heads, layers or neurons out and see what becomes of the answer.

What is taken out is replaced: by zeros; by the mean of the activation over the positions of
reference prompts; or, resampled, by the activation of another prompt of the same length at the same
positions (Chan et al. 2022).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from torch_mi.analysis.patching import (
    Axis,
    Cut,
    Pairs,
    cut_of,
    labels_along,
    point_named,
    points_of,
)
from torch_mi.errors import InterventionError, did_you_mean
from torch_mi.hooks.coordinates import At, Place
from torch_mi.hooks.interventions import Replace
from torch_mi.hooks.point import Hook, HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.model import MIModel, batch_of
from torch_mi.prompts import Prompt
from torch_mi.results import text_of
from torch_mi.sweeps.grid import Coordinate, Grid
from torch_mi.sweeps.metrics import Judge, Metric
from torch_mi.sweeps.run import sweep

Method = Literal["zero", "mean", "resample"]
METHODS = ("zero", "mean", "resample")


def ablate(  # noqa: PLR0913 - an experiment is made of choices
    model: MIModel,
    prompts: Prompt,
    *,
    at: str,
    metric: Metric | Judge,
    method: Method = "mean",
    reference: Prompt | None = None,
    by: Sequence[Axis] | None = None,
    layers: int | Sequence[int] | None = None,
    position: Place = -1,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
) -> Grid:
    """The score with one part of the model at a time taken out.

    `at` is "z" (by layer and head), "mlp_post" (by layer and neuron), "attn_out" or "mlp_out" (by
    layer), or another stream or tensor that `patch` knows, save the pattern. `by` chooses other
    axes, as `("layer", "pos")`; along an axis that is not named everything is taken out at once.

    "zero" puts zeros in its place; "mean" the mean over every position of the `reference` prompts;
    "resample" what a reference prompt of the same length has there, drawn by `seed`. Without
    `reference`, the prompts themselves are it, and none is resampled from itself.
    """
    rows = batch_of(model, prompts).rows()
    others = rows if reference is None else batch_of(model, reference).rows()
    pairs = Pairs(batch_of(model, prompts), batch_of(model, prompts), noising=False)
    cut = _cut(model, at, by, layers, pairs)
    source = Source(model, cut.hooks, rows, others, method, seed, itself=reference is None)
    found = sweep(
        model,
        rows,
        lambda i: cut.specs(source.of(i)),
        metric,
        position=position,
        checkpoint=checkpoint,
        progress=progress,
    )
    return found.grid(
        f"{at} ablated ({method})",
        cut.axes,
        labels_along(model, pairs, cut.axes),
        {"prompts": [text_of(model, row) for row in rows], "at": at, "method": method}
        | ({"seed": seed} if method == "resample" else {})
        | ({} if reference is None else {"reference": [text_of(model, row) for row in others]}),
    )


def ablate_together(  # noqa: PLR0913 - an experiment is made of choices
    model: MIModel,
    prompts: Prompt,
    groups: Mapping[str, Sequence[tuple[int, int]]],
    *,
    metric: Metric | Judge,
    at: str = "z",
    method: Method = "mean",
    reference: Prompt | None = None,
    position: Place = -1,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
) -> Grid:
    """The score with each group of parts taken out at once; a part is (layer, head or neuron)."""
    rows = batch_of(model, prompts).rows()
    others = rows if reference is None else batch_of(model, reference).rows()
    point = _point(model, at)
    axis = _part(point, at)
    hooks = _hooks(model, point, groups)
    source = Source(model, hooks, rows, others, method, seed, itself=reference is None)
    found = sweep(
        model,
        rows,
        lambda i: [_taken_out(point, group, source.of(i)) for group in groups.values()],
        metric,
        position=position,
        checkpoint=checkpoint,
        progress=progress,
    )
    options: dict[str, object] = {
        "prompts": [text_of(model, row) for row in rows],
        "at": at,
        "method": method,
        "seed": seed,
        "groups": {name: [list(part) for part in group] for name, group in groups.items()},
    }
    axes: dict[str, tuple[Coordinate, ...]] = {"group": tuple(groups)}
    return found.grid(f"groups of {axis}s ablated ({method})", axes, None, options)


def _hooks(
    model: MIModel, point: HookPoint, groups: Mapping[str, Sequence[tuple[int, int]]]
) -> list[tuple[HookPoint, int]]:
    """Where groups of parts are, once it is known that they are there."""
    parts = [part for group in groups.values() for part in group]
    if not parts:
        raise InterventionError("the groups name no parts")
    for layer, part in parts:
        hook = point(max(layer, 0))
        if layer < 0 or hook not in model.hooks:
            raise InterventionError(f"layer {layer} has no {point.name}")
        size = model.hooks[hook][2]
        if not isinstance(size, int) or not 0 <= part < size:
            raise InterventionError(f"{point.name} of layer {layer} has no part {part} of {size}")
    return [(point, layer) for layer in sorted({layer for layer, _ in parts})]


def _taken_out(
    point: HookPoint, group: Sequence[tuple[int, int]], values: Mapping[str, Tensor]
) -> HookSpec:
    """The edits that take a group of parts out."""
    spec = HookSpec()
    for layer in dict.fromkeys(layer for layer, _ in group):
        some = sorted({part for where, part in group if where == layer})
        at = At(neuron=some) if "d_mlp" in point.axes else At(head=some)
        spec.intervene(point(layer), Replace(values[point(layer)][:, :, some], at=at))
    return spec


class Source:
    """What is put in the place of what is taken out, prompt by prompt."""

    def __init__(  # noqa: PLR0913 - made in two places, by name
        self,
        model: MIModel,
        hooks: Sequence[tuple[HookPoint, int]],
        rows: Sequence[list[int]],
        others: Sequence[list[int]],
        method: Method,
        seed: int,
        *,
        itself: bool,
    ) -> None:
        if method not in METHODS:
            raise InterventionError(
                f"method={method!r} is none of {', '.join(METHODS)}{did_you_mean(method, METHODS)}"
            )
        self.model, self.rows, self.others = model, rows, others
        self.hooks = [point(layer) for point, layer in hooks]
        self.method, self.seed, self.itself = method, seed, itself
        self.constant = dict[Hook, Tensor]()
        if method != "resample":
            self.constant = self._means() if method == "mean" else self._zeros()

    def of(self, i: int) -> Mapping[str, Tensor]:
        """The values [1 pos …] for one prompt, by hook."""
        if self.method == "resample":
            return self._captured(self.others[self._drawn(i)])
        length = len(self.rows[i])
        return {
            hook: value.expand(1, length, *value.shape) for hook, value in self.constant.items()
        }

    def _captured(self, row: list[int]) -> Mapping[str, Tensor]:
        spec = HookSpec().capture(*self.hooks)
        return self.model.forward(torch.tensor([row]), spec, stop=self.model.num_layers)

    def _means(self) -> dict[Hook, Tensor]:
        """The mean over all positions of all reference prompts."""
        sums, count = dict[Hook, Tensor](), 0
        for row in self.others:
            run = self._captured(row)
            count += len(row)
            for hook in self.hooks:
                total = run[hook][0].double().sum(0)
                sums[hook] = sums[hook] + total if hook in sums else total
        return {hook: (total / count).to(self.model.dtype) for hook, total in sums.items()}

    def _zeros(self) -> dict[Hook, Tensor]:
        run = self._captured(self.rows[0][:1])
        return {hook: torch.zeros_like(run[hook][0, 0]) for hook in self.hooks}

    def _drawn(self, i: int) -> int:
        """The reference prompt whose activations are put into prompt `i`."""
        length = len(self.rows[i])
        fitting = [
            k
            for k, row in enumerate(self.others)
            if len(row) == length and not (self.itself and k == i)
        ]
        if not fitting:
            raise InterventionError(
                f"prompt {i} has {length} tokens, and no other reference prompt has as many "
                f"(they have {sorted({len(row) for row in self.others})}); "
                "method='mean' takes prompts of any length"
            )
        dice = torch.Generator().manual_seed(self.seed * 1_000_003 + i)
        return fitting[int(torch.randint(len(fitting), (), generator=dice))]


def _cut(
    model: MIModel,
    at: str,
    by: Sequence[Axis] | None,
    layers: int | Sequence[int] | None,
    pairs: Pairs,
) -> Cut:
    """The places to ablate; streams by layer unless told otherwise."""
    parts = set(_point(model, at).axes) & {"head", "kv_head", "d_mlp"}
    axes: Sequence[Axis] | None = ("layer",) if by is None and not parts else by
    return cut_of(model, at, axes, layers, pairs)


def _point(model: MIModel, at: str) -> HookPoint:
    """The point that a name means: "z" by head, "attn_out" by layer, and others."""
    places = [name for name in points_of(model) if name != "pattern"]
    if at in ("pattern", "every_block"):
        raise InterventionError(f"at={at!r} cannot be ablated; choose {', '.join(places)}")
    return point_named(model, at, without=())


def _part(point: HookPoint, at: str) -> str:
    """What the parts of an activation are called."""
    axes = point.axes
    if "d_mlp" in axes:
        return "neuron"
    if not {"head", "kv_head"} & set(axes):
        raise InterventionError(f"at={at!r} has no parts; choose one by head, or mlp_post")
    return "head"
