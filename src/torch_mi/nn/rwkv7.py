# SPDX-License-Identifier: MIT OR Apache-2.0
"""The time mixing of RWKV-7 (Peng et al. 2025, "Goose"): the delta rule with vector gates."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from torch_mi.config.recurrent import RecurrentConfig, Rwkv7
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.trace import Tap
from torch_mi.nn.reading import HeadNorm, faded, read
from torch_mi.nn.recurrence import Recurrence
from torch_mi.nn.rwkv import LowRank, beginning, coefficients, matrix, mixed
from torch_mi.nn.shift import Steps
from torch_mi.types import Carry, Mixed, Resid, split

SLOWEST = -math.exp(-0.5)
"""The logarithm of the strongest decay there can be."""


class Rwkv7Mix(nn.Module):
    """r, k, v, a decay, a rate of erasure and a gate, all of this token and the one before."""

    carried = 2

    def __init__(self, cfg: RecurrentConfig, mixer: Rwkv7, layer: int) -> None:
        super().__init__()
        self.heads, self.key_size = mixer.heads, mixer.key_size
        width, inner = cfg.hidden_size, mixer.heads * mixer.key_size
        self.mix_r, self.mix_w, self.mix_k = (coefficients(width) for _ in range(3))
        self.mix_v, self.mix_a, self.mix_g = (coefficients(width) for _ in range(3))
        self.r, self.k, self.v = (matrix(width, inner) for _ in range(3))
        self.o = matrix(inner, width)
        self.decay = LowRank(width, mixer.decay_rank, inner, bias=True)
        self.rate = LowRank(width, mixer.rate_rank, inner, bias=True)
        self.value = LowRank(width, mixer.value_rank, inner, bias=True) if layer else None
        self.gate = LowRank(width, mixer.gate_rank, inner, bias=False)
        self.erased, self.kept = nn.Parameter(torch.ones(inner)), nn.Parameter(torch.ones(inner))
        self.bonus = nn.Parameter(torch.zeros(mixer.heads, mixer.key_size))
        self.norm = HeadNorm(mixer.heads, mixer.value_size, mixer.norm_eps)
        self.start = beginning(cfg, mixer.heads, mixer.key_size, mixer.value_size)

    def forward(
        self, h: Resid, first: Mixed | None, steps: Steps, tap: Tap, past: Carry
    ) -> tuple[Resid, Carry, Mixed | None]:
        """What is written to the stream, what is carried on, and the first layer's values."""
        last, state = past or (None, self.start)
        before = tap(HookPoint.RwkvShift, steps.shifted(h, last))
        r, k, g = self._r(h, before, tap), self.k(self._mixed(h, before, self.mix_k)), None
        rate = self._rate(h, before, tap)
        kappa = self.by_head(k * self.erased)
        kappa = tap(HookPoint.RwkvKappa, normalize(kappa.float(), dim=-1, eps=1e-12).to(k))
        k = self.by_head(k)
        k = tap(HookPoint.RwkvK, k * (1 + (rate - 1) * self.by_head(self.kept)))
        v, first = self._v(h, before, first, tap)
        decay = faded(self._decay(h, before), tap, r)
        turn = Recurrence(r, k, v, decay, inclusive=True, alpha=-kappa, beta=kappa * rate)
        y, state = read(turn, None, steps, tap, state)
        z = self.norm(tap(HookPoint.RwkvWkv, y), tap)
        own = (r * k * self.bonus).sum(-1, keepdim=True)
        z = z + tap(HookPoint.RwkvBonus, own * v)
        g = self.gate.up(self.gate.down(self._mixed(h, before, self.mix_g)).sigmoid())
        out = self.o((z * tap(HookPoint.RwkvG, self.by_head(g))).flatten(2))
        return out, (steps.last(h, last), state), first

    def by_head(self, x: Tensor) -> Tensor:
        """The last axis as heads and what each has."""
        return split(x, -1, (self.heads, self.key_size))

    def _mixed(self, h: Resid, before: Resid, by: Tensor) -> Resid:
        return mixed(h, before, by, previous_first=True)

    def _r(self, h: Resid, before: Resid, tap: Tap) -> Mixed:
        return tap(HookPoint.RwkvR, self.by_head(self.r(self._mixed(h, before, self.mix_r))))

    def _rate(self, h: Resid, before: Resid, tap: Tap) -> Mixed:
        rate = self.rate.up(self.rate.down(self._mixed(h, before, self.mix_a))).sigmoid()
        return tap(HookPoint.RwkvA, self.by_head(rate))

    def _decay(self, h: Resid, before: Resid) -> Float[Tensor, "batch pos head d_key"]:
        """The logarithm of the decay, between -0.607 and 0."""
        found = self.decay.up(self.decay.down(self._mixed(h, before, self.mix_w)).tanh())
        return self.by_head(SLOWEST * found.float().sigmoid())

    def _v(
        self, h: Resid, before: Resid, first: Mixed | None, tap: Tap
    ) -> tuple[Mixed, Mixed | None]:
        """This layer's values, partly the first layer's, and the first layer's."""
        x = self._mixed(h, before, self.mix_v)
        v = self.by_head(self.v(x))
        if self.value is None:
            v = tap(HookPoint.RwkvV, v)
            return v, v
        if first is None:
            raise ValueError("a later layer needs the values of the first")
        share = self.by_head(self.value.up(self.value.down(x)).sigmoid())
        v = v + (tap(HookPoint.RwkvVFirst, first.view_as(first)) - v) * share
        return tap(HookPoint.RwkvV, v), first
