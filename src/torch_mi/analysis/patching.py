# SPDX-License-Identifier: MIT OR Apache-2.0
"""Activation patching: put one run's activations into another, place by place.

Denoising: the corrupted prompt is run with one activation at a time taken from the clean prompt's
run. Where that brings the clean answer back, the model carries what makes the difference. Noising
is the reverse: where a corrupted activation spoils the clean run, the model needs what was there
(Vig et al. 2020; Meng et al. 2022; Heimersheim & Nanda 2024).
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from torch_mi.analysis.gradients import Reading
from torch_mi.errors import InterventionError, did_you_mean
from torch_mi.hooks.coordinates import NAME, At, Place
from torch_mi.hooks.interventions import Replace
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.model import MIModel, batch_of
from torch_mi.prompts import Batch, Prompt
from torch_mi.results import pieces_of, text_of
from torch_mi.sweeps.grid import Coordinate, Grid
from torch_mi.sweeps.metrics import Judge, Metric, as_metric
from torch_mi.sweeps.run import sweep

POINTS = {
    "resid_pre": HookPoint.ResidPre,
    "resid_mid": HookPoint.ResidMid,
    "resid_post": HookPoint.ResidPost,
    "attn_out": HookPoint.AttnOut,
    "mlp_out": HookPoint.MlpOut,
    "q": HookPoint.AttnQ,
    "k": HookPoint.AttnK,
    "v": HookPoint.AttnV,
    "z": HookPoint.AttnZ,
    "pattern": HookPoint.AttnPattern,
    "mlp_post": HookPoint.MlpPost,
}
"""What can be patched: the streams by layer and position, the heads' tensors by layer and head,
the neurons by layer and neuron."""
STATE_POINTS = {
    "state": HookPoint.RwkvState,
    "wkv": HookPoint.RwkvWkv,
    "r": HookPoint.RwkvR,
    "k": HookPoint.RwkvK,
    "v": HookPoint.RwkvV,
    "w": HookPoint.RwkvW,
    "g": HookPoint.RwkvG,
}
"""What recurrent models have in the place of attention: the state by layer and position, the heads'
tensors by layer and head."""
ONLY_ATTENTION = ("q", "k", "v", "z", "pattern")
EVERY_BLOCK = ("resid_pre", "attn_out", "mlp_out")
"""The three panels of `at="every_block"`."""
AXES = ("layer", "pos", "head", "neuron", "query", "key")
Direction = Literal["denoising", "noising"]
Axis = Literal["layer", "pos", "head", "neuron", "query", "key"]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Prompts in twos: what is run and edited, and what the activations are taken from."""

    edited: Batch
    source: Batch
    noising: bool

    @property
    def runs(self) -> list[list[int]]:
        return self.edited.rows()

    def said(self, model: MIModel) -> dict[str, object]:
        """What the prompts say."""
        names = ("clean", "corrupted") if self.noising else ("corrupted", "clean")
        texts = [
            [text_of(model, row) for row in batch.rows()] for batch in (self.edited, self.source)
        ]
        return {
            name: text[0] if len(text) == 1 else text
            for name, text in sorted(zip(names, texts, strict=True))
        }


def patch(  # noqa: PLR0913 - an experiment is made of choices
    model: MIModel,
    clean: Prompt,
    corrupted: Prompt,
    *,
    at: str,
    metric: Metric | Judge,
    by: Sequence[Axis] | None = None,
    layers: int | Sequence[int] | None = None,
    direction: Direction = "denoising",
    position: Place = -1,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
) -> Grid:
    """The score of one prompt with activations of its twin put in, place by place.

    `at` is "resid_pre", "resid_mid", "resid_post", "attn_out" or "mlp_out" (by layer and position),
    "z", "q", "k", "v" or "pattern" (by layer and head), "mlp_post" (by layer and neuron), or
    "every_block": "resid_pre", "attn_out" and "mlp_out" in three panels. In recurrent models it is
    "state" (the state after a token, by layer and position) or "wkv", "r", "k", "v", "w" or "g" (by
    layer and head) in the place of attention's. `by` chooses other axes, as `("layer", "pos",
    "head")`; along an axis that is not named everything is put in at once.
    `layers` limits the patching to some layers.

    "denoising" puts the clean prompt's activations into the corrupted run, "noising" the other way
    round. Each prompt and its twin must be equally many tokens long; lists of prompts are averaged
    over. Scores are read at `position`, the last unless given; `Grid.normalized()` makes 0 the
    corrupted and 1 the clean prompts' score.
    """
    pairs = read_pairs(model, clean, corrupted, direction)
    names = EVERY_BLOCK if at == "every_block" else (at,)
    cuts = [cut_of(model, name, by, layers, pairs) for name in names]
    if any(cut.axes != cuts[0].axes for cut in cuts):
        raise InterventionError(f"{at} has no axes {by} in common")
    sources, references = pairs.source.rows(), dict[int, Tensor]()

    def specs(i: int) -> list[HookSpec]:
        batch = batch_of(model, [sources[i]])
        points = [point(layer) for cut in cuts for point, layer in cut.hooks]
        run = model.forward(batch.tokens, HookSpec().capture(*points), stop=model.num_layers)
        reading = Reading(model, batch, as_metric(metric), position, (i,), len(sources))
        logits = reading.logits(run, ended=False)
        references[i] = reading.scores(logits, reading.metrics(logits))
        return [spec for cut in cuts for spec in cut.specs(run)]

    found = sweep(
        model,
        pairs.runs,
        specs,
        metric,
        position=position,
        checkpoint=checkpoint,
        progress=progress,
    )
    axes: dict[str, tuple[Coordinate, ...]] = {} if len(names) == 1 else {"at": names}
    grid = found.grid(
        _title(at, direction),
        axes | cuts[0].axes,
        labels_along(model, pairs, cuts[0].axes),
        pairs.said(model) | {"at": at, "direction": direction},
    )
    reference = torch.cat([references[i] for i in range(len(sources))]).mean()
    return replace(grid, reference=float(reference), noising=pairs.noising)


@dataclass(frozen=True, eq=False)
class Cut:
    """How one kind of activation is taken apart."""

    point: HookPoint
    layers: tuple[int, ...]
    axes: dict[str, tuple[Coordinate, ...]]

    @property
    def hooks(self) -> list[tuple[HookPoint, int]]:
        return [(self.point, layer) for layer in self.layers]

    def specs(self, source: Mapping[str, Tensor]) -> list[HookSpec]:
        """A spec for each place, in the order of the axes."""
        return [
            self._spec(dict(zip(self.axes, place, strict=True)), source)
            for place in itertools.product(*self.axes.values())
        ]

    def _spec(self, place: dict[str, Coordinate], source: Mapping[str, Tensor]) -> HookSpec:
        spec = HookSpec()
        index = {axis: where for axis, where in place.items() if axis != "layer"}
        layers = [cast("int", place["layer"])] if "layer" in place else self.layers
        chosen = tuple(
            index.get(NAME.get(axis, ""), slice(None)) if axis != "batch" else slice(None)
            for axis in self.point.axes
        )
        for layer in layers:
            at = At(**cast("dict[str, Any]", index)) if index else None
            value = source[self.point(layer)][cast("Any", chosen)]
            spec.intervene(self.point(layer), Replace(value, at=at))
        return spec


def cut_of(
    model: MIModel,
    at: str,
    by: Sequence[Axis] | None,
    layers: int | Sequence[int] | None,
    pairs: Pairs,
) -> Cut:
    """The places at which one kind of activation is patched."""
    point = point_named(model, at)
    has = {NAME.get(axis, axis): axis for axis in point.axes if axis in NAME and axis != "batch"}
    parted = not point.stepwise  # a state is first of all a token's
    default = "neuron" if "neuron" in has else "head" if "head" in has and parted else "pos"
    axes = tuple(by) if by is not None else ("layer", default)
    own = ("layer", *(name for name in AXES if name in has))
    wrong = [axis for axis in axes if axis not in own]
    if wrong or not axes or len(set(axes)) < len(axes):
        raise InterventionError(
            f"by={axes!r}: {at} can be patched by each of {', '.join(own)}"
            + (did_you_mean(wrong[0], own) if wrong else "")
        )
    some = _layers(model, point, layers)
    sizes: dict[str, tuple[Coordinate, ...]] = {"layer": some}
    for name in axes:
        if name != "layer":
            sizes[name] = tuple(range(_size(model, has[name], pairs)))
    return Cut(point, some, {name: sizes[name] for name in axes})


def _size(model: MIModel, axis: str, pairs: Pairs) -> int:
    """How many places an axis has; positions must be equally many for all prompts."""
    if axis not in ("pos", "query", "key"):
        return model.backend.sizes[axis]
    lengths = {len(row) for row in pairs.runs}
    if len(lengths) > 1:
        raise InterventionError(
            f"patching by {axis} needs prompts of one length, these have {sorted(lengths)} tokens; "
            "by=('layer',) or by heads takes them all"
        )
    return lengths.pop()


def _layers(
    model: MIModel, point: HookPoint, layers: int | Sequence[int] | None
) -> tuple[int, ...]:
    having = tuple(hook.layer for hook in model.hooks if hook.point is point)
    offered = tuple(layer for layer in having if layer is not None)
    if layers is None:
        if not offered:
            raise InterventionError(f"this model has no {point.name}")
        return offered
    some = (layers,) if isinstance(layers, int) else tuple(layers)
    if not some or any(layer not in offered for layer in some):
        raise InterventionError(f"layers={layers!r}: {point.name} is in layers {list(offered)}")
    return some


def points_of(model: MIModel) -> dict[str, HookPoint]:
    """What can be patched in a model of its kind, by name."""
    if HookPoint.RwkvState not in model.backend.hook_points:
        return POINTS
    shared = {name: point for name, point in POINTS.items() if name not in ONLY_ATTENTION}
    return shared | STATE_POINTS


def point_named(model: MIModel, at: str, without: Sequence[str] = ("every_block",)) -> HookPoint:
    """The point that a name means in this model."""
    points = points_of(model)
    if at in points:
        return points[at]
    choices = (*points, *without)
    if at in {**POINTS, **STATE_POINTS}:
        kind = "attention" if at in POINTS else "a recurrent state"
        raise InterventionError(
            f"at={at!r} belongs to models with {kind}; choose {', '.join(choices)}"
        )
    raise InterventionError(
        f"at={at!r} cannot be patched; choose {', '.join(choices)}{did_you_mean(at, choices)}"
    )


def read_pairs(model: MIModel, clean: Prompt, corrupted: Prompt, direction: Direction) -> Pairs:
    """Both sides as token ids, pair by pair equally long."""
    if direction not in ("denoising", "noising"):
        raise InterventionError(f"direction={direction!r} is neither 'denoising' nor 'noising'")
    good, bad = batch_of(model, clean), batch_of(model, corrupted)
    if len(good.tokens) != len(bad.tokens):
        raise InterventionError(
            f"patch compares prompts in pairs, not {len(good.tokens)} with {len(bad.tokens)}"
        )
    for one, other in zip(good.rows(), bad.rows(), strict=True):
        if len(one) != len(other):
            raise InterventionError(
                f"patching needs prompts of one length; the clean one has {len(one)} tokens "
                f"({list(pieces_of(model, one))}), the corrupted one {len(other)} "
                f"({list(pieces_of(model, other))})"
            )
    noising = direction == "noising"
    return Pairs(good, bad, noising) if noising else Pairs(bad, good, noising)


def labels_along(
    model: MIModel, pairs: Pairs, axes: Mapping[str, tuple[Coordinate, ...]]
) -> dict[str, tuple[str, ...]]:
    """The tokens, where all prompts have the same one, along axes of positions."""
    named = [name for name in axes if name in ("pos", "query", "key")]
    if not named:
        return {}
    rows = [pieces_of(model, row) for row in pairs.runs]
    words = tuple(same[0] if len(set(same)) == 1 else "…" for same in zip(*rows, strict=True))
    return dict.fromkeys(named, words)


def _title(at: str, direction: Direction) -> str:
    what = " or ".join(EVERY_BLOCK) if at == "every_block" else at
    if direction == "noising":
        return f"{what} of the corrupted prompt, put into the clean one"
    return f"{what} of the clean prompt, put into the corrupted one"
