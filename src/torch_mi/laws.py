# SPDX-License-Identifier: MIT OR Apache-2.0
"""The laws that any backend must obey; `torch_mi.testing` is where to find them.

A law takes a model and token ids [batch pos], three or more long, and raises `AssertionError` where
the model breaks it. A law whose hook points a backend does not offer has nothing to say about it
and passes; of a backend that is not causal, leave out `edits_reach_no_earlier_position` and
`a_prefix_and_the_rest_are_the_whole`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from torch_mi.cache import HookCache, Prefix, Residual
from torch_mi.hooks.coordinates import At
from torch_mi.hooks.interventions import Add, Replace, Scale
from torch_mi.hooks.point import Hook, HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.laws_parts import (
    heads_read_each_for_themselves,
    heads_take_up_values_by_their_pattern,
    knocked_out_edges_are_exactly_gone,
    norms_divide_by_their_scale,
    the_parts_add_up,
    the_residual_stream_adds_up,
)
from torch_mi.laws_shared import (
    AXES,
    agree,
    editable,
    everything,
    logits_of,
    must,
    places,
    shape_of,
    slopes_of,
)
from torch_mi.model import MIModel
from torch_mi.partial import stream

TRIES = 5
"""Ever smaller steps that are taken in search of one across which no token changes its experts, and
nothing is clipped or cut off."""


def every_hook_fires(model: MIModel, tokens: Tensor) -> None:
    """Every place on offer is reached, with the shape that was declared."""
    seen = model.forward(tokens, everything(model))
    for hook in model.hooks:
        shape, found = shape_of(model, hook, tokens), tuple(seen[hook].shape)
        must(found == shape, f"{hook!r} is declared {shape} and was {found}")
    must(len(seen) == len(model.hooks), "a run captured more places than the model offers")


def watching_changes_nothing(model: MIModel, tokens: Tensor) -> None:
    """Explicit runs give the same bits, watched or not; fused ones agree with them."""
    bare = model.forward(tokens, attention="explicit").output
    seen = model.forward(tokens, everything(model), attention="explicit").output
    must(torch.equal(bare, seen), "capturing everything changed the logits")
    for i, point in enumerate(dict.fromkeys(hook.point for hook in model.hooks)):
        there = places(model, point)
        hook = there[i % len(there)]  # one layer is watched, and the others are not
        seen = model.forward(tokens, HookSpec().capture(hook), attention="explicit").output
        must(torch.equal(bare, seen), f"capturing {hook!r} changed the logits")
    agree("fused logits", model.forward(tokens).output, bare)
    agree("watched logits", model.forward(tokens, everything(model)).output, bare)


def identity_edits_change_nothing(model: MIModel, tokens: Tensor) -> None:
    """A value in its own place, times one, plus zero leave a run as it was, one after the other."""
    plain = model.forward(tokens, everything(model), attention="explicit")
    for point in editable(model):
        there, spec = places(model, point), everything(model)
        for hook in there:
            for edit in (Replace(plain[hook]), Scale(1.0), Add(torch.zeros(()))):
                spec.intervene(hook, edit)
        edited = model.forward(tokens, spec, attention="explicit")
        for name, value in plain.items():
            agree(f"{name} after edits of {point.name} that change nothing", edited[name], value)
        fired = [receipt.times for receipt in edited.receipts]
        must(fired == [1] * 3 * len(there), f"three edits at {point.name} fired {fired} times")


def edits_reach_no_earlier_position(model: MIModel, tokens: Tensor) -> None:
    """What is done at a position changes it and what follows, even if it tries to look ahead."""
    at = tokens.shape[1] // 2
    plain = model.forward(tokens, attention="explicit").output
    changed = torch.cat([tokens[:, :at], (tokens[:, at:] + 1) % model.vocab_size], 1)
    agree("logits before a new token", logits_of(model, changed)[:, :at], plain[:, :at])
    dice = torch.Generator().manual_seed(0)
    for point in [p for p in editable(model) if {"pos", "query"} & set(p.axes)]:
        axis = "query" if "query" in point.axes else "pos"
        index = At(query=at) if axis == "query" else At(pos=at)
        shape = shape_of(model, places(model, point)[0], tokens)
        rest = [size for name, size in zip(point.axes, shape, strict=True) if name != axis]
        noise = torch.rand(rest, generator=dice)
        for edit in (Replace(noise + 0.1, at=index), Add(noise, at=index)):
            edited = logits_of(model, tokens, HookSpec().intervene(point, edit))
            what = f"{edit!r} at {point.name}"
            agree(f"logits before {what}", edited[:, :at], plain[:, :at])
            must(not torch.equal(edited[:, at:], plain[:, at:]), f"{what} changed nothing")
        whole = HookSpec().intervene(point, Replace(torch.rand(shape, generator=dice) + 0.1))
        what = f"logits before a new token, with all of {point.name} replaced"
        ahead, behind = logits_of(model, changed, whole), logits_of(model, tokens, whole)
        agree(what, ahead[:, :at], behind[:, :at])


def any_layer_can_be_resumed(model: MIModel, tokens: Tensor) -> None:
    """A run from a layer's residual stream ends as the whole run did; so does one cut in two."""
    plain = model.forward(tokens, everything(model), attention="explicit")
    for layer in range(model.num_layers):
        start = Residual(layer, stream(model, plain, layer))
        spec = HookSpec().capture(HookPoint.ResidPost)
        resumed = model.forward(start, spec, attention="explicit")
        agree(f"logits of a run from layer {layer}", resumed.output, plain.output, 1e-6)
        must(len(resumed) == model.num_layers - layer, f"a run from {layer} ran other layers")
    for layer in range(model.num_layers + 1):
        door = model.forward(tokens, stop=layer, attention="explicit").residual
        must(door.layer == layer, f"a run to layer {layer} stopped at {door.layer}")
        ended = model.forward(door, attention="explicit").output
        agree(f"logits of a run cut at layer {layer}", ended, plain.output, 1e-6)


def a_prefix_and_the_rest_are_the_whole(model: MIModel, tokens: Tensor) -> None:
    """Cut anywhere, or run token by token, a text gives the same logits, stream and patterns."""
    pos = tokens.shape[1]
    if model.backend.grows_differently(1, pos):
        return
    spec = everything(model)
    whole = model.forward(tokens, spec)
    for cut in range(1, pos):
        prefix = model.forward(tokens[:, :cut], after=Prefix()).prefix
        _same_tail(model.forward(tokens[:, cut:], spec, after=prefix), whole, cut)
    prefix, steps = Prefix(), list[Tensor]()
    for i in range(pos):
        step = model.forward(tokens[:, i : i + 1], after=prefix)
        prefix = step.prefix
        steps.append(step.output)
    agree("logits of a run token by token", torch.cat(steps, 1), whole.output)


def _same_tail(rest: HookCache, whole: HookCache, cut: int) -> None:
    agree(f"logits after a prefix of {cut}", rest.output, whole.output[:, cut:])
    for name, value in whole.items():
        hook = Hook.parse(name)
        tail = value
        for axis in [i for i, a in enumerate(hook.point.axes) if a in ("pos", "query", "source")]:
            tail = tail.narrow(axis, cut, value.shape[axis] - cut)
        agree(f"{hook!r} after a prefix of {cut}", rest[hook], tail)


def padding_is_not_seen(model: MIModel, tokens: Tensor) -> None:
    """Rows of a padded batch, filled up on either side, run as they run alone."""
    pos = tokens.shape[1]
    lengths = [max(1, pos - 3 * i) for i in range(len(tokens))]
    if model.backend.grows_differently(min(lengths), pos):
        return
    left = torch.tensor([[i >= pos - n for i in range(pos)] for n in lengths])
    spec = everything(model)
    for side, mask in {"left": left, "right": left.flip(1)}.items():
        padded = tokens.masked_fill(~mask, 0)
        ran = model.forward(padded, spec, attention_mask=mask)
        fused = model.forward(padded, attention_mask=mask).output
        must(bool(ran.output.isfinite().all()), f"{side} padding made logits infinite")
        for row, real in enumerate(mask):
            alone = model.forward(padded[row, real], spec)
            what = f"of row {row}, padded on the {side}"
            agree(f"fused logits {what}", fused[row, real], alone.output[0])
            for name, value in alone.items():
                axes = Hook.parse(name).point.axes
                found = ran[name][row]
                for axis in [i - 1 for i, a in enumerate(axes) if a in AXES]:
                    found = found.index_select(axis, real.nonzero().flatten())
                agree(f"{name} {what}", found, value[0])


def captures_can_be_differentiated(model: MIModel, tokens: Tensor) -> None:
    """The gradient at every place is what a small change there does; without `grad` is no graph."""
    bare = model.forward(tokens, everything(model))
    must(not any(x.requires_grad for x in bare.values()), "a run without grad built a graph")
    seen = model.forward(tokens, everything(model), grad=True, attention="explicit")
    dice = torch.Generator().manual_seed(0)
    weights = torch.randn(seen.output.shape, generator=dice)
    hooks = [hook for hook, value in seen.items() if value.is_floating_point()]
    hooks = [hook for hook in hooks if not Hook.parse(hook).point.stepwise]  # many tensors, stacked
    slopes = slopes_of((seen.output * weights).sum(), [seen[hook] for hook in hooks])
    for hook, slope in zip(hooks, slopes, strict=True):
        if slope is None:
            raise AssertionError(f"the logits cannot be differentiated by {hook!r}")
        must(bool(slope.isfinite().all()), f"the gradient at {hook!r} is not finite")
        if Hook.parse(hook).point not in editable(model):
            continue
        mismatch, spread = "", 2e-3 * _spread(seen[hook].detach().nan_to_num(neginf=0))
        for halved in range(TRIES):
            step = torch.randn(slope.shape, generator=dice)
            size = spread / float(step.std()) / 2**halved
            up, down = (_choosing(model, tokens, hook, s * size * step) for s in (1.0, -1.0))
            if not all(torch.equal(up[name], down[name]) for name in up):
                continue
            rise = ((up.output.double() - down.output.double()) * weights).sum()
            mismatch = _unlike(float(rise) / (2 * size), slope * step)
            if not mismatch:
                break
        must(not mismatch, f"the slope at {hook!r} {mismatch}")


def _spread(x: Tensor) -> float:
    """How far the entries of an activation are from each other, or from zero if they are equal."""
    return float(x.std()) or float(x.abs().max())


def _unlike(found: float, shares: Tensor) -> str:
    """How a slope that was found is not what a gradient says, share by share; empty if it is."""
    wanted, spread = float(shares.double().sum()), float(shares.square().sum().sqrt())
    close = abs(found - wanted) <= 0.03 * (spread + abs(wanted))
    return "" if close else f"is {found}, its gradient says {wanted}"


def _choosing(model: MIModel, tokens: Tensor, hook: str, delta: Tensor) -> HookCache:
    """A run with `delta` added, and which experts it chose."""
    choices = model.backend.hook_points & {HookPoint.ExpertIndices}
    spec = HookSpec().capture(*choices).intervene(hook, Add(delta))
    return model.forward(tokens, spec, attention="explicit")


def the_last_residual_gives_the_logits(model: MIModel, tokens: Tensor) -> None:
    """Unembedding what leaves the last layer is what the model does."""
    last = HookPoint.ResidPost(model.num_layers - 1)
    seen = model.forward(tokens, HookSpec().capture(last))
    agree("project_to_vocab", model.project_to_vocab(seen[last]), seen.output)


Law = Callable[[MIModel, Tensor], None]

LAWS: tuple[Law, ...] = (
    every_hook_fires,
    watching_changes_nothing,
    identity_edits_change_nothing,
    the_residual_stream_adds_up,
    the_parts_add_up,
    edits_reach_no_earlier_position,
    any_layer_can_be_resumed,
    a_prefix_and_the_rest_are_the_whole,
    knocked_out_edges_are_exactly_gone,
    padding_is_not_seen,
    captures_can_be_differentiated,
    the_last_residual_gives_the_logits,
    norms_divide_by_their_scale,
    heads_take_up_values_by_their_pattern,
    heads_read_each_for_themselves,
)
