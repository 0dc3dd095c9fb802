# SPDX-License-Identifier: MIT OR Apache-2.0
"""Rotary position embedding: pairs of a head's dimensions turn with position.

Dimension j turns together with j + dim/2, or 2j with 2j + 1 where they are interleaved.
Frequencies, angles, sines and cosines are float32 in any model; only the finished tables are
rounded to its dtype.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from torch_mi.config.rope import DynamicNtk, Linear, Llama3, LongRope, Rope, Yarn
from torch_mi.types import Heads, split

Frequencies = Float[Tensor, "half"]
Table = Float[Tensor, "#batch pos 1 d_head"]


class Rotary(nn.Module):
    """What turns queries and keys. It owns no parameters and no buffers."""

    def __init__(self, rope: Rope, head_dim: int) -> None:
        super().__init__()
        self.rope, self.head_dim = rope, head_dim
        self._short, self._long = frequencies(rope), long_frequencies(rope)
        self._on: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def tables(
        self, positions: Int[Tensor, "batch pos"], dtype: torch.dtype = torch.float32
    ) -> tuple[Table, Table]:
        """Cosines, and sines of which those for the first of a pair are negated, for `apply_to`.

        The dimensions that do not turn have cosine 1 and sine 0. How far the run reaches, its
        greatest position, decides the frequencies of the length-dependent kinds.
        """
        angles = positions[..., None, None].float() * self._frequencies(positions)
        cos, sin = angles.cos(), angles.sin()
        scale = attention_factor(self.rope)
        if scale != 1.0:
            cos, sin = cos * scale, sin * scale
        cosines, sines = [cos, cos], [-sin, sin]
        if self.rope.interleaved:
            cosines = [torch.stack(cosines, -1).flatten(-2)]
            sines = [torch.stack(sines, -1).flatten(-2)]
        if still := self.head_dim - self.rope.dim:
            cosines.append(cos.new_ones(*cos.shape[:-1], still))
            sines.append(sin.new_zeros(*sin.shape[:-1], still))
        return torch.cat(cosines, -1).to(dtype), torch.cat(sines, -1).to(dtype)

    def apply_to(self, x: Heads, cos: Table, sin: Table) -> Heads:
        """Queries or keys, turned: `x * cos + swap(x) * sin`, in three kernels."""
        dim, half = self.rope.dim, self.rope.dim // 2
        if self.rope.interleaved:
            pairs = split(x[..., :dim], -1, (half, 2)).flip(-1).flatten(-2)
            swapped = torch.cat([pairs, x[..., dim:]], -1)
        elif dim == self.head_dim:
            swapped = x.roll(half, -1)
        else:
            swapped = torch.cat([x[..., half:dim], x[..., :half], x[..., dim:]], -1)
        return torch.addcmul(x * cos, swapped, sin)

    def depends_on_length(self, before: int, total: int) -> bool:
        """Whether growing from `before` tokens to `total` turns the earlier ones differently."""
        match self.rope.scaling:
            case DynamicNtk(context=context):
                return max(before, context) != max(total, context)
            case LongRope(context=context):
                return (before > context) != (total > context)
            case _:
                return False

    def _frequencies(self, positions: Int[Tensor, "batch pos"]) -> Frequencies:
        """The frequencies of this run, chosen without asking the device for a number."""
        device = positions.device
        if device not in self._on:
            self._on[device] = (self._short.to(device), self._long.to(device))
        short, long = self._on[device]
        scaling = self.rope.scaling
        if not isinstance(scaling, DynamicNtk | LongRope):
            return short
        reach = positions.max() + 1
        if isinstance(scaling, DynamicNtk):
            long = ntk_frequencies(self.rope, scaling, reach)
        return torch.where(reach > scaling.context, long, short)


def attention_factor(rope: Rope) -> float:
    """What sines and cosines are multiplied by."""
    match rope.scaling:
        case Yarn(attention_factor=factor) | LongRope(attention_factor=factor):
            return factor
        case _:
            return 1.0


def exponents(rope: Rope, device: torch.device | str = "cpu") -> Frequencies:
    """0, 2/dim, 4/dim, ... below 1."""
    return torch.arange(0, rope.dim, 2, dtype=torch.float32, device=device) / rope.dim


def frequencies(rope: Rope) -> Frequencies:
    """Radians per position, for runs within the original context.

    On the processor even where a model is built on another device, so that all agree.
    """
    wavelengths = rope.theta ** exponents(rope)
    match rope.scaling:
        case None | DynamicNtk():
            return 1.0 / wavelengths
        case Linear(factor):
            return 1.0 / wavelengths / factor
        case Yarn():
            return yarn_frequencies(rope, rope.scaling, wavelengths)
        case Llama3():
            return llama3_frequencies(rope.scaling, 1.0 / wavelengths)
        case LongRope():
            return divided(wavelengths, rope.scaling.short_factor)


def long_frequencies(rope: Rope) -> Frequencies:
    """Radians per position, for runs beyond the original context."""
    if isinstance(rope.scaling, LongRope):
        return divided(rope.theta ** exponents(rope), rope.scaling.long_factor)
    return frequencies(rope)


def divided(wavelengths: Frequencies, factors: tuple[float, ...]) -> Frequencies:
    """One divisor for each frequency."""
    return 1.0 / (torch.tensor(factors, dtype=torch.float32, device="cpu") * wavelengths)


def ntk_frequencies(rope: Rope, scaling: DynamicNtk, reach: Tensor) -> Frequencies:
    """Frequencies on a base that grows with the run, rounded to float32 at every step."""
    stretch = scaling.factor * reach / scaling.context - (scaling.factor - 1)
    base = rope.theta * stretch ** (rope.dim / (rope.dim - 2))
    return 1.0 / base ** exponents(rope, reach.device)


def yarn_frequencies(rope: Rope, scaling: Yarn, wavelengths: Frequencies) -> Frequencies:
    """Full speed for pairs that turn often in the original context, `1 / factor` for the rest."""

    def pair_that_turns(times: float) -> float:
        span = math.log(scaling.context / (times * 2 * math.pi))
        return rope.dim * span / (2 * math.log(rope.theta))

    first, last = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope.dim - 1)
    width = last - first if last != first else 0.001
    pairs = torch.arange(rope.dim // 2, dtype=torch.float32, device="cpu")
    full = 1 - ((pairs - first) / width).clamp(0, 1)
    return 1.0 / (scaling.factor * wavelengths) * (1 - full) + 1.0 / wavelengths * full


def llama3_frequencies(scaling: Llama3, plain: Frequencies) -> Frequencies:
    """Short wavelengths as they are, long ones divided, a blend in between."""
    low, high, context = scaling.low_freq_factor, scaling.high_freq_factor, scaling.context
    length = 2 * math.pi / plain
    blend = (context / length - low) / (high - low)
    blended = (1 - blend) * plain / scaling.factor + blend * plain
    slow = torch.where(length > context / low, plain / scaling.factor, blended)
    return torch.where(length < context / high, plain, slow)
