# SPDX-License-Identifier: MIT OR Apache-2.0
"""Multi-scale retention (Sun et al. 2023, arXiv:2307.08621)."""

import torch

from torch_mi.config.linear import RetNet
from torch_mi.config.recurrent import RecurrentConfig
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.trace import Tap
from torch_mi.nn.gated import GatedState
from torch_mi.nn.heads import for_each
from torch_mi.nn.reading import faded
from torch_mi.nn.recurrence import Recurrence
from torch_mi.nn.shift import Steps
from torch_mi.types import Carry, Mixed, Resid

FIRST = 5
"""The first head keeps 1 - 2^-5 of its state, every further one twice as long."""


class RetNetMix(GatedState):
    """Queries and keys turn with position, and each head fades at its own fixed pace."""

    def __init__(self, cfg: RecurrentConfig, mixer: RetNet, layer: int) -> None:  # noqa: ARG002
        super().__init__(cfg, mixer, kv_heads=mixer.kv_heads, gated=mixer.gated)
        self.mixer = mixer

    def forward(
        self, h: Resid, first: Mixed | None, steps: Steps, tap: Tap, past: Carry
    ) -> tuple[Resid, Carry, Mixed | None]:
        (q, k, v), _ = self.qkv(h, steps, tap, ())
        q, k = self.keys(q), self.keys(k)
        if self.mixer.activation is not None:
            q, k = (self.mixer.activation.function(x) for x in (q, k))
        q = tap(HookPoint.RwkvR, self.scaled(steps.turned(q)))
        k = tap(HookPoint.RwkvK, for_each(steps.turned(k), self.heads))
        v = tap(HookPoint.RwkvV, for_each(self.values(v), self.heads))
        lost = torch.exp2(-FIRST - torch.arange(self.heads, dtype=torch.float32, device=h.device))
        log = torch.log1p(-lost)[None, None, :, None]
        turn = Recurrence(q, k, v, faded(log, tap, k), inclusive=True)
        out, state = self.read_out(turn, h, (steps, tap, past))
        return out, (state,), first
