# SPDX-License-Identifier: MIT OR Apache-2.0
"""What linear recurrences share about their heads: shared keys, and the norm of what is read."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.trace import Tap
from torch_mi.nn.norm import length
from torch_mi.types import Mixed, split


def side_by_side(x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """The parts of the last axis."""
    return torch.split_with_sizes(x, sizes, -1)


def for_each(x: Tensor, heads: int) -> Tensor:
    """Keys or values [batch pos group …] as each head has them; neighbours share a group."""
    return x if x.shape[2] == heads else x.repeat_interleave(heads // x.shape[2], 2)


class HeadRms(nn.Module):
    """An RMS norm of what heads read, by `groups` of them, all in float32."""

    def __init__(self, heads: int, gain: int, eps: float, groups: int) -> None:
        """With a `gain` for each channel of every head, or for each that all heads have."""
        super().__init__()
        self.heads, self.groups, self.eps = heads, groups, eps
        self.weight = nn.Parameter(torch.ones(gain))

    def forward(self, x: Mixed, tap: Tap) -> Mixed:
        h = x.float()
        whole = split(h.flatten(2), -1, (self.groups, -1))
        scale = (length(whole).square() / whole.shape[-1] + self.eps).sqrt()
        scale = tap(HookPoint.RwkvNormScale, for_each(scale, self.heads))
        return (h / scale * split(self.weight, 0, (-1, x.shape[-1]))).to(x)
