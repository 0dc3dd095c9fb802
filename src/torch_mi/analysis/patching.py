# SPDX-License-Identifier: MIT OR Apache-2.0
"""Activation patching: put one run's activations into another, place by place.

The corrupted prompt is run with one activation at a time taken from the clean prompt's run
(denoising). Where that brings the clean answer back, the model carries what makes the difference
(Vig et al. 2020; Meng et al. 2022; Heimersheim & Nanda 2024).
"""

import itertools

from torch import Tensor

from torch_mi.errors import InterventionError, did_you_mean
from torch_mi.hooks.coordinates import NAME, At
from torch_mi.hooks.interventions import Replace
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.model import MIModel
from torch_mi.prompts import Prompt
from torch_mi.results import pieces_of, text_of
from torch_mi.sweeps.execute import score_cells
from torch_mi.sweeps.grid import Grid
from torch_mi.sweeps.metrics import Metric

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
}
"""What can be patched: the streams by layer and position, the heads' tensors by layer and head."""


def patch(model: MIModel, clean: Prompt, corrupted: Prompt, *, at: str, metric: Metric) -> Grid:
    """The score of the corrupted prompt with each of the clean one's activations put in.

    `at` is "resid_pre", "resid_mid", "resid_post", "attn_out" or "mlp_out" (layer × position), or
    "z", "q", "k", "v" or "pattern" (layer × head). The prompts must be equally many tokens long.
    Scores are read at the last position; `Grid.normalized()` makes 0 the corrupted and 1 the clean
    prompt's score.
    """
    point = _point(at)
    good, bad = _prompts(model, clean, corrupted)
    source = model.forward(good, HookSpec().capture(point))
    axis = next((a for a in point.axes if a in ("head", "kv_head")), "pos")
    name, dim = NAME[axis], point.axes.index(axis)
    layers, places = range(model.num_layers), range(source[point(0)].shape[dim])
    specs = [
        HookSpec().intervene(
            point(layer), Replace(source[point(layer)].select(dim, i), at=At(**{name: i}))
        )
        for layer, i in itertools.product(layers, places)
    ]
    scored = score_cells(model, bad, specs, metric)
    ids = model.read_prompt(bad).rows()[0]
    return Grid(
        title=f"{at} of the clean prompt, put into the corrupted one",
        metric=repr(metric),
        axes={"layer": tuple(layers), name: tuple(places)},
        labels={"pos": pieces_of(model, ids)} if name == "pos" else {},
        values=scored.scores.reshape(len(layers), len(places)),
        baseline=scored.baseline,
        reference=float(metric.score(model, source.output[0, -1])),
        options={"clean": text_of(model, good), "corrupted": text_of(model, bad), "at": at},
        manifest=scored.manifest,
    )


def _point(at: str) -> HookPoint:
    if at not in POINTS:
        raise InterventionError(
            f"at={at!r} cannot be patched; choose {', '.join(POINTS)}{did_you_mean(at, POINTS)}"
        )
    return POINTS[at]


def _prompts(model: MIModel, clean: Prompt, corrupted: Prompt) -> tuple[Tensor, Tensor]:
    """Both prompts as token ids [1 pos], equally long."""
    good, bad = model.read_prompt(clean).tokens, model.read_prompt(corrupted).tokens
    if len(good) != 1 or len(bad) != 1:
        raise InterventionError(
            f"patch compares one prompt with one other, not {len(good)} with {len(bad)}"
        )
    if good.shape != bad.shape:
        raise InterventionError(
            f"patching needs prompts of one length; the clean one has {good.shape[1]} tokens "
            f"({model.to_str_tokens(good)}), the corrupted one {bad.shape[1]} "
            f"({model.to_str_tokens(bad)})"
        )
    return good, bad
