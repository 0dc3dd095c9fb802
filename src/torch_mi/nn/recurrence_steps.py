# SPDX-License-Identifier: MIT OR Apache-2.0
"""A linear recurrence as it is written down: position after position."""

import torch
from torch import Tensor

from torch_mi.nn.recurrence_terms import Outcome, Recurrence, State


def stepwise(r: Recurrence, state: State | None) -> Outcome:
    """What is read and the last state, in as many steps as there are positions.

    The state is float32, or float64 if the values are; what is read has the values' dtype.
    """
    dtype, r = r.v.dtype, r.precise()
    state = r.empty() if state is None else state.to(r.dtype)
    fade = r.decay.exp().expand(-1, r.length, -1, -1)
    erased = zip(_each(r.alpha, r.length), _each(r.beta, r.length), strict=True)
    read: list[Tensor] = []
    for q, k, v, e, (alpha, beta) in zip(
        r.q.unbind(1), r.k.unbind(1), r.v.unbind(1), fade.unbind(1), erased, strict=True
    ):
        before = state
        state = torch.addcmul(state * e[..., None], k[..., None], v[..., None, :])
        if alpha is not None and beta is not None:
            state = torch.addcmul(state, beta[..., None], alpha[..., None, :] @ before)
        read.append(_read(q, state if r.inclusive else before))
    return torch.stack(read, 1).to(dtype), state


def _each(x: Tensor | None, length: int) -> tuple[Tensor | None, ...]:
    return (None,) * length if x is None else x.unbind(1)


def _read(q: Tensor, state: State) -> Tensor:
    if state.shape[-1] == 1:  # many heads of one value each: no matter for matrix products
        return (q[..., None] * state).sum(-2)
    return (q[..., None, :] @ state).squeeze(-2)
