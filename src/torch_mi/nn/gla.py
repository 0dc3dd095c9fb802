# SPDX-License-Identifier: MIT OR Apache-2.0
"""Gated linear attention (Yang et al. 2024, arXiv:2312.06635)."""

from torch.nn.functional import logsigmoid, silu

from torch_mi.config.linear import Gla
from torch_mi.config.recurrent import RecurrentConfig
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.trace import Tap
from torch_mi.nn.gated import GatedState
from torch_mi.nn.heads import for_each
from torch_mi.nn.reading import faded
from torch_mi.nn.recurrence import Recurrence
from torch_mi.nn.rwkv import LowRank
from torch_mi.nn.shift import Steps
from torch_mi.types import Carry, Mixed, Resid


class GlaMix(GatedState):
    """Each dimension of a key fades as the text says; heads may share keys, values and fading."""

    def __init__(self, cfg: RecurrentConfig, mixer: Gla, layer: int) -> None:  # noqa: ARG002
        super().__init__(cfg, mixer, kv_heads=mixer.kv_heads, gated=mixer.gated)
        self.mixer = mixer
        keys = mixer.kv_heads * mixer.key_size
        self.decay = LowRank(cfg.hidden_size, mixer.decay_rank, keys, bias=True)

    def forward(
        self, h: Resid, first: Mixed | None, steps: Steps, tap: Tap, past: Carry
    ) -> tuple[Resid, Carry, Mixed | None]:
        made, kept = self.qkv(h, steps, tap, past[:-1])
        q, k, v = map(silu, made) if kept else made
        q, k = self.keys(q), for_each(self.keys(k), self.heads)
        if self.mixer.activation is not None:
            q, k = (self.mixer.activation.function(x) for x in (q, k))
        q, k = tap(HookPoint.RwkvR, self.scaled(q)), tap(HookPoint.RwkvK, k)
        v = tap(HookPoint.RwkvV, for_each(self.values(v), self.heads))
        low = self.keys(self.decay.up(self.decay.down(h)))
        log = for_each(logsigmoid(low.float()) / self.mixer.decay_divisor, self.heads)
        if self.mixer.least_decay is not None:
            log = log.clamp(min=self.mixer.least_decay)
        turn = Recurrence(q, k, v, faded(log, tap, k), inclusive=True)
        out, state = self.read_out(turn, h, (steps, tap, past))
        return out, (*kept, state), first
