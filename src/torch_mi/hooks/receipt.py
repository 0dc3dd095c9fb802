# SPDX-License-Identifier: MIT OR Apache-2.0
"""What became of one edit of one run."""

import torch
from torch import Tensor

from torch_mi.hooks.hook import Hook
from torch_mi.hooks.interventions import Intervention


class Receipt:
    """What became of one edit: where it applied, how often, to what shape, how much it changed."""

    def __init__(self, hook: Hook, edit: Intervention, shape: tuple[int, ...]) -> None:
        self.hook, self.edit, self.shape, self.times = hook, edit, shape, 0
        self._largest: Tensor | None = None

    @property
    def largest_change(self) -> float:
        """The largest absolute change of any entry; 0 for an edit that changed nothing."""
        return 0.0 if self._largest is None else float(self._largest)

    def record(self, old: Tensor, new: Tensor, *, again: bool = False) -> None:
        """Note an application; `again` is another part of one that was noted."""
        self.times += 0 if again else 1
        moved = torch.where(new == old, 0, new.detach() - old.detach()).abs().max()
        self._largest = moved if self._largest is None else torch.maximum(self._largest, moved)

    def __repr__(self) -> str:
        return (
            f"<Receipt: {self.edit!r} at {self.hook} applied {self.times}× to "
            f"{list(self.shape)}, largest change {self.largest_change:.4g}>"
        )
