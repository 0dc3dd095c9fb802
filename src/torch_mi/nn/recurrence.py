# SPDX-License-Identifier: MIT OR Apache-2.0
"""Linear recurrences: RWKV-5 to 7, gated linear attention, the delta rule, state spaces."""

import torch
from jaxtyping import Float
from torch import Tensor

from torch_mi.nn.recurrence_chunks import chunked
from torch_mi.nn.recurrence_steps import stepwise
from torch_mi.nn.recurrence_terms import Outcome, Recurrence, State

__all__ = ["Recurrence", "chunked", "effective", "recur", "stepwise"]

SHORT = 16
"""Up to this many positions, one after the other is faster."""


def recur(r: Recurrence, state: State | None) -> Outcome:
    """What is read and the last state, by whichever form is faster for this many positions."""
    long = r.length > SHORT and r.v.shape[-1] > 1
    return (chunked if long else stepwise)(r, state)


def effective(r: Recurrence) -> Float[Tensor, "batch head query key"]:
    """How much of every value every position reads, signed: exactly `y = A v` from no state."""
    batch, length, heads, _ = r.v.shape
    unit = torch.eye(length, dtype=r.dtype, device=r.v.device)[None, :, None]
    probe = Recurrence(
        r.q,
        r.k,
        unit.expand(batch, -1, heads, -1),
        r.decay,
        r.inclusive,
        r.alpha,
        r.beta,
    )
    return recur(probe, None)[0].transpose(1, 2)
