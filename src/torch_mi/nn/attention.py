# SPDX-License-Identifier: MIT OR Apache-2.0
"""Self-attention with grouped keys and values, explicit or fused.

Both ways compute the same; only the explicit one has scores and a pattern to show. Which keys a
query may see is a boolean mask, so that nothing an edit does to scores or pattern can break it.
"""

from functools import partial
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from torch_mi.config.parts import Over
from torch_mi.config.transformer import TransformerConfig
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.trace import Tap
from torch_mi.nn.norm import Norm
from torch_mi.nn.shared import Shared
from torch_mi.types import Carry, Heads, Keys, Mixed, Resid, Values, split

Shares = Float[Tensor, "batch pos head d_model"]
Reads = Float[Tensor, "batch pos _ d_model"]


class Attention(nn.Module):
    """Queries meet keys, take up values, and are mixed into the residual stream's width."""

    def __init__(self, cfg: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.kv_heads = cfg.num_attention_heads, cfg.num_kv_heads
        self.scale, self.softcap = cfg.attn_scales[layer], cfg.attn_logit_softcapping
        self.window, self.rope, self.clip = cfg.windows[layer], cfg.ropes[layer], cfg.clip_qkv
        self.scales_bias = cfg.alibi is not None and cfg.alibi.scaled
        self.norms_whole = cfg.qk_norm is not None and cfg.qk_norm.over is Over.Whole
        self.build(cfg)

    def build(self, cfg: TransformerConfig) -> None:
        """What makes queries, keys and values, and what mixes the heads."""
        width, d_q, d_kv = cfg.hidden_size, self.heads * cfg.head_dim, self.kv_heads * cfg.head_dim
        self.q = nn.Linear(width, d_q, bias=cfg.qkv_bias)
        self.k = nn.Linear(width, d_kv, bias=cfg.qkv_bias)
        self.v = nn.Linear(width, d_kv, bias=cfg.qkv_bias)
        self.o = nn.Linear(d_q, width, bias=cfg.o_proj_bias)
        self.norm_q = head_norm(cfg, self.heads)
        self.norm_k = head_norm(cfg, self.kv_heads)

    @property
    def o_bias(self) -> Tensor | None:
        return cast("Tensor | None", self.o.bias)

    def forward(self, x: Resid, shared: Shared, tap: Tap, past: Carry) -> tuple[Resid, Carry]:
        q = self.ask(x, shared, tap)
        k, v = self.remember(x, shared, tap, past)
        return self.output(self.mix(q, k, v, shared, tap), tap), (k, v)

    def ask(self, x: Resid, shared: Shared, tap: Tap) -> Heads:
        """Every head's queries, turned."""
        q = tap(HookPoint.AttnQ, project(self.q, x, self.heads, HookPoint.AttnQIn, tap))
        return tap(HookPoint.AttnRotQ, shared.rotate(self.normed(self.norm_q, q, tap), self.rope))

    def remember(self, x: Resid, shared: Shared, tap: Tap, past: Carry) -> tuple[Tensor, Tensor]:
        """Keys, turned, and values, after those of earlier tokens."""
        k = tap(HookPoint.AttnK, project(self.k, x, self.kv_heads, HookPoint.AttnKIn, tap))
        v = project(self.v, x, self.kv_heads, HookPoint.AttnVIn, tap)
        v = tap(HookPoint.AttnV, self.clipped(v))
        k = tap(HookPoint.AttnRotK, shared.rotate(self.normed(self.norm_k, k, tap), self.rope))
        if past:
            k, v = torch.cat([past[0], k], 1), torch.cat([past[1], v], 1)
        return k, v

    def normed(self, norm: Norm | None, x: Heads, tap: Tap) -> Heads:
        """Queries or keys after their norm and clipping, if they have any."""
        if norm is not None and self.norms_whole:
            x = norm(x.flatten(2), tap).view_as(x)
        elif norm is not None:
            x = norm(x, tap)
        return self.clipped(x)

    def clipped(self, x: Heads) -> Heads:
        return x if self.clip is None else x.clamp(-self.clip, self.clip)

    def mix(self, q: Heads, k: Keys, v: Values, shared: Shared, tap: Tap) -> Mixed:
        """What each head takes up: explicit where someone looks, fused where nobody does."""
        looked_at = tap.watches(HookPoint.AttnScores, HookPoint.AttnPattern)
        if looked_at or shared.explicit or self.softcap is not None:
            z = self.explicit(q, k, v, shared, tap)
        else:
            z = self.fused(q, k, v, shared)
        return tap(HookPoint.AttnZ, z)

    def bias(self, shared: Shared) -> Tensor | None:
        """What is added to the scores, if anything is."""
        if shared.bias is None or not self.scales_bias:
            return shared.bias
        return shared.bias * self.scale

    def explicit(self, q: Heads, k: Keys, v: Values, shared: Shared, tap: Tap) -> Mixed:
        """Attention step by step. A query that may see nothing takes up nothing."""
        sight, bias = shared.sight, self.bias(shared)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        groups = self.heads // self.kv_heads
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        visible = sight.mask(self.window)
        # in place: nobody has seen these scores yet, and they are the largest tensors of a run
        scores = softcap((q @ k.mT).mul_(self.scale), self.softcap)
        scores = scores if bias is None else scores + bias
        scores = tap(HookPoint.AttnScores, scores.masked_fill_(~visible, -torch.inf))
        if tap.edits(HookPoint.AttnScores):
            scores = scores.masked_fill(~visible, -torch.inf)
        blind = None
        if tap.edits(HookPoint.AttnScores) or sight.padding is not None:
            blind = (scores == -torch.inf).all(-1, keepdim=True)
        pattern = tap(HookPoint.AttnPattern, probabilities(scores, blind).to(v.dtype))
        if tap.edits(HookPoint.AttnPattern) or pattern.requires_grad:
            pattern = pattern.masked_fill(~visible, 0)
        return (pattern @ v).transpose(1, 2)

    def fused(self, q: Heads, k: Keys, v: Values, shared: Shared) -> Mixed:
        """The same by torch's fused kernel, which never forms the pattern."""
        sight, bias = shared.sight, self.bias(shared)
        plain = sight.plain(self.window)
        mask = None
        if not plain or (sight.seen and sight.queries > 1 and sight.causal):
            mask = sight.mask(self.window)
        if bias is not None:
            mask = bias.masked_fill(~sight.mask(self.window), -torch.inf).to(q.dtype)
        z = scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None and sight.causal and sight.queries > 1,
            scale=self.scale,
            enable_gqa=self.heads != self.kv_heads,
        )
        return z.transpose(1, 2)

    def output(self, z: Mixed, tap: Tap) -> Resid:
        """The heads' outputs, mixed.

        Each head's share is formed here only where an edit or a gradient goes through it; where it
        is merely captured, when someone looks at the capture.
        """
        if tap.edits(HookPoint.AttnResult) or (
            z.requires_grad and tap.watches(HookPoint.AttnResult)
        ):
            result = tap(HookPoint.AttnResult, self.shares(z)).sum(2)
            return result if self.o_bias is None else result + self.o_bias
        tap.later(HookPoint.AttnResult, partial(self.shares, z))
        return self.o(z.flatten(2))

    def shares(self, z: Mixed) -> Shares:
        """What each head adds to the attention output; with the bias they sum to it."""
        weight = split(self.o.weight, 1, (self.heads, -1))
        return torch.einsum("bphd,ehd->bphe", z, weight)


def head_norm(cfg: TransformerConfig, heads: int) -> Norm | None:
    """The norm of queries or keys, if there is one."""
    if cfg.qk_norm is None:
        return None
    shapes = {
        Over.Head: (cfg.head_dim,),
        Over.EachHead: (heads, cfg.head_dim),
        Over.Whole: (heads * cfg.head_dim,),
    }
    return Norm(cfg.qk_norm.norm_type, cfg.norm_eps, shapes[cfg.qk_norm.over])


def project(
    linear: nn.Linear, x: Resid, heads: int, reads: HookPoint, tap: Tap
) -> Float[Tensor, "batch pos _ d_head"]:
    """Queries, keys or values, each head from what it `reads`.

    That is the same for all heads, unless an edit or a gradient goes through it.
    """
    if not tap.watches(reads):
        return linear(x).view(*x.shape[:2], heads, -1)
    each = x[:, :, None].expand(-1, -1, heads, -1)
    if not (tap.edits(reads) or x.requires_grad):
        tap.later(reads, partial(torch.clone, each))
        return split(linear(x), -1, (heads, -1))
    weight = split(linear.weight, 0, (heads, -1))
    made = torch.einsum("bphd,hed->bphe", tap(reads, each), weight)
    bias = cast("Tensor | None", linear.bias)
    return made if bias is None else made + split(bias, 0, (heads, -1))


def probabilities(scores: Tensor, blind: Tensor | None) -> Tensor:
    """The softmax in float32; zeros, with gradient zero, in rows that may see nothing."""
    if blind is None:
        return scores.float().softmax(-1)
    return scores.float().masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)


def softcap(x: Tensor, cap: float | None) -> Tensor:
    """Squash to (-cap, cap), as Gemma 2 does; `None` leaves `x` alone."""
    return x if cap is None else torch.tanh(x / cap) * cap
