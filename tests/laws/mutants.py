# SPDX-License-Identifier: MIT OR Apache-2.0
"""Ways to break the engine, each in one place."""

from dataclasses import dataclass
from types import ModuleType

from torch_mi import model, prompts
from torch_mi.backends import transformer
from torch_mi.hooks import coordinates, interventions, trace
from torch_mi.nn import attention, experts, latent, mlp, norm, rotary, shared

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
    case: str = ""
    """Which of the family's parity cases is the reference, if not its first."""

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
        "the fused kernel sees all",
        ATTENTION,
        "fused",
        "is_causal=mask is None and",
        "is_causal=False and",
    ),
    Mutation(
        "the fused kernel has no window", ATTENTION, "fused", "if not plain or", "if", "mistral"
    ),
    Mutation("a prefix comes last", ATTENTION, "remember", "[past[0], k]", "[k, past[0]]"),
    Mutation("values are forgotten", ATTENTION, "forward", "(k, v)\n", "(k, k)\n"),
    Mutation(
        "keys are not turned",
        ATTENTION,
        "remember",
        "shared.rotate(self.normed(self.norm_k, k, tap), self.rope)",
        "self.normed(self.norm_k, k, tap)",
    ),
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
        "a window one too wide",
        shared.Sight,
        "_visible",
        "apart < window",
        "apart <= window",
        "mistral",
    ),
    Mutation(
        "a window one too narrow",
        shared.Sight,
        "_visible",
        "apart < window",
        "apart < window - 1",
        "mistral",
    ),
    Mutation(
        "queries look one ahead",
        shared.Sight,
        "_visible",
        "<= query if",
        "<= query + 1 if",
    ),
    Mutation(
        "a prefix is not counted",
        shared.Sight,
        "_visible",
        "query = key[:, self.seen :, None]",
        "query = key[:, : self.queries, None]",
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
        "mid + mlp)",
        "mid + 0 * mlp)",
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
        "receipts are not kept",
        trace.Receipt,
        "record",
        "self.times += 0 if again else 1",
        "self.times += 0",
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
        "mix",
        "looked_at or shared.explicit",
        "not looked_at",
    ),
    Mutation(
        "biases by distance grow with it",
        transformer,
        "linear_biases",
        "return slope * (key",
        "return -slope * (key",
        "bloom",
    ),
    Mutation(
        "slopes are given out in another order",
        shared,
        "slopes",
        "every[1::2], every[::2]",
        "every[::2], every[1::2]",
        "bloom",
    ),
    Mutation(
        "biases by distance are not scaled",
        ATTENTION,
        "bias",
        "shared.bias * self.scale",
        "shared.bias",
        "falcon",
        case="falcon-rw",
    ),
    Mutation(
        "learned positions are not moved up",
        transformer.Transformer,
        "rows",
        "return positions + offset",
        "return positions",
        "opt",
    ),
    Mutation(
        "a parallel MLP reads what attention wrote",
        BLOCK,
        "forward",
        "x if self.parallel else mid",
        "mid",
        "gpt_neox",
    ),
    Mutation(
        "a parallel MLP reads past its norm",
        BLOCK,
        "forward",
        "h = normed if self.shares_norm else",
        "h = x if self.shares_norm else",
        "gptj",
    ),
    Mutation(
        "neighbours are not paired",
        rotary.Rotary,
        "apply_to",
        "if self.rope.interleaved:",
        "if False:",
        "gptj",
    ),
    Mutation(
        "neighbours turn at different speeds",
        rotary.Rotary,
        "tables",
        "if self.rope.interleaved:",
        "if False:",
        "gptj",
    ),
    Mutation(
        "norms of single heads are skipped",
        ATTENTION,
        "normed",
        "x = norm(x, tap)",
        "pass",
        "qwen3",
    ),
    Mutation(
        "norms of all heads are skipped",
        ATTENTION,
        "normed",
        "norm(x.flatten(2), tap).view_as(x)",
        "x",
        "olmo2",
    ),
    Mutation(
        "nothing is clipped", ATTENTION, "clipped", "x.clamp(-self.clip, self.clip)", "x", "olmo"
    ),
    Mutation(
        "attention is not scaled on its way to the stream",
        BLOCK,
        "forward",
        "normalised(self.post1, attn, tap), self.scale",
        "normalised(self.post1, attn, tap), None",
        "granite",
    ),
    Mutation(
        "logits are not scaled",
        transformer.Transformer,
        "unembed",
        "scaled(logits, self.cfg.head.scale)",
        "logits",
        "cohere",
    ),
    Mutation(
        "a norm on outputs alone is skipped",
        BLOCK,
        "forward",
        "normalised(self.post2, mlp, tap)",
        "mlp",
        "olmo2",
    ),
    Mutation(
        "layers without positions turn",
        shared.Shared,
        "rotate",
        "    return x\n",
        "    rope = next(iter(self.turns))\n",
        "smollm3",
    ),
    Mutation(
        "embeddings are not normed",
        transformer.Transformer,
        "embed",
        "normalised(self.norm0, x, tap)",
        "x",
        "bloom",
    ),
    Mutation(
        "edits of what single heads read are ignored",
        attention,
        "project",
        "if not (tap.edits(reads) or x.requires_grad):",
        "if True:",
    ),
    Mutation(
        "heads read with each other's weights",
        attention,
        "project",
        "tap(reads, each), weight",
        "tap(reads, each), weight.flip(0)",
    ),
    Mutation(
        "an edit of what heads read drops the bias",
        attention,
        "project",
        "made if bias is None else",
        "made if True else",
        "qwen2",
    ),
    Mutation(
        "values are shared in another order than keys",
        ATTENTION,
        "explicit",
        "v.repeat_interleave(groups, 1)",
        "v.repeat(1, groups, 1, 1)",
    ),
    Mutation(
        "gates are not in proportion",
        experts.Mixture,
        "weigh",
        "if self.how.normalised:",
        "if False:",
        "mixtral",
    ),
    Mutation(
        "the worst experts are chosen",
        experts.Mixture,
        "choose",
        "topk(self.how.chosen)",
        "topk(self.how.chosen, largest=False)",
        "mixtral",
    ),
    Mutation(
        "groups of experts are ignored",
        experts.Mixture,
        "choose",
        "if self.how.groups > 1:",
        "if False:",
        "deepseek_v3",
    ),
    Mutation(
        "the correction of scores is ignored",
        experts.Mixture,
        "choose",
        "weights if self.correction is None else self.correction(weights)",
        "weights",
        "deepseek_v3",
    ),
    Mutation(
        "the shared expert is weighed like any other",
        experts.Mixture,
        "shared_out",
        "torch.sigmoid(self.shared_gate(x)) * out",
        "out",
        "qwen2_moe",
    ),
    Mutation(
        "experts' shares are not weighed",
        experts.Mixture,
        "outputs",
        " * gates[rows, expert, None]",
        "",
        "mixtral",
    ),
    Mutation(
        "the narrow part of a key is not turned",
        latent.LatentAttention,
        "turned",
        "shared.rotate(turns, self.rope)",
        "turns",
        "deepseek_v2",
    ),
    Mutation(
        "the narrow vector is not normed",
        latent.LatentAttention,
        "remember",
        "self.norm_kv(narrow, silent)",
        "narrow",
        "deepseek_v2",
    ),
)
