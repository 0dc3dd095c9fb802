# SPDX-License-Identifier: MIT OR Apache-2.0
"""HGRN2 (Qin et al. 2024, arXiv:2404.07904): a token writes with what its decay leaves free."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid, silu

from torch_mi.config.linear import Hgrn2
from torch_mi.config.recurrent import RecurrentConfig
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.trace import Tap
from torch_mi.nn.gated import GatedState
from torch_mi.nn.reading import faded
from torch_mi.nn.recurrence import Recurrence
from torch_mi.nn.shift import Steps
from torch_mi.types import Carry, Mixed, Resid

Bounds = Float[Tensor, "layer width"]


class Hgrn2Mix(GatedState):
    """The key is one minus the decay, as that was before any edit; deeper layers keep longer."""

    def __init__(self, cfg: RecurrentConfig, mixer: Hgrn2, layer: int) -> None:
        super().__init__(cfg, mixer, kv_heads=mixer.heads, gated=False, whole=True)
        self.layer = layer

    def forward(
        self, h: Resid, first: Mixed | None, steps: Steps, tap: Tap, past: Carry
    ) -> tuple[Resid, Carry, Mixed | None]:
        (q, f, v), kept = self.qkv(h, steps, tap, past[:-1])
        log = self.keys(self._decay(f, steps.bounds))
        q = tap(HookPoint.RwkvR, self.scaled(self.keys(silu(q))))
        k = tap(HookPoint.RwkvK, -torch.expm1(log).to(h))
        v = tap(HookPoint.RwkvV, self.values(v))
        turn = Recurrence(q, k, v, faded(log, tap, k), inclusive=True)
        out, state = self.read_out(turn, h, (steps, tap, past))
        return out, (*kept, state), first

    def _decay(self, f: Tensor, bounds: Bounds | None) -> Float[Tensor, "batch pos width"]:
        """Logarithms of decays, between their bound and 1."""
        log = logsigmoid(f.float())
        if bounds is None or self.layer == 0:  # the first layer's bound is 0
            return log
        bound = bounds[self.layer]
        return torch.logaddexp(bound.log(), torch.log1p(-bound) + log)


def rising(learned: Bounds) -> Bounds:
    """The least decay in each layer: shares of one, added up from the second layer on."""
    shares = learned.float().softmax(0)
    return shares.cumsum(0) - shares[0]
