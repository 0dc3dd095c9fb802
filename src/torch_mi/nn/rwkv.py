# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the versions of RWKV share: mixing with the token before, low ranks, channel mixing."""

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from torch_mi.config.recurrent import ChannelMix, RecurrentConfig
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.trace import Tap
from torch_mi.nn.shift import Steps
from torch_mi.types import Carry, Resid


def coefficients(width: int) -> nn.Parameter:
    """How much of the token before, or of this one, is taken, for every channel."""
    return nn.Parameter(torch.zeros(width))


def beginning(cfg: RecurrentConfig, *sizes: int) -> nn.Parameter | None:
    """The state [head d_key d_value] that texts begin with, if it was trained."""
    return nn.Parameter(torch.zeros(sizes)) if cfg.tuned_state else None


def matrix(inner: int, outer: int) -> nn.Linear:
    """A linear map without a bias."""
    return nn.Linear(inner, outer, bias=False)


class LowRank(nn.Module):
    """A linear map through few dimensions."""

    def __init__(self, width: int, rank: int, out: int, *, bias: bool) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, out, bias=bias)


class Channels(nn.Module):
    """Channel mixing: what stands in the place of the MLP (`v relu(k x)^2`, gated or not)."""

    def __init__(self, cfg: RecurrentConfig) -> None:
        super().__init__()
        width, inner = cfg.hidden_size, cfg.intermediate_size
        gated = cfg.channel_mix is ChannelMix.Gated
        self.previous_first = cfg.previous_first
        self.mix_k = coefficients(width)
        self.mix_r = coefficients(width) if gated else None
        self.key = matrix(width, inner)
        self.value = matrix(inner, width)
        self.receptance = matrix(width, width) if gated else None

    def forward(self, h: Resid, steps: Steps, tap: Tap, past: Carry) -> tuple[Resid, Carry]:
        last = past[0] if past else None
        before = tap(HookPoint.MlpShift, steps.shifted(h, last))
        pre = tap(HookPoint.MlpPre, self.key(self.mixed(h, before, self.mix_k)))
        out = tap(HookPoint.MlpRawOut, self.value(tap(HookPoint.MlpPost, relu(pre).square())))
        if self.receptance is not None and self.mix_r is not None:
            gate = self.receptance(self.mixed(h, before, self.mix_r)).sigmoid()
            out = tap(HookPoint.MlpGate, gate) * out
        return out, self.remember(h, steps, past)

    def remember(self, h: Resid, steps: Steps, past: Carry) -> Carry:
        """What later tokens see of these."""
        return (steps.last(h, past[0] if past else None),)

    def mixed(self, h: Resid, before: Resid, by: Tensor) -> Resid:
        """A token and the one before, channel by channel."""
        return mixed(h, before, by, previous_first=self.previous_first)


def mixed(h: Resid, before: Resid, by: Tensor, *, previous_first: bool) -> Resid:
    """`by` of the token before and the rest of this one, or the other way round."""
    return torch.lerp(h, before, by) if previous_first else torch.lerp(before, h, by)
