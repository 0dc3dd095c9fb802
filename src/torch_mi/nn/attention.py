# SPDX-License-Identifier: MIT OR Apache-2.0
"""Causal self-attention with grouped keys and values, explicit or fused.

Both ways compute the same; only the explicit one has scores and a pattern to show. Which keys a
query may see is a boolean mask, so that nothing an edit does to scores or pattern can break it.
"""

from functools import partial
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from torch_mi.config.transformer import TransformerConfig
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.trace import Tap
from torch_mi.nn.shared import Shared, Sight
from torch_mi.types import Carry, Heads, Keys, Resid

Shares = Float[Tensor, "batch pos head d_model"]


class Attention(nn.Module):
    """Queries meet keys, take up values, and are mixed into the residual stream's width."""

    def __init__(self, cfg: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.kv_heads = cfg.num_attention_heads, cfg.num_kv_heads
        self.scale, self.softcap = cfg.attn_scale, cfg.attn_logit_softcapping
        self.window = cfg.windows[layer]
        width, d_q, d_kv = cfg.hidden_size, self.heads * cfg.head_dim, self.kv_heads * cfg.head_dim
        self.q = nn.Linear(width, d_q, bias=cfg.qkv_bias)
        self.k = nn.Linear(width, d_kv, bias=cfg.qkv_bias)
        self.v = nn.Linear(width, d_kv, bias=cfg.qkv_bias)
        self.o = nn.Linear(d_q, width, bias=cfg.o_proj_bias)

    @property
    def o_bias(self) -> Tensor | None:
        return cast("Tensor | None", self.o.bias)

    def forward(self, x: Resid, shared: Shared, tap: Tap, past: Carry) -> tuple[Resid, Carry]:
        batch, pos, _ = x.shape
        q = tap(HookPoint.AttnQ, self.q(x).view(batch, pos, self.heads, -1))
        k = tap(HookPoint.AttnK, self.k(x).view(batch, pos, self.kv_heads, -1))
        v = tap(HookPoint.AttnV, self.v(x).view(batch, pos, self.kv_heads, -1))
        q = tap(HookPoint.AttnRotQ, shared.rotate(q))
        k = tap(HookPoint.AttnRotK, shared.rotate(k))
        if past:
            k, v = torch.cat([past[0], k], 1), torch.cat([past[1], v], 1)
        looked_at = tap.watches(HookPoint.AttnScores, HookPoint.AttnPattern)
        if looked_at or shared.explicit or self.softcap is not None:
            z = self.explicit(q, k, v, shared.sight, tap)
        else:
            z = self.fused(q, k, v, shared.sight)
        return self.output(tap(HookPoint.AttnZ, z), tap), (k, v)

    def explicit(self, q: Heads, k: Keys, v: Keys, sight: Sight, tap: Tap) -> Heads:
        """Attention step by step. A query that may see nothing takes up nothing."""
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        groups = self.heads // self.kv_heads
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        visible = sight.mask(self.window)
        # in place: nobody has seen these scores yet, and they are the largest tensors of a run
        scores = softcap((q @ k.mT).mul_(self.scale), self.softcap)
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

    def fused(self, q: Heads, k: Keys, v: Keys, sight: Sight) -> Heads:
        """The same by torch's fused kernel, which never forms the pattern."""
        plain = sight.plain(self.window)
        mask = None
        if not plain or (sight.seen and sight.queries > 1):
            mask = sight.mask(self.window)
        z = scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None and sight.queries > 1,
            scale=self.scale,
            enable_gqa=self.heads != self.kv_heads,
        )
        return z.transpose(1, 2)

    def output(self, z: Heads, tap: Tap) -> Resid:
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

    def shares(self, z: Heads) -> Shares:
        """What each head adds to the attention output; with the bias they sum to it."""
        weight = self.o.weight.view(-1, self.heads, z.shape[-1])
        return torch.einsum("bphd,ehd->bphe", z, weight)


def probabilities(scores: Tensor, blind: Tensor | None) -> Tensor:
    """The softmax in float32; zeros, with gradient zero, in rows that may see nothing."""
    if blind is None:
        return scores.float().softmax(-1)
    return scores.float().masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)


def softcap(x: Tensor, cap: float | None) -> Tensor:
    """Squash to (-cap, cap), as Gemma 2 does; `None` leaves `x` alone."""
    return x if cap is None else torch.tanh(x / cap) * cap
