# SPDX-License-Identifier: MIT OR Apache-2.0
"""RWKV-4's weighted means: attention by key alone, fading with distance, for each channel.

Sums over the past are kept over e^top, top being about their largest exponent (Peng et al. 2023,
arXiv:2305.13048, appendix D). A top only scales: gradients pass it by.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from torch_mi.types import split

Channels = Float[Tensor, "batch pos channel"]
Fading = Float[Tensor, "#batch #pos channel"]
Sums = Float[Tensor, "batch channel 3"]
"""Numerator and denominator over e^top, and the top."""
NEVER = -1e38
"""The top over nothing."""
FLOOR = -40.0
"""How far a gate near 0 may lower the top that its key would set."""
SHORT = 32
"""Up to this many positions there is one chunk."""


@dataclass(frozen=True, eq=False)
class Past:
    """Sums of some earlier positions."""

    above: Tensor
    below: Tensor
    top: Tensor

    @staticmethod
    def nothing(like: Tensor) -> "Past":
        """The sums over no position."""
        zero = torch.zeros_like(like)
        return Past(zero, zero, torch.full_like(like, NEVER))

    @staticmethod
    def gathered(parts: Sequence["Past"], by: Callable[[list[Tensor]], Tensor]) -> "Past":
        """Several as one, each of the three in the same way."""
        return Past(
            by([part.above for part in parts]),
            by([part.below for part in parts]),
            by([part.top for part in parts]),
        )

    def each(self, dim: int) -> "Iterator[Past]":
        """The opposite of a stack."""
        parts = zip(
            self.above.unbind(dim), self.below.unbind(dim), self.top.unbind(dim), strict=True
        )
        return (Past(*part) for part in parts)

    def faded(self, by: Tensor) -> "Past":
        """Further back; `by` is a logarithm."""
        return Past(self.above, self.below, self.top + by)

    def joined(self, other: "Past") -> "Past":
        """Both, over the higher top."""
        top = torch.maximum(self.top, other.top).detach()
        mine, theirs = (self.top - top).exp(), (other.top - top).exp()
        above = torch.addcmul(mine * self.above, theirs, other.above)
        return Past(above, torch.addcmul(mine * self.below, theirs, other.below), top)


@dataclass(frozen=True, eq=False)
class Writes:
    """What positions add to the past, each by itself, and the fading that follows."""

    left: Past
    decay: Tensor

    def part(self, start: int, stop: int) -> "Writes":
        """Positions from `start` to before `stop`."""
        here = slice(start, stop)
        left = Past.gathered([self.left], lambda x: x[0][:, here])
        return Writes(left, self.decay[:, here])

    def chunks(self, size: int) -> "Writes":
        """The axis of positions in two."""
        left = Past.gathered([self.left], lambda x: split(x[0], 1, (-1, size)))
        return Writes(left, split(self.decay, 1, (-1, size)))


def wkv4(
    k: Channels,
    v: Channels,
    decay: Fading,
    bonus: Float[Tensor, "channel"],
    gate: Channels | None,
    state: Sums | None,
) -> tuple[Channels, Sums]:
    """The mean of all values so far at every position, and the sums after the last.

    A value counts e^{k + decay (distance - 1)}, at its own position e^{k + bonus}. `gate`
    multiplies what a position leaves to later ones: 1 for all of it, 0 for nothing.
    """
    asked, dtype = v.dtype, torch.promote_types(v.dtype, torch.float32)
    k, v, bonus = k.to(dtype), v.to(dtype), bonus.to(dtype)
    past = Past.nothing(v[:, 0]) if state is None else Past(*state.to(dtype).unbind(-1))
    fading = decay.to(dtype).expand(k.shape[0], k.shape[1], -1)
    before, last = pasts(Writes(left(k, v, gate), fading), past)
    read = before.joined(Past(v, torch.ones_like(v), k + bonus))
    sums = torch.stack([last.above, last.below, last.top], -1)
    return (read.above / read.below).to(asked), sums


def left(k: Channels, v: Channels, gate: Channels | None) -> Past:
    """What every position leaves to later ones.

    A gate's magnitude goes into the exponent, so that a closed one leaves no high top behind that
    everything else would vanish under.
    """
    if gate is None:
        return Past(v, torch.ones_like(v), k)
    gate = gate.to(k.dtype)
    size = gate.detach().abs().log().clamp(FLOOR)
    sign = gate * (-size).exp()
    return Past(sign * v, sign, k + size)


def pasts(writes: Writes, past: Past) -> tuple[Past, Past]:
    """What every position looks back on, and what is there after the last.

    Chunks of about as many positions as there are chunks are walked side by side; then what came
    before is handed on from each to the next.
    """
    length = writes.decay.shape[1]
    if length <= SHORT:
        return walk(writes, past)
    size = math.isqrt(length)
    whole = length - length % size
    chunks = writes.part(0, whole).chunks(size)
    local, ends = walk(chunks, Past.nothing(chunks.decay[..., 0, :]))
    entering: list[Past] = []
    for total, end in zip(chunks.decay.sum(-2).unbind(1), ends.each(1), strict=True):
        entering.append(past)
        past = past.faded(total).joined(end)
    since = chunks.decay.cumsum(-2) - chunks.decay
    entered = Past.gathered(entering, lambda x: torch.stack(x, 1)[..., None, :])
    before = Past.gathered([entered.faded(since).joined(local)], lambda x: x[0].flatten(1, 2))
    if whole == length:
        return before, past
    rest, past = walk(writes.part(whole, length), past)
    return Past.gathered([before, rest], lambda x: torch.cat(x, 1)), past


def walk(writes: Writes, past: Past) -> tuple[Past, Past]:
    """The same, position after position."""
    before: list[Past] = []
    for decay, here in zip(writes.decay.unbind(-2), writes.left.each(-2), strict=True):
        before.append(past)
        past = past.faded(decay).joined(here)
    return Past.gathered(before, lambda x: torch.stack(x, -2)), past


def effective4(
    k: Channels, decay: Fading, bonus: Float[Tensor, "channel"], gate: Channels | None
) -> Float[Tensor, "batch channel query key"]:
    """How much of every value every mean takes up: exactly `y = A v` from no sums."""
    dtype = torch.promote_types(k.dtype, torch.float32)
    length = k.shape[1]
    places = torch.arange(length, device=k.device)
    earlier, own = places[:, None] > places, places[:, None] == places
    decay, bonus = decay.to(dtype).mT, bonus.to(dtype)[:, None]
    k = k.to(dtype).mT
    if decay.shape[-1] == 1:
        fading = decay[..., None] * (places[:, None] - places - 1)
    else:
        reach = decay.cumsum(-1)
        fading = (reach - decay)[..., :, None] - reach[..., None, :]
    exponents = fading + k[..., None, :]
    exponents = torch.where(own, (k + bonus)[..., None], exponents)
    exponents = exponents.masked_fill(~(earlier | own), -torch.inf)
    top = exponents.detach().amax(-1, keepdim=True)
    weights = (exponents - top).exp()
    if gate is not None:
        weights = torch.where(earlier, weights * gate.to(dtype).mT[..., None, :], weights)
    return weights / weights.sum(-1, keepdim=True)
