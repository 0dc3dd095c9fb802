# SPDX-License-Identifier: MIT OR Apache-2.0
"""Laws of the parts of a layer: they add up, norms divide, heads read and write for themselves."""

import torch
from torch import Tensor

from torch_mi.cache import HookCache
from torch_mi.hooks.coordinates import At
from torch_mi.hooks.interventions import Knockout, Replace, Scale
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.laws_shared import agree, editable, everything, must, places, shape_of, slopes_of
from torch_mi.model import MIModel


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
            must(torch.equal(before + attn, mid), f"ResidPre + AttnOut ≠ ResidMid in {layer}")
            must(torch.equal(mid + mlp, after), f"ResidMid + MlpOut ≠ ResidPost in {layer}")
            last = seen[HookPoint.ResidPost(layer - 1)] if layer else before
            must(torch.equal(before, last), f"what leaves layer {layer - 1} enters no other")


def the_parts_add_up(model: MIModel, tokens: Tensor) -> None:
    """Experts make up the MLP's output, and heads with a bias attention's."""
    whole, part, shared = HookPoint.MlpRawOut, HookPoint.ExpertOut, HookPoint.SharedExpertOut
    seen = model.forward(tokens, everything(model))
    for layer in range(model.num_layers):
        points = model.backend.layer_points(layer)
        if part in points:
            made = seen[part(layer)].sum(2)
            made = made + seen[shared(layer)] if shared in points else made
            agree(f"sums of the experts of layer {layer}", made, seen[whole(layer)])
        if HookPoint.AttnResult in points:
            made = _written(model, seen, layer)
            agree(f"sums of the heads of layer {layer}", made, seen[HookPoint.AttnOut(layer)])


def _written(model: MIModel, seen: HookCache, layer: int) -> Tensor:
    """What the shares of a layer's heads add to the stream: summed, with bias, norm and scale."""
    made, how = seen[HookPoint.AttnResult(layer)].sum(2), model.backend.attention_written(layer)
    made = made if how.bias is None else made + how.bias
    if how.norm is not None:
        made = how.norm.linear(made, seen[HookPoint.Ln1PostScale(layer)])
        made = made if how.norm.bias is None else made + how.norm.bias
    return made * how.scale


def knocked_out_edges_are_exactly_gone(model: MIModel, tokens: Tensor) -> None:
    """A barred edge has no probability, the others share it all, and a blind row takes nothing."""
    if HookPoint.AttnScores not in editable(model):
        return
    at, points = tokens.shape[1] // 2, (HookPoint.AttnPattern, HookPoint.ResidPre)

    def without(edges: At) -> HookCache:
        spec = HookSpec().capture(*points).intervene(HookPoint.AttnScores, Knockout(at=edges))
        return model.forward(tokens, spec, grad=True)

    seen, dark = without(At(query=at, key=at)), without(At(query=at))
    for layer in range(model.num_layers):
        pattern = seen[HookPoint.AttnPattern(layer)]
        must(bool((pattern[:, :, at, at] == 0).all()), f"a barred edge of layer {layer} is open")
        agree(f"sums of the rows of layer {layer}", pattern.sum(-1), torch.ones(()))
        row = dark[HookPoint.AttnPattern(layer)][:, :, at]
        must(bool((row == 0).all()), f"a row of layer {layer} that may see nothing sees something")
    must(bool(dark.output.isfinite().all()), "a row that may see nothing made logits infinite")
    slope = slopes_of(dark.output.sum(), [dark[HookPoint.ResidPre(0)]])[0]
    must(slope is None or bool(slope.isfinite().all()), "a blind row made gradients infinite")


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
        agree(f"what {read!r} loses in its norm", rest, wanted)


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
        agree(f"z of layer {layer}", seen[taken(layer)], z)


def heads_read_each_for_themselves(model: MIModel, tokens: Tensor) -> None:
    """One head's input, replaced, makes that head's queries, keys or values and no other's."""
    dice = torch.Generator().manual_seed(0)
    for reads, makes in (
        (HookPoint.AttnQIn, HookPoint.AttnQ),
        (HookPoint.AttnKIn, HookPoint.AttnK),
        (HookPoint.AttnVIn, HookPoint.AttnV),
    ):
        if not {reads, makes} <= set(editable(model)):
            continue
        for hook in places(model, makes):
            layer = hook.layer or 0
            spec, heads = HookSpec().capture(hook), shape_of(model, hook, tokens)[2]
            other = torch.randn(*tokens.shape, model.hidden_size, generator=dice)
            all_other = spec | HookSpec().intervene(HookPoint.AttnIn(layer), Replace(other))
            plain, moved = (model.forward(tokens, s)[hook] for s in (spec, all_other))
            for head in {0, heads - 1}:
                edit = Replace(other, at=At(head=head))
                found = model.forward(tokens, spec | HookSpec().intervene(reads(layer), edit))[hook]
                wanted = plain.clone()
                wanted[:, :, head] = moved[:, :, head]
                agree(f"{hook!r} with the input of head {head} replaced", found, wanted)
