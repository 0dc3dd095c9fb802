# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the layers of one recurrent run share, and the step from a token to the one before it."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from torch_mi.nn.shared import Turn
from torch_mi.types import Heads, Resid

Vector = Float[Tensor, "batch d_model"]
Rows = Float[Tensor, "batch _ _"]


@dataclass(frozen=True)
class Steps:
    """Which tokens of a run are real, and which comes before which."""

    length: int
    real: Bool[Tensor, "batch pos"] | None = None
    """Where the tokens are not padding; `None` if all are real."""
    explicit: bool = False
    """Token by token, for bit-stable results."""
    turn: Turn | None = None
    """How queries and keys turn with position, where they do."""
    bounds: Float[Tensor, "layer width"] | None = None
    """The least decay in each layer, where it is learned."""

    def shifted(self, h: Resid, last: Vector | None) -> Resid:
        """At each token what `h` is at the real token before; `last` comes before the first."""
        rows = self._from(h, last)
        if self.real is None:
            return rows[:, :-1]
        index = self._before()[..., None].expand(-1, -1, h.shape[-1])
        return rows.gather(1, index)

    def last(self, h: Resid, last: Vector | None) -> Vector:
        """What `h` is at the last real token; `last` if there is none."""
        if self.real is None:
            return h[:, -1]
        ends = self._numbered().amax(1)[:, None, None].expand(-1, 1, h.shape[-1])
        return self._from(h, last).gather(1, ends)[:, 0]

    def packed(self, x: Rows) -> Rows:
        """Real tokens first, in their order, and padding after them."""
        return x if self.real is None else _rows(x, _order(self.real))

    def unpacked(self, x: Rows) -> Rows:
        """Every token where it was before `packed`."""
        return x if self.real is None else _rows(x, _order(self.real).argsort(1))

    def tail(self, rows: Rows, count: int) -> Rows:
        """The last `count` real ones of packed rows, with `count` earlier ones before them."""
        if self.real is None:
            return rows[:, rows.shape[1] - count :]
        places = torch.arange(count, device=rows.device)
        return _rows(rows, self.real.sum(1, keepdim=True) + places)

    def turned(self, x: Heads) -> Heads:
        """Queries or keys [batch pos head d_key], turned by their position."""
        return x if self.turn is None else self.turn.rope.apply_to(x, self.turn.cos, self.turn.sin)

    def only_real(self, x: Tensor, otherwise: float = 0.0) -> Tensor:
        """`x` [batch pos …] at real tokens, a number at padding."""
        if self.real is None:
            return x
        real = self.real.reshape(*self.real.shape, *[1] * (x.ndim - 2))
        return torch.where(real, x, otherwise)

    def _from(self, h: Resid, last: Vector | None) -> Float[Tensor, "batch after d_model"]:
        first = torch.zeros_like(h[:, :1]) if last is None else last[:, None].to(h)
        return torch.cat([first, h], 1)

    def _numbered(self) -> Int[Tensor, "batch pos"]:
        """For each real token one more than its column, 0 for padding."""
        columns = torch.arange(
            1, self.length + 1, device=None if self.real is None else self.real.device
        )
        return columns[None] if self.real is None else columns * self.real

    def _before(self) -> Int[Tensor, "batch pos"]:
        """One more than the column of the last real token before each, 0 if there is none."""
        up_to = self._numbered().cummax(1).values
        return torch.cat([torch.zeros_like(up_to[:, :1]), up_to[:, :-1]], 1)


def _order(real: Bool[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """The columns of the real tokens, then those of the padding."""
    return (~real).int().argsort(dim=1, stable=True)


def _rows(x: Rows, index: Int[Tensor, "batch row"]) -> Rows:
    """The rows of each item at an index of its own."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
