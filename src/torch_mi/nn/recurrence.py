# SPDX-License-Identifier: MIT OR Apache-2.0
"""Linear recurrences: RWKV-5 to 7, gated linear attention, the delta rule, state spaces."""

from jaxtyping import Float
from torch import Tensor

from torch_mi.nn.recurrence_chunks import chunked
from torch_mi.nn.recurrence_meet import resolved
from torch_mi.nn.recurrence_steps import stepwise
from torch_mi.nn.recurrence_terms import Outcome, Recurrence, State
from torch_mi.types import split

__all__ = ["Recurrence", "chunked", "effective", "recur", "stepwise"]

SHORT = 16
"""Up to this many positions, one after the other is faster."""
NARROW = 8
"""States with fewer keys or values, such as Mamba's, are no matter for matrix products."""


def recur(r: Recurrence, state: State | None) -> Outcome:
    """What is read and the last state, by whichever form is faster for this many positions."""
    matrices = min(r.k.shape[-1], r.v.shape[-1]) >= NARROW
    return (chunked if matrices and r.length > SHORT else stepwise)(r, state)


def effective(r: Recurrence) -> Float[Tensor, "batch head query key"]:
    """How much of every value every position reads, signed: exactly `y = A v` from no state."""
    size = 1 << (r.length - 1).bit_length()
    scores = resolved(r.precise(), size).scores[0, :, : r.length, : r.length]
    return split(scores, 0, (r.q.shape[0], -1))
