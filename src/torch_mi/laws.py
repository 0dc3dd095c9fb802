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
from torch_mi.hooks.interventions import Add, Intervention, Knockout, Replace, Scale
from torch_mi.hooks.point import Hook, HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.model import MIModel
from torch_mi.partial import stream

AXES = ("pos", "query", "key", "source")
"""Axes that are as long as the text."""
TRIES = 5
"""Ever smaller steps that are taken in search of one across which no token changes its experts, and
nothing is clipped or cut off."""


def every_hook_fires(model: MIModel, tokens: Tensor) -> None:
    """Every place on offer is reached, with the shape that was declared."""
    seen = model.forward(tokens, _everything(model))
    for hook in model.hooks:
        shape, found = _shape(model, hook, tokens), tuple(seen[hook].shape)
        _must(found == shape, f"{hook!r} is declared {shape} and was {found}")
    _must(len(seen) == len(model.hooks), "a run captured more places than the model offers")


def watching_changes_nothing(model: MIModel, tokens: Tensor) -> None:
    """Explicit runs give the same bits, watched or not; fused ones agree with them."""
    bare = model.forward(tokens, attention="explicit").output
    seen = model.forward(tokens, _everything(model), attention="explicit").output
    _must(torch.equal(bare, seen), "capturing everything changed the logits")
    for hook in model.hooks:
        seen = model.forward(tokens, HookSpec().capture(hook), attention="explicit").output
        _must(torch.equal(bare, seen), f"capturing {hook!r} changed the logits")
    _agree("fused logits", model.forward(tokens).output, bare)
    _agree("watched logits", model.forward(tokens, _everything(model)).output, bare)


def identity_edits_change_nothing(model: MIModel, tokens: Tensor) -> None:
    """Times one, plus zero, and a value in its own place leave a run as it was."""
    plain = model.forward(tokens, _everything(model), attention="explicit")
    for point in _editable(model):
        places = _places(model, point)
        kinds: dict[str, list[Intervention]] = {
            "Scale(1)": [Scale(1.0) for _ in places],
            "Add(0)": [Add(torch.zeros(())) for _ in places],
            "Replace(itself)": [Replace(plain[hook]) for hook in places],
        }
        for kind, edits in kinds.items():
            spec = _everything(model)
            for hook, edit in zip(places, edits, strict=True):
                spec.intervene(hook, edit)
            edited = model.forward(tokens, spec, attention="explicit")
            for name, value in plain.items():
                _agree(f"{name} after {kind} at {point.name}", edited[name], value)
            fired = [receipt.times for receipt in edited.receipts]
            _must(fired == [1] * len(places), f"{kind} at {point.name} fired {fired} times")


def the_residual_stream_adds_up(model: MIModel, tokens: Tensor) -> None:
    """What layers write is what the stream gains, in plain runs and in edited ones."""
    stream = (HookPoint.ResidPre, HookPoint.AttnOut, HookPoint.ResidMid)
    rest = (HookPoint.MlpOut, HookPoint.ResidPost)
    if not {*stream, *rest} <= model.backend.hook_points:
        return
    edits = HookSpec().intervene(HookPoint.AttnOut, Scale(1.5)).intervene(rest[0], Scale(-0.5))
    for spec in (HookSpec(), edits):
        seen = model.forward(tokens, HookSpec().capture(*stream, *rest) | spec)
        for layer in range(model.num_layers):
            before, attn, mid = (seen[point(layer)] for point in stream)
            mlp, after = (seen[point(layer)] for point in rest)
            _must(torch.equal(before + attn, mid), f"ResidPre + AttnOut ≠ ResidMid in {layer}")
            _must(torch.equal(mid + mlp, after), f"ResidMid + MlpOut ≠ ResidPost in {layer}")
            last = seen[HookPoint.ResidPost(layer - 1)] if layer else before
            _must(torch.equal(before, last), f"what leaves layer {layer - 1} enters no other")


def the_parts_add_up(model: MIModel, tokens: Tensor) -> None:
    """Experts make up the MLP's output, and heads with a bias attention's."""
    whole, part, shared = HookPoint.MlpRawOut, HookPoint.ExpertOut, HookPoint.SharedExpertOut
    seen = model.forward(tokens, _everything(model))
    for layer in range(model.num_layers):
        points = model.backend.layer_points(layer)
        if part in points:
            made = seen[part(layer)].sum(2)
            made = made + seen[shared(layer)] if shared in points else made
            _agree(f"sums of the experts of layer {layer}", made, seen[whole(layer)])
        if HookPoint.AttnResult in points:
            made = _written(model, seen, layer)
            _agree(f"sums of the heads of layer {layer}", made, seen[HookPoint.AttnOut(layer)])


def _written(model: MIModel, seen: HookCache, layer: int) -> Tensor:
    """What the shares of a layer's heads add to the stream: summed, with bias, norm and scale."""
    made, how = seen[HookPoint.AttnResult(layer)].sum(2), model.backend.attention_written(layer)
    made = made if how.bias is None else made + how.bias
    if how.norm is not None:
        made = how.norm.linear(made, seen[HookPoint.Ln1PostScale(layer)])
        made = made if how.norm.bias is None else made + how.norm.bias
    return made * how.scale


def edits_reach_no_earlier_position(model: MIModel, tokens: Tensor) -> None:
    """What is done at a position changes it and what follows, even if it tries to look ahead."""
    at = tokens.shape[1] // 2
    plain = model.forward(tokens, attention="explicit").output
    changed = torch.cat([tokens[:, :at], (tokens[:, at:] + 1) % model.vocab_size], 1)
    _agree("logits before a new token", _logits(model, changed)[:, :at], plain[:, :at])
    dice = torch.Generator().manual_seed(0)
    for point in [p for p in _editable(model) if {"pos", "query"} & set(p.axes)]:
        axis = "query" if "query" in point.axes else "pos"
        index = At(query=at) if axis == "query" else At(pos=at)
        shape = _shape(model, _places(model, point)[0], tokens)
        rest = [size for name, size in zip(point.axes, shape, strict=True) if name != axis]
        noise = torch.rand(rest, generator=dice)
        for edit in (Replace(noise + 0.1, at=index), Add(noise, at=index)):
            edited = _logits(model, tokens, HookSpec().intervene(point, edit))
            what = f"{edit!r} at {point.name}"
            _agree(f"logits before {what}", edited[:, :at], plain[:, :at])
            _must(not torch.equal(edited[:, at:], plain[:, at:]), f"{what} changed nothing")
        whole = HookSpec().intervene(point, Replace(torch.rand(shape, generator=dice) + 0.1))
        what = f"logits before a new token, with all of {point.name} replaced"
        ahead, behind = _logits(model, changed, whole), _logits(model, tokens, whole)
        _agree(what, ahead[:, :at], behind[:, :at])


def any_layer_can_be_resumed(model: MIModel, tokens: Tensor) -> None:
    """A run from a layer's residual stream ends as the whole run did; so does one cut in two."""
    plain = model.forward(tokens, _everything(model), attention="explicit")
    for layer in range(model.num_layers):
        start = Residual(layer, stream(model, plain, layer))
        spec = HookSpec().capture(HookPoint.ResidPost)
        resumed = model.forward(start, spec, attention="explicit")
        _agree(f"logits of a run from layer {layer}", resumed.output, plain.output, 1e-6)
        _must(len(resumed) == model.num_layers - layer, f"a run from {layer} ran other layers")
    for layer in range(model.num_layers + 1):
        door = model.forward(tokens, stop=layer, attention="explicit").residual
        _must(door.layer == layer, f"a run to layer {layer} stopped at {door.layer}")
        ended = model.forward(door, attention="explicit").output
        _agree(f"logits of a run cut at layer {layer}", ended, plain.output, 1e-6)


def a_prefix_and_the_rest_are_the_whole(model: MIModel, tokens: Tensor) -> None:
    """Cut anywhere, or run token by token, a text gives the same logits, stream and patterns."""
    pos = tokens.shape[1]
    if model.backend.grows_differently(1, pos):
        return
    spec = _everything(model)
    whole = model.forward(tokens, spec)
    for cut in range(1, pos):
        prefix = model.forward(tokens[:, :cut], after=Prefix()).prefix
        _same_tail(model.forward(tokens[:, cut:], spec, after=prefix), whole, cut)
    prefix, steps = Prefix(), list[Tensor]()
    for i in range(pos):
        step = model.forward(tokens[:, i : i + 1], after=prefix)
        prefix = step.prefix
        steps.append(step.output)
    _agree("logits of a run token by token", torch.cat(steps, 1), whole.output)


def _same_tail(rest: HookCache, whole: HookCache, cut: int) -> None:
    _agree(f"logits after a prefix of {cut}", rest.output, whole.output[:, cut:])
    for name, value in whole.items():
        hook = Hook.parse(name)
        tail = value
        for axis in [i for i, a in enumerate(hook.point.axes) if a in ("pos", "query", "source")]:
            tail = tail.narrow(axis, cut, value.shape[axis] - cut)
        _agree(f"{hook!r} after a prefix of {cut}", rest[hook], tail)


def knocked_out_edges_are_exactly_gone(model: MIModel, tokens: Tensor) -> None:
    """A barred edge has no probability, the others share it all, and a blind row takes nothing."""
    if HookPoint.AttnScores not in _editable(model):
        return
    at, points = tokens.shape[1] // 2, (HookPoint.AttnPattern, HookPoint.ResidPre)

    def without(edges: At) -> HookCache:
        spec = HookSpec().capture(*points).intervene(HookPoint.AttnScores, Knockout(at=edges))
        return model.forward(tokens, spec, grad=True)

    seen, dark = without(At(query=at, key=at)), without(At(query=at))
    for layer in range(model.num_layers):
        pattern = seen[HookPoint.AttnPattern(layer)]
        _must(bool((pattern[:, :, at, at] == 0).all()), f"a barred edge of layer {layer} is open")
        _agree(f"sums of the rows of layer {layer}", pattern.sum(-1), torch.ones(()))
        row = dark[HookPoint.AttnPattern(layer)][:, :, at]
        _must(bool((row == 0).all()), f"a row of layer {layer} that may see nothing sees something")
    _must(bool(dark.output.isfinite().all()), "a row that may see nothing made logits infinite")
    slope = _slopes(dark.output.sum(), [dark[HookPoint.ResidPre(0)]])[0]
    _must(slope is None or bool(slope.isfinite().all()), "a blind row made gradients infinite")


def padding_is_not_seen(model: MIModel, tokens: Tensor) -> None:
    """Rows of a padded batch, filled up on either side, run as they run alone."""
    pos = tokens.shape[1]
    lengths = [max(1, pos - 3 * i) for i in range(len(tokens))]
    if model.backend.grows_differently(min(lengths), pos):
        return
    left = torch.tensor([[i >= pos - n for i in range(pos)] for n in lengths])
    spec = _everything(model)
    for side, mask in {"left": left, "right": left.flip(1)}.items():
        padded = tokens.masked_fill(~mask, 0)
        ran = model.forward(padded, spec, attention_mask=mask)
        fused = model.forward(padded, attention_mask=mask).output
        _must(bool(ran.output.isfinite().all()), f"{side} padding made logits infinite")
        for row, real in enumerate(mask):
            alone = model.forward(padded[row, real], spec)
            what = f"of row {row}, padded on the {side}"
            _agree(f"fused logits {what}", fused[row, real], alone.output[0])
            for name, value in alone.items():
                axes = Hook.parse(name).point.axes
                found = ran[name][row]
                for axis in [i - 1 for i, a in enumerate(axes) if a in AXES]:
                    found = found.index_select(axis, real.nonzero().flatten())
                _agree(f"{name} {what}", found, value[0])


def captures_can_be_differentiated(model: MIModel, tokens: Tensor) -> None:
    """The gradient at every place is what a small change there does; without `grad` is no graph."""
    bare = model.forward(tokens, _everything(model))
    _must(not any(x.requires_grad for x in bare.values()), "a run without grad built a graph")
    seen = model.forward(tokens, _everything(model), grad=True, attention="explicit")
    dice = torch.Generator().manual_seed(0)
    weights = torch.randn(seen.output.shape, generator=dice)
    hooks = [hook for hook, value in seen.items() if value.is_floating_point()]
    hooks = [hook for hook in hooks if not Hook.parse(hook).point.stepwise]  # many tensors, stacked
    slopes = _slopes((seen.output * weights).sum(), [seen[hook] for hook in hooks])
    for hook, slope in zip(hooks, slopes, strict=True):
        if slope is None:
            raise AssertionError(f"the logits cannot be differentiated by {hook!r}")
        _must(bool(slope.isfinite().all()), f"the gradient at {hook!r} is not finite")
        if Hook.parse(hook).point not in _editable(model):
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
        _must(not mismatch, f"the slope at {hook!r} {mismatch}")


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
    _agree("project_to_vocab", model.project_to_vocab(seen[last]), seen.output)


def norms_divide_by_their_scale(model: MIModel, tokens: Tensor) -> None:
    """What a norm shows as normalised, times what it divides by, is what it read, mean aside."""
    last = model.num_layers - 1
    pairs: list[tuple[str, str, str]] = [
        (HookPoint.FinalScale, HookPoint.FinalNormalized, HookPoint.ResidPost(last))
    ]
    for layer in range(model.num_layers):
        points = model.backend.layer_points(layer)
        for scale, normalised, read in (
            (HookPoint.Ln1Scale, HookPoint.Ln1Normalized, HookPoint.ResidPre),
            (HookPoint.Ln2PostScale, HookPoint.Ln2PostNormalized, HookPoint.MlpRawOut),
        ):
            if {scale, normalised, read} <= points:
                pairs.append((scale(layer), normalised(layer), read(layer)))
    for scale, normalised, read in pairs:
        if scale not in model.hooks or normalised not in model.hooks:
            continue
        seen = model.forward(tokens, HookSpec().capture(scale, normalised, read))
        whole = seen[read].float()
        rest, mean = whole - seen[normalised] * seen[scale], whole.mean(-1, keepdim=True)
        centred = bool((rest - mean).abs().max() < rest.abs().max())
        wanted = mean.expand_as(rest) if centred else torch.zeros_like(rest)
        _agree(f"what {read!r} loses in its norm", rest, wanted)


def heads_take_up_values_by_their_pattern(model: MIModel, tokens: Tensor) -> None:
    """Each head's `z` is its pattern times the values that it shares with its group."""
    pattern, values, taken = HookPoint.AttnPattern, HookPoint.AttnV, HookPoint.AttnZ
    if not {pattern, values, taken} <= model.backend.hook_points:
        return
    seen = model.forward(tokens, HookSpec().capture(pattern, values, taken))
    for layer in range(model.num_layers):
        v = seen[values(layer)]
        each = v.repeat_interleave(model.num_heads // v.shape[2], 2)
        z = torch.einsum("bhqk,bkhd->bqhd", seen[pattern(layer)], each)
        _agree(f"z of layer {layer}", seen[taken(layer)], z)


def heads_read_each_for_themselves(model: MIModel, tokens: Tensor) -> None:
    """One head's input, replaced, makes that head's queries, keys or values and no other's."""
    dice = torch.Generator().manual_seed(0)
    for reads, makes in (
        (HookPoint.AttnQIn, HookPoint.AttnQ),
        (HookPoint.AttnKIn, HookPoint.AttnK),
        (HookPoint.AttnVIn, HookPoint.AttnV),
    ):
        if not {reads, makes} <= set(_editable(model)):
            continue
        for hook in _places(model, makes):
            layer = hook.layer or 0
            spec, heads = HookSpec().capture(hook), _shape(model, hook, tokens)[2]
            other = torch.randn(*tokens.shape, model.hidden_size, generator=dice)
            all_other = spec | HookSpec().intervene(HookPoint.AttnIn(layer), Replace(other))
            plain, moved = (model.forward(tokens, s)[hook] for s in (spec, all_other))
            for head in {0, heads - 1}:
                edit = Replace(other, at=At(head=head))
                found = model.forward(tokens, spec | HookSpec().intervene(reads(layer), edit))[hook]
                wanted = plain.clone()
                wanted[:, :, head] = moved[:, :, head]
                _agree(f"{hook!r} with the input of head {head} replaced", found, wanted)


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


def _everything(model: MIModel) -> HookSpec:
    return HookSpec().capture(*(p for p in HookPoint if p in model.backend.hook_points))


def _editable(model: MIModel) -> list[HookPoint]:
    return [p for p in HookPoint if p in model.backend.hook_points - model.backend.read_only]


def _places(model: MIModel, point: HookPoint) -> list[Hook]:
    return [hook for hook in model.hooks if hook.point is point]


def _logits(model: MIModel, tokens: Tensor, spec: HookSpec | None = None) -> Tensor:
    return model.forward(tokens, spec, attention="explicit").output


def _shape(model: MIModel, hook: Hook, tokens: Tensor) -> tuple[int, ...]:
    batch, pos = tokens.shape
    runs = {"batch": batch} | dict.fromkeys(AXES, pos)
    return tuple(axis if isinstance(axis, int) else runs[axis] for axis in model.hooks[hook])


def _slopes(end: Tensor, at: list[Tensor]) -> tuple[Tensor | None, ...]:
    _must(end.requires_grad, "a run with grad built no graph")
    return torch.autograd.grad(end, at, allow_unused=True)


def _must(holds: bool, what: str) -> None:  # noqa: FBT001 - it reads as a sentence
    if not holds:
        raise AssertionError(what)


def _agree(what: str, found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    """Equality up to `tolerance` of the largest finite entry."""
    if torch.equal(found, wanted):
        return
    wanted = wanted.expand_as(found) if wanted.ndim == 0 else wanted
    size = wanted.nan_to_num(neginf=0).abs().max().item()
    torch.testing.assert_close(
        found, wanted, rtol=0, atol=tolerance * max(1.0, size), msg=lambda m: f"{what}: {m}"
    )
