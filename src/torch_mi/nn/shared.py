# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the layers of one run share: which keys a query may see, and the turn of each position."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor

from torch_mi.nn.rotary import Rotary
from torch_mi.types import Heads

Visible = Bool[Tensor, "#batch 1 query key"]


@dataclass
class Sight:
    """Which keys each query of a run may see; one mask for each window, made once."""

    queries: int
    seen: int
    padding: Bool[Tensor, "batch key"] | None
    """Where the keys are real tokens; `None` if all are."""
    device: torch.device
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
        visible = key[:, None, :] <= key[:, self.seen :, None]
        if self.padding is not None:
            visible = visible & self.padding[:, None, :]
            key = self.padding.long().cumsum(1)
        if window is not None:
            visible = visible & (key[:, None, :] > key[:, self.seen :, None] - window)
        return visible[:, None]

    def plain(self, window: int | None) -> bool:
        """Whether every query of this run may see exactly what causality lets it see."""
        keys = self.seen + self.queries
        return self.padding is None and (window is None or window >= keys)


@dataclass(frozen=True)
class Shared:
    """What the layers of one run share: rotary tables and masks."""

    rope: Rotary
    cos: Tensor
    sin: Tensor
    sight: Sight
    explicit: bool
    """Attention step by step even where nobody looks."""

    def rotate(self, x: Heads) -> Heads:
        return self.rope.apply_to(x, self.cos, self.sin)
