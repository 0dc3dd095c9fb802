# SPDX-License-Identifier: MIT OR Apache-2.0
"""A linear recurrence by chunks: matrix products within, one short step from each to the next.

After Yang et al. 2024 (arXiv:2312.06635; with an erase term 2406.06484). All that does not need
the state is made for all chunks at once.
"""

import torch
from torch import Tensor

from torch_mi.nn.recurrence_meet import Resolved, cut, resolved
from torch_mi.nn.recurrence_terms import Outcome, Recurrence, State
from torch_mi.types import split

SIZE, LARGE = 32, 64
"""Positions in a chunk, on a processor and on what is fast at large products."""
SEGMENT, LONG = 256, 4096
"""Positions at once: on a processor what they need fits into a cache."""


def chunked(r: Recurrence, state: State | None) -> Outcome:
    """What is read and the last state, many positions at a time.

    Values and gradients are finite whatever the decays, as long as those are at most 0.
    """
    state = r.empty() if state is None else state.to(r.dtype)
    size, many = (SIZE, SEGMENT) if r.v.device.type == "cpu" else (LARGE, LONG)
    read: list[Tensor] = []
    for start in range(0, r.length, many):
        y, state = segment(r.part(start, start + many).precise(), state, size)
        read.append(y.to(r.v.dtype))
    return (read[0] if len(read) == 1 else torch.cat(read, 1)), state


def segment(r: Recurrence, state: State, size: int) -> Outcome:
    """The same for positions that are looked at together, `size` to a chunk."""
    batch, length, heads, _ = r.q.shape
    v = cut(r.v, size, r).contiguous()  # or both products would copy it
    y, last = across(resolved(r, size), v, state.flatten(0, 1))
    y = split(y, 1, (batch, heads)).permute(1, 0, 3, 2, 4).flatten(1, 2)
    return y[:, :length], split(last, 0, (batch, heads))


def across(chunks: Resolved, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """What is read [chunk row place d_value] and the last state [row d_key d_value]."""
    written = chunks.k.mT @ v
    total = chunks.total.mT.expand(v.shape[0], -1, -1, -1)
    states: list[Tensor] = []
    for i in range(v.shape[0]):
        states.append(state)
        new = written[i]
        if chunks.alpha is not None and chunks.beta is not None:
            new = torch.baddbmm(new, chunks.beta[i].mT, torch.bmm(chunks.alpha[i], state))
        state = torch.addcmul(new, total[i], state)
    return chunks.scores @ v + chunks.q @ torch.stack(states), state
