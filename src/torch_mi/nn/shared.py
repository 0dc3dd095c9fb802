# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the layers of one run share: which keys a query may see, and the turn of each position."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from torch_mi.config.parts import Alibi
from torch_mi.config.rope import Rope
from torch_mi.nn.rotary import Rotary
from torch_mi.types import Heads

Visible = Bool[Tensor, "#batch 1 query key"]
Bias = Float[Tensor, "#batch head query key"]


@dataclass
class Sight:
    """Which keys each query of a run may see; one mask for each window, made once."""

    queries: int
    seen: int
    padding: Bool[Tensor, "batch key"] | None
    """Where the keys are real tokens; `None` if all are."""
    device: torch.device
    causal: bool = True
    masks: dict[int | None, Visible] = field(default_factory=dict[int | None, Visible])

    def mask(self, window: int | None) -> Visible:
        """True where a query may look: not ahead, not beyond the window, not at padding."""
        keys = self.seen + self.queries
        window = None if window is not None and window >= keys else window
        if window not in self.masks:
            self.masks[window] = self._visible(window, keys)
        return self.masks[window]

    def _visible(self, window: int | None, keys: int) -> Visible:
        """The mask for a window; it counts real tokens, wherever the padding is."""
        key = torch.arange(keys, device=self.device)[None]
        query = key[:, self.seen :, None]
        visible = key[:, None, :] <= query if self.causal else (key[:, None, :] >= 0) & (query >= 0)
        if self.padding is not None:
            visible = visible & self.padding[:, None, :]
        if window is not None:
            apart = self.count()[:, self.seen :, None] - self.count()[:, None, :]
            visible = visible & (apart < window) & (apart > -window)
        return visible[:, None]

    def count(self) -> Int[Tensor, "#batch key"]:
        """The place of each key among the real tokens of its row."""
        if self.padding is None:
            return torch.arange(self.seen + self.queries, device=self.device)[None]
        return (self.padding.long().cumsum(1) - 1).clamp(min=0)

    def plain(self, window: int | None) -> bool:
        """Whether every query of this run may see exactly what causality lets it see."""
        keys = self.seen + self.queries
        return self.padding is None and (window is None or window >= keys)


def slopes(alibi: Alibi, heads: int) -> Float[Tensor, " head"]:
    """How steeply each head's scores fall: powers of two, evenly spaced in the exponent."""
    total = 1 << (heads - 1).bit_length()
    steps = torch.arange(1, total + 1, dtype=torch.float32) * (alibi.max_bias / total)
    every = torch.pow(2.0, -steps)
    return every if total == heads else torch.cat([every[1::2], every[::2]])[:heads]


def linear_biases(alibi: Alibi, heads: int, sight: Sight) -> Bias:
    """What is added to the scores: minus the distance times the head's slope."""
    key = sight.count()
    slope = slopes(alibi, heads).to(key.device)[None, :, None, None]
    if alibi.rounded:
        return (slope.bfloat16() * key[:, None, None, :].bfloat16()).float()
    return slope * (key[:, None, None, :] - key[:, None, sight.seen :, None])


@dataclass(frozen=True)
class Turn:
    """The tables of one rotary embedding for the positions of one run."""

    rope: Rotary
    cos: Tensor
    sin: Tensor


@dataclass(frozen=True)
class Shared:
    """What the layers of one run share: positions, rotary tables, masks and biases."""

    positions: Int[Tensor, "#batch pos"]
    turns: Mapping[Rope, Turn]
    sight: Sight
    bias: Bias | None
    """Added to the scores of every layer."""
    explicit: bool
    """Attention step by step even where nobody looks."""

    def rotate(self, x: Heads, rope: Rope | None) -> Heads:
        """Queries or keys, turned."""
        if rope is None:
            return x
        turn = self.turns[rope]
        return turn.rope.apply_to(x, turn.cos, turn.sin)
