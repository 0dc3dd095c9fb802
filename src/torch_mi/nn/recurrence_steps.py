# SPDX-License-Identifier: MIT OR Apache-2.0
"""A linear recurrence as it is written down: position after position."""

from collections.abc import Iterator
from itertools import repeat

import torch
from torch import Tensor

from torch_mi.nn.recurrence_terms import Outcome, Recurrence, State


def stepwise(r: Recurrence, state: State | None) -> Outcome:
    """What is read and the last state, in as many steps as there are positions.

    The state is float32, or float64 if the values are; what is read has the values' dtype.
    """
    dtype, r = r.v.dtype, r.precise()
    state = r.empty() if state is None else state.to(r.dtype)
    erased = zip(_each(r.alpha, r.length), _each(r.beta, r.length), strict=True)
    read: list[Tensor] = []
    for q, k, v, fade, (alpha, beta) in zip(
        r.q.unbind(1), r.k.unbind(1), r.v.unbind(1), _fades(r), erased, strict=True
    ):
        before = state
        state = torch.addcmul(state * fade[..., None], k[..., None], v[..., None, :])
        if alpha is not None and beta is not None:
            state = torch.addcmul(state, beta[..., None], alpha[..., None, :] @ before)
        read.append(_read(q, state if r.inclusive else before))
    return torch.stack(read, 1).to(dtype), state


def _fades(r: Recurrence) -> Iterator[Tensor]:
    """One at a time: all at once would be read again from memory."""
    if r.decay.shape[1] == 1:
        return repeat(r.decay[:, 0].exp(), r.length)
    return (decay.exp() for decay in r.decay.unbind(1))


def _each(x: Tensor | None, length: int) -> tuple[Tensor | None, ...]:
    return (None,) * length if x is None else x.unbind(1)


def _read(q: Tensor, state: State) -> Tensor:
    if state.shape[-1] == 1:  # many heads of one value each are nothing for matrix products
        return (q[..., None] * state).sum(-2)
    return (q[..., None, :] @ state).squeeze(-2)
