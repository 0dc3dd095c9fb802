# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a linear recurrence is made of."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from torch_mi.types import Mixed

Rows = Float[Tensor, "batch pos head d_key"]
State = Float[Tensor, "batch head d_key d_value"]
Outcome = tuple[Mixed, State]
"""What every position reads, and the state after the last."""


@dataclass(frozen=True, eq=False)
class Recurrence:
    """A state of keys and values that fades, forgets by direction, and is written to and read.

    S_t = e^{decay_t} . S_{t-1} + beta_t (alpha_t^T S_{t-1}) + k_t v_t^T; what is read is S_t^T q_t,
    or S_{t-1}^T q_t if the recurrence is not inclusive.
    """

    q: Rows
    k: Rows
    v: Mixed
    decay: Float[Tensor, "#batch #pos #head #d_key"]
    """Logarithms, at most 0."""
    inclusive: bool
    """Whether a position reads what it writes. RWKV-5 and 6 do not."""
    alpha: Rows | None = None
    beta: Rows | None = None

    @property
    def length(self) -> int:
        """The number of positions."""
        return self.q.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """What sums are kept in: float32 at least."""
        return torch.promote_types(self.v.dtype, torch.float32)

    def part(self, start: int, stop: int) -> "Recurrence":
        """Positions from `start` to before `stop`; what is the same for all positions stays."""
        here = slice(start, stop)
        return replace(
            self,
            q=self.q[:, here],
            k=self.k[:, here],
            v=self.v[:, here],
            decay=self.decay if self.decay.shape[1] == 1 else self.decay[:, here],
            alpha=None if self.alpha is None else self.alpha[:, here],
            beta=None if self.beta is None else self.beta[:, here],
        )

    def precise(self) -> "Recurrence":
        """The same in the dtype of the sums."""
        return replace(
            self,
            q=self.q.to(self.dtype),
            k=self.k.to(self.dtype),
            v=self.v.to(self.dtype),
            decay=self.decay.to(self.dtype),
            alpha=None if self.alpha is None else self.alpha.to(self.dtype),
            beta=None if self.beta is None else self.beta.to(self.dtype),
        )

    def empty(self) -> State:
        """The state before the first position."""
        batch, _, heads, d_key = self.q.shape
        zero = torch.zeros((), dtype=self.dtype, device=self.v.device)
        return zero.expand(batch, heads, d_key, self.v.shape[-1])
