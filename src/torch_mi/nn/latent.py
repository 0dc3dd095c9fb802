# SPDX-License-Identifier: MIT OR Apache-2.0
"""Multi-head latent attention (DeepSeek-V2): keys and values unfold from one narrow vector.

Every head has a key and a value of its own, so that what follows is attention as anywhere else.
Of queries and keys the first dimensions stay and the rest turn; the turning part of a key is the
same in all heads until it is edited.
"""

import torch
from torch import Tensor, nn

from torch_mi.config.transformer import TransformerConfig
from torch_mi.errors import ModelError
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.trace import Tap, silent
from torch_mi.nn.attention import Attention
from torch_mi.nn.norm import Norm
from torch_mi.nn.shared import Shared
from torch_mi.types import Carry, Heads, Resid


class LatentAttention(Attention):
    """Attention whose keys and values, and perhaps queries, come through narrow vectors."""

    def build(self, cfg: TransformerConfig) -> None:
        """What squeezes and unfolds queries, keys and values, and what mixes the heads."""
        if cfg.latent is None:
            raise ModelError("latent attention needs cfg.latent")
        self.how = how = cfg.latent
        width, heads, bias, rank = cfg.hidden_size, self.heads, cfg.qkv_bias, how.query_rank
        self.q_down = None if rank is None else nn.Linear(width, rank, bias=bias)
        self.norm_q = None if rank is None else Norm(cfg.norm_type, how.norm_eps, rank)
        if rank is None:
            self.q = nn.Linear(width, heads * how.head_dim, bias=False)
        else:
            self.q_up = nn.Linear(rank, heads * how.head_dim, bias=False)
        self.kv_down = nn.Linear(width, how.kv_rank + how.rope_dim, bias=bias)
        self.norm_kv = Norm(cfg.norm_type, how.norm_eps, how.kv_rank)
        self.kv_up = nn.Linear(how.kv_rank, heads * (how.nope_dim + how.value_dim), bias=False)
        self.o = nn.Linear(heads * how.value_dim, width, bias=cfg.o_proj_bias)

    def ask(self, x: Resid, shared: Shared, tap: Tap) -> Heads:
        """Every head's queries, their turning part turned."""
        return tap(HookPoint.AttnRotQ, self.turned(tap(HookPoint.AttnQ, self.queries(x)), shared))

    def remember(self, x: Resid, shared: Shared, tap: Tap, past: Carry) -> tuple[Tensor, Tensor]:
        """Keys and values, unfolded, after those of earlier tokens."""
        narrow, turning = self.kv_down(x).split([self.how.kv_rank, self.how.rope_dim], -1)
        latent = tap(HookPoint.AttnLatent, self.norm_kv(narrow, silent))
        unfolded = self.kv_up(latent).unflatten(-1, (self.heads, -1))
        k, v = unfolded.split([self.how.nope_dim, self.how.value_dim], -1)
        turning = turning[:, :, None].expand(-1, -1, self.heads, -1)
        k, v = tap(HookPoint.AttnK, torch.cat([k, turning], -1)), tap(HookPoint.AttnV, v)
        k = tap(HookPoint.AttnRotK, self.turned(k, shared))
        if past:
            k, v = torch.cat([past[0], k], 1), torch.cat([past[1], v], 1)
        return k, v

    def queries(self, x: Resid) -> Heads:
        """Every head's query, by way of a narrow vector if there is one."""
        if self.q_down is None or self.norm_q is None:
            q = self.q(x)
        else:
            q = self.q_up(self.norm_q(self.q_down(x), silent))
        return q.unflatten(-1, (self.heads, -1))

    def turned(self, x: Heads, shared: Shared) -> Heads:
        """Queries or keys, with the part that turns turned."""
        stays, turns = x[..., : self.how.nope_dim], x[..., self.how.nope_dim :]
        return torch.cat([stays, shared.rotate(turns, self.rope)], -1)
