# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the positions of a linear recurrence read of each other's writes, without a state."""

from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from torch_mi.nn.recurrence_terms import Recurrence
from torch_mi.types import split

LARGEST = 30.0
"""No e^x with a greater x is ever made of decays that are at most 0; gradients square it."""
DIRECT = 4
"""Where decays are sharp, so many positions meet pair by pair."""
SOLVED = 16
"""Up to this size a triangular matrix is inverted by substitution, beyond by blocks."""


@dataclass(frozen=True, eq=False)
class Met:
    """What positions of the same chunk are to each other, and to its two ends."""

    scores: list[list[Tensor]]
    """For each way to read and to write [chunk row place place], lower triangular."""
    reads: list[Tensor]
    """Faded since the chunk's start [chunk row place d_key]."""
    writes: list[Tensor]
    """Fading until the chunk's end."""
    total: Tensor
    """How much fades from start to end [#chunk row 1 #d_key]."""


@dataclass(frozen=True, eq=False)
class Resolved:
    """Chunks by themselves: y = A v + Q S, next S = total S + K^T v + beta^T (alpha S)."""

    scores: Tensor
    q: Tensor
    k: Tensor
    total: Tensor
    alpha: Tensor | None = None
    beta: Tensor | None = None


def resolved(r: Recurrence, size: int) -> Resolved:
    """The chunks of a recurrence, `size` positions each, which is a power of 2.

    What a chunk erases, P = alpha S + (alpha k) v + (alpha beta) P, is solved for and put into
    what is read and written; only alpha S is left for the way from chunk to chunk.
    """
    met = meet(r, size)
    if r.alpha is None:
        return Resolved(met.scores[0][0], met.reads[0], met.writes[0], met.total)
    (seen, seen_erased), (found, found_erased) = met.scores
    (q, alpha), (k, beta) = met.reads, met.writes
    solved = inverse(found_erased)
    through, beta = seen_erased @ solved, solved.mT @ beta
    return Resolved(
        seen + through @ found,
        q + through @ alpha,
        k + found.mT @ beta,
        met.total,
        alpha,
        beta,
    )


def cut(x: Tensor, size: int, r: Recurrence) -> Tensor:
    """[chunk, batch x head, place, ...]; one chunk only of what is the same everywhere."""
    batch, length, heads, _ = r.q.shape
    if x.shape[1] == 1 < length:
        x = x.expand(-1, length if length % size else size, -1, -1)
    if missing := -x.shape[1] % size:
        x = pad(x, (0, 0, 0, 0, 0, missing))
    x = split(x.expand(batch, -1, heads, -1), 1, (-1, size))
    x = x.permute(1, 0, 3, 2, 4).contiguous()  # or every product would copy it
    return x.flatten(1, 2)


def meet(r: Recurrence, size: int) -> Met:
    """From small blocks to whole chunks, each twice as long as the last.

    The later half of a block reads what the earlier half wrote, by the fading up to their border:
    every factor is at most 1. Where decays are mild, blocks are larger to begin with.
    """
    decay, block = cut(r.decay, size, r), _mild(r.decay, size)
    first = _undone if block > DIRECT else _direct
    block = min(max(block, DIRECT), size)
    reads = [r.q] if r.alpha is None else [r.q, r.alpha]
    writes = [r.k] if r.beta is None else [r.k, r.beta]
    met = first(
        [_blocks(cut(x, size, r), block) for x in reads],
        [_blocks(cut(x, size, r), block) for x in writes],
        _blocks(decay, block),
        [r.inclusive, False][: len(reads)],
    )
    while block < size:
        met, block = _doubled(met), 2 * block
    return met


def _mild(decay: Tensor, size: int) -> int:
    """The longest block, at most a chunk, over which nothing changes by more than e^LARGEST."""
    if decay.is_meta:
        return size
    low, high = decay.detach().aminmax()
    sharpest, block = max(-float(low), float(high)), size
    while block > 1 and block * sharpest > LARGEST:
        block //= 2
    return block


def _blocks(x: Tensor, block: int) -> Tensor:
    return x.reshape(x.shape[0], -1, block, x.shape[-1])


def _undone(reads: list[Tensor], writes: list[Tensor], decay: Tensor, own: list[bool]) -> Met:
    """Blocks whose fading may be undone: e^{a - b} as e^a e^{-b}.

    `own` says of each way to read whether a position meets its own writes.
    """
    fade = decay.cumsum(-2).exp()
    before = pad(fade[..., :-1, :], (0, 0, 1, 0), value=1.0) if not all(own) else fade
    total, undone = fade[..., -1:, :], fade.reciprocal()
    reads = [x * (fade if here else before) for x, here in zip(reads, own, strict=True)]
    lifted = [y * undone for y in writes]
    scores = [
        [(x @ y.mT).tril(0 if here else -1) for y in lifted]
        for x, here in zip(reads, own, strict=True)
    ]
    return Met(scores, reads, [y * total for y in lifted], total)


def _direct(reads: list[Tensor], writes: list[Tensor], decay: Tensor, own: list[bool]) -> Met:
    """The same for a few positions whose decays may be of any sharpness, pair by pair."""
    fade = decay.exp()
    each = [fade[..., i : i + 1, :] for i in range(fade.shape[-2])]
    one = torch.ones_like(each[0])
    since = [one, *accumulate(each, mul)]
    until = [*accumulate(reversed(each[1:]), mul, initial=one)]
    faded = {here: torch.cat(since[1:] if here else since[:-1], -2) for here in set(own)}
    left = torch.cat(until[::-1], -2)
    return Met(
        [[_pairs(x, y, fade, here) for y in writes] for x, here in zip(reads, own, strict=True)],
        [x * faded[here] for x, here in zip(reads, own, strict=True)],
        [y * left for y in writes],
        since[-1],
    )


def _pairs(x: Tensor, y: Tensor, fade: Tensor, own: bool) -> Tensor:  # noqa: FBT001 - one of a list
    """What each position reads of each write of its block, those of equal distance together."""
    block = x.shape[-2]
    scores = x.new_zeros(*x.shape[:-1], block)
    for back in range(block):
        y = y[..., : block - back, :]
        if own and back:
            y = y * fade[..., back:, :]
        if own or back:
            scores = scores + torch.diag_embed((x[..., back:, :] * y).sum(-1), -back)
        if back and not own:
            y = y * fade[..., back:, :]
    return scores


def _doubled(met: Met) -> Met:
    """Blocks of twice the length from pairs of neighbours."""
    pairs = [split(x, 1, (-1, 2)) for x in met.reads], [split(y, 1, (-1, 2)) for y in met.writes]
    total = split(met.total, 1, (-1, 2))
    scores = [
        [
            _corner(split(known, 1, (-1, 2)), x[:, :, 1] @ y[:, :, 0].mT)
            for y, known in zip(pairs[1], row, strict=True)
        ]
        for x, row in zip(pairs[0], met.scores, strict=True)
    ]
    first, second = total[:, :, 0], total[:, :, 1]
    return Met(
        scores,
        [torch.cat([x[:, :, 0], x[:, :, 1] * first], -2) for x in pairs[0]],
        [torch.cat([y[:, :, 0] * second, y[:, :, 1]], -2) for y in pairs[1]],
        first * second,
    )


def _corner(pairs: Tensor, lower: Tensor) -> Tensor:
    """Lower triangular matrices from two on the diagonal and what is below."""
    first, second = pairs.unbind(2)
    above = torch.cat([first, torch.zeros_like(first)], -1)
    return torch.cat([above, torch.cat([lower, second], -1)], -2)


def inverse(lower: Tensor) -> Tensor:
    """(1 - L)^-1 for strictly lower triangular L [... place place]."""
    size = lower.shape[-1]
    if size <= SOLVED:
        unit = torch.eye(size, dtype=lower.dtype, device=lower.device)
        solve = torch.linalg.solve_triangular  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - torch's stub
        return cast(
            "Tensor", solve(unit - lower, unit.expand_as(lower), upper=False, unitriangular=True)
        )
    half = size // 2
    corners = torch.stack([lower[..., :half, :half], lower[..., half:, half:]], 2)
    both = inverse(corners)
    first, second = both.unbind(2)
    return _corner(both, second @ lower[..., half:, :half] @ first)
