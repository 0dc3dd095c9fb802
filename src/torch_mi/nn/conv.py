# SPDX-License-Identifier: MIT OR Apache-2.0
"""Short causal convolutions over the real tokens, and projections that may have one each."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torch_mi.config.linear import Conv
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.trace import Tap
from torch_mi.nn.heads import side_by_side
from torch_mi.nn.rwkv import matrix
from torch_mi.nn.shift import Steps
from torch_mi.types import Carry

Channels = Float[Tensor, "batch pos _"]
Before = Float[Tensor, "batch before _"]
"""The last inputs of earlier runs."""


class ShortConv(nn.Module):
    """Each channel of a token with the same channel of the tokens before it, weighted."""

    def __init__(self, channels: int, conv: Conv) -> None:
        super().__init__()
        self.size = conv.size
        self.weight = nn.Parameter(torch.zeros(channels, 1, conv.size))
        self.bias = nn.Parameter(torch.zeros(channels)) if conv.bias else None

    def forward(self, x: Channels, steps: Steps, before: Before | None) -> tuple[Channels, Before]:
        """What it gives, and the inputs that later tokens will see."""
        length, kept = x.shape[1], self.size - 1
        if before is None:
            before = x.new_zeros(x.shape[0], kept, x.shape[2])
        rows = torch.cat([before.to(x), steps.packed(x)], 1)
        weights = self.weight[:, 0].unbind(-1)
        made = rows[:, :length] * weights[0]
        for lag, weight in enumerate(weights[1:], 1):
            made = torch.addcmul(made, rows[:, lag : lag + length], weight)
        made = made if self.bias is None else made + self.bias
        return steps.unpacked(made), steps.tail(rows, kept)


def convolved(
    convs: Sequence[ShortConv], xs: Sequence[Channels], steps: Steps, tap: Tap, past: Carry
) -> tuple[tuple[Channels, ...], Carry]:
    """What several convolutions give, shown side by side, and what each carries on."""
    kept = past or (None,) * len(convs)
    both = [conv(x, steps, last) for conv, x, last in zip(convs, xs, kept, strict=True)]
    made = [out for out, _ in both]
    whole = made[0] if len(made) == 1 else torch.cat(made, -1)
    parts = side_by_side(tap(HookPoint.RwkvConv, whole), [out.shape[-1] for out in made])
    return parts, tuple(last for _, last in both)


class Projections(nn.Module):
    """Queries, keys and values of a token, each seen through a short convolution if it has one."""

    def __init__(self, width: int, sizes: tuple[int, int, int], conv: Conv | None) -> None:
        super().__init__()
        self.q, self.k, self.v = (matrix(width, size) for size in sizes)
        named = {} if conv is None else dict(zip("qkv", sizes, strict=True))
        self.convs = nn.ModuleDict({x: ShortConv(n, conv) for x, n in named.items() if conv})

    @property
    def carried(self) -> int:
        """How many tensors later tokens need of these."""
        return len(self.convs)

    def forward(
        self, h: Channels, steps: Steps, tap: Tap, past: Carry
    ) -> tuple[tuple[Channels, ...], Carry]:
        made = (self.q(h), self.k(h), self.v(h))
        convs = [conv for conv in self.convs.values() if isinstance(conv, ShortConv)]
        return convolved(convs, made, steps, tap, past) if convs else (made, ())
