# SPDX-License-Identifier: MIT OR Apache-2.0
"""Ways to break the engine, each in one place."""

from dataclasses import dataclass
from types import ModuleType

from torch_mi import model, prompts
from torch_mi.backends import transformer
from torch_mi.hooks import coordinates, interventions, trace
from torch_mi.nn import attention, mlp, norm, rotary, shared

Owner = type | ModuleType


@dataclass(frozen=True)
class Mutation:
    """One piece of source that becomes another."""

    what: str
    owner: Owner
    name: str
    old: str
    new: str
    family: str = "llama"
    changes: tuple[tuple[str, object], ...] = ()

    def __str__(self) -> str:
        return self.what.replace(" ", "-")


ATTENTION, BLOCK = attention.Attention, transformer.Block
MUTATIONS = (
    Mutation(
        "the mask is not applied again after scores were edited",
        ATTENTION,
        "explicit",
        "if tap.edits(HookPoint.AttnScores):\n",
        "if False:\n",
    ),
    Mutation(
        "the mask is not applied again after the pattern was edited",
        ATTENTION,
        "explicit",
        "if tap.edits(HookPoint.AttnPattern) or pattern.requires_grad:",
        "if False:",
    ),
    Mutation(
        "scores are capped after the knockout",
        ATTENTION,
        "explicit",
        "blind = None",
        "blind = None; scores = softcap(scores, self.softcap)",
        "gemma2",
    ),
    Mutation(
        "query heads take turns with key heads",
        ATTENTION,
        "explicit",
        "k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)",
        "k.repeat(1, groups, 1, 1), v.repeat(1, groups, 1, 1)",
    ),
    Mutation("scores are not scaled", ATTENTION, "explicit", "mul_(self.scale)", "mul_(1.0)"),
    Mutation(
        "the fused kernel scales in its own way",
        ATTENTION,
        "fused",
        "scale=self.scale",
        "scale=None",
        "gemma2",
        (("attn_logit_softcapping", None),),
    ),
    Mutation(
        "the fused kernel sees all", ATTENTION, "fused", "is_causal=mask is None", "is_causal=False"
    ),
    Mutation(
        "the fused kernel has no window", ATTENTION, "fused", "if not plain or", "if", "mistral"
    ),
    Mutation("a prefix comes last", ATTENTION, "forward", "[past[0], k]", "[k, past[0]]"),
    Mutation("values are forgotten", ATTENTION, "forward", "(k, v)\n", "(k, k)\n"),
    Mutation("keys are not turned", ATTENTION, "forward", "shared.rotate(k)", "k"),
    Mutation(
        "an edit of results drops the bias", ATTENTION, "output", "result + self.o_bias", "result"
    ),
    Mutation(
        "shares of heads are mixed up", ATTENTION, "shares", "z, weight)", "z.flip(2), weight)"
    ),
    Mutation(
        "blind rows are uniform",
        attention,
        "probabilities",
        ".softmax(-1).masked_fill(blind, 0)",
        ".softmax(-1)",
    ),
    Mutation(
        "caps are forgotten", attention, "softcap", "torch.tanh(x / cap) * cap", "x", "gemma2"
    ),
    Mutation(
        "a window one too wide", shared.Sight, "_visible", "- window)", "- window - 1)", "mistral"
    ),
    Mutation(
        "a window one too narrow", shared.Sight, "_visible", "- window)", "- window + 1)", "mistral"
    ),
    Mutation(
        "queries look one ahead",
        shared.Sight,
        "_visible",
        "key[:, None, :] <= key[:, self.seen :, None]",
        "key[:, None, :] <= key[:, self.seen :, None] + 1",
    ),
    Mutation(
        "a prefix is not counted",
        shared.Sight,
        "_visible",
        "key[:, None, :] <= key[:, self.seen :, None]",
        "key[:, None, :] <= key[:, : self.queries, None]",
    ),
    Mutation(
        "padding is seen", shared.Sight, "_visible", "visible & self.padding[:, None, :]", "visible"
    ),
    Mutation(
        "padding is no reason for a mask", shared.Sight, "plain", "self.padding is None and", ""
    ),
    Mutation(
        "norms add one to nothing",
        norm.Norm,
        "gain",
        "(1 + self.weight.float())",
        "self.weight.float()",
        "gemma",
    ),
    Mutation(
        "layer norms keep the mean",
        norm.Norm,
        "forward",
        "h = h - h.mean(-1, keepdim=True)",
        "pass",
        "starcoder2",
    ),
    Mutation("norms forget eps", norm.Norm, "forward", "mean_square + self.eps", "mean_square"),
    Mutation("the gate is not gated", mlp.Mlp, "forward", "gated * tap", "gated + tap"),
    Mutation(
        "what is added is seen before its norm",
        BLOCK,
        "forward",
        "attn, carry = self.attn(h, shared, tap, past)",
        "attn, carry = self.attn(h, shared, tap, past); attn = tap(HookPoint.AttnOut, attn)",
        "gemma2",
    ),
    Mutation(
        "a layer skips its MLP",
        BLOCK,
        "forward",
        "x + tap(HookPoint.MlpOut, mlp)",
        "x + 0 * tap(HookPoint.MlpOut, mlp)",
    ),
    Mutation(
        "embeddings are not scaled",
        transformer.Transformer,
        "embed",
        "x * torch.tensor",
        "x + 0 * torch.tensor",
        "gemma",
    ),
    Mutation("pairs turn backwards", rotary.Rotary, "tables", "[-sin, sin]", "[sin, -sin]"),
    Mutation(
        "all of a head turns",
        rotary.Rotary,
        "apply_to",
        "x[..., half:dim], x[..., :half]",
        "x[..., :half], x[..., half:dim]",
        "phi3",
    ),
    Mutation(
        "positions start anew after a prefix",
        prompts,
        "_counted",
        "last.amax(1, keepdim=True) + steps",
        "steps",
    ),
    Mutation(
        "captures are taken before the edits",
        trace.Site,
        "__call__",
        "if self.before:\n",
        "if self.after:\n        self.value = x\n        self.after = False\n    if self.before:\n",
    ),
    Mutation(
        "edits are made twice",
        trace.Site,
        "__call__",
        "x = new if",
        "new = edit.edit(new, self.hook)\n        x = new if",
    ),
    Mutation(
        "receipts are not kept", trace.Receipt, "record", "self.times += 1", "self.times += 0"
    ),
    Mutation(
        "an edit spills over its place",
        coordinates.Selection,
        "put",
        "out[self.index] = part",
        "out[...] = part.mean()",
    ),
    Mutation("a knockout only dampens", interventions.Knockout, "edit", "-torch.inf", "-5.0"),
    Mutation(
        "a run from the middle starts at the bottom",
        model.MIModel,
        "_layers",
        "range(first, last)",
        "range(0, last)",
    ),
    Mutation(
        "a run does not stop",
        model.MIModel,
        "_layers",
        "range(first, last)",
        "range(first, self.num_layers)",
    ),
    Mutation(
        "no graph is ever built",
        model.MIModel,
        "forward",
        "set_grad_enabled(grad)",
        "set_grad_enabled(False)",
    ),
    Mutation(
        "a graph is always built",
        model.MIModel,
        "forward",
        "set_grad_enabled(grad)",
        "set_grad_enabled(True)",
    ),
    Mutation(
        "watching turns the fused kernel on",
        ATTENTION,
        "forward",
        "looked_at or shared.explicit",
        "not looked_at",
    ),
)
