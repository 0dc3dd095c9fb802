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

LARGEST, GENTLEST = 60.0, 15.0
"""No e^x with a greater x is ever made of decays that are at most 0; of those with gradients none
greater than the second: what a sharp decay changes would drown in what its undoing rounds off."""
DIRECT = 4
"""Where decays are sharp, so many positions meet pair by pair."""
SOLVED = 16
"""Up to this size a triangular matrix is inverted by substitution, beyond by blocks."""


@dataclass(frozen=True, eq=False)
class Met:
    """What positions of the same block are to each other, and to its two ends."""

    scores: list[list[Tensor]]
    """For each way to read and to write [chunk row block place place], lower triangular."""
    reads: list[Tensor]
    """Faded since the block's start [chunk row block place d_key]."""
    writes: list[Tensor]
    """Fading until the block's end."""
    total: Tensor
    """How much fades from start to end [#chunk row block 1 #d_key]."""

    @property
    def whole(self) -> "Met":
        """The same without the dimension of blocks, where a chunk is one."""
        return Met(
            [[x.squeeze(2) for x in row] for row in self.scores],
            [x.squeeze(2) for x in self.reads],
            [x.squeeze(2) for x in self.writes],
            self.total.squeeze(2),
        )


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
    """[chunk, batch x head, place, ...]; one chunk only of what is the same everywhere.

    A view where that can be: a matrix product copies it, what is multiplied item by item does not.
    """
    batch, length, heads, _ = r.q.shape
    if x.shape[1] == 1 < length:
        x = x.expand(-1, length if length % size else size, -1, -1)
    if missing := -x.shape[1] % size:
        x = pad(x, (0, 0, 0, 0, 0, missing))
    x = split(x.expand(batch, -1, heads, -1), 1, (-1, size))
    return x.permute(1, 0, 3, 2, 4).flatten(1, 2)


def meet(r: Recurrence, size: int) -> Met:
    """From small blocks to whole chunks, each twice as long as the last.

    The later half of a block reads what the earlier half wrote, by the fading up to their border:
    every factor is at most 1. Where decays are mild, blocks are larger to begin with.
    """
    decay = cut(r.decay, size, r)
    reads = [cut(x, size, r) for x in (r.q, r.alpha) if x is not None]
    writes = [cut(x, size, r) for x in (r.k, r.beta) if x is not None]
    own = [r.inclusive, False][: len(reads)]
    block = _mild(decay)
    reads, writes = ([_blocks(x, block) for x in each] for each in (reads, writes))
    first = _undone if block > DIRECT else _direct
    met = first(reads, writes, _blocks(decay, block), own)
    while block < size:
        met, block = _doubled(met), 2 * block
    return met.whole


def _mild(decay: Tensor) -> int:
    """The longest block over half of which decays add up to no more than e^x allows."""
    size, most = decay.shape[-2], GENTLEST if decay.requires_grad else LARGEST
    if decay.is_meta or size <= DIRECT:
        return size
    block, sums = DIRECT, _blocks(decay.detach(), DIRECT).sum(-2)
    if float(decay.detach().amax()) > 0:
        return block
    while block < size and float(sums.amin()) >= -most:
        block, sums = 2 * block, _blocks(sums, 2).sum(-2)
    return block


def _blocks(x: Tensor, size: int) -> Tensor:
    """[chunk row block place ...]."""
    return split(x, 2, (-1, size))


def _undone(reads: list[Tensor], writes: list[Tensor], decay: Tensor, own: list[bool]) -> Met:
    """Blocks whose fading may be undone: e^{a - b} as e^{a - m} e^{m - b}, m in the middle.

    `own` says of each way to read whether a position meets its own writes.
    """
    sums, half = decay.cumsum(-2), decay.shape[-2] // 2
    middle = sums[..., half - 1 : half, :]
    fade = torch.cat([-middle, sums - middle], -2).exp()  # at each border between positions
    undone = fade.reciprocal()
    start, end = undone[..., :1, :], fade[..., -1:, :]
    faded = {here: fade[..., 1:, :] if here else fade[..., :-1, :] for here in set(own)}
    # what comes first says how a product lies in memory, and what is cut lies by positions
    reads = [faded[here] * x for x, here in zip(reads, own, strict=True)]
    lifted = [undone[..., 1:, :] * y for y in writes]
    scores = [
        [(x @ y.mT).tril(0 if here else -1) for y in lifted]
        for x, here in zip(reads, own, strict=True)
    ]
    return Met(scores, [x * start for x in reads], [y * end for y in lifted], start * end)


def _direct(reads: list[Tensor], writes: list[Tensor], decay: Tensor, own: list[bool]) -> Met:
    """The same for a few positions whose decays may be of any sharpness, pair by pair."""
    fade = decay.contiguous().exp()
    each = [fade[..., i : i + 1, :] for i in range(fade.shape[-2])]
    one = torch.ones_like(each[0])
    since = [one, *accumulate(each, mul)]
    until = [*accumulate(reversed(each[1:]), mul, initial=one)]
    faded = {here: torch.cat(since[1:] if here else since[:-1], -2) for here in set(own)}
    left = torch.cat(until[::-1], -2)
    return Met(
        [[_pairs(x, y, fade, here) for y in writes] for x, here in zip(reads, own, strict=True)],
        [faded[here] * x for x, here in zip(reads, own, strict=True)],
        [left * y for y in writes],
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
    reads, writes = ([_blocks(x, 2) for x in each] for each in (met.reads, met.writes))
    scores = [
        [
            _corner(_blocks(known, 2), x[:, :, :, 1] @ y[:, :, :, 0].mT)
            for y, known in zip(writes, row, strict=True)
        ]
        for x, row in zip(reads, met.scores, strict=True)
    ]
    first, second = _blocks(met.total, 2).unbind(3)
    once = torch.ones_like(first)
    since, until = torch.stack([once, first], 3), torch.stack([second, once], 3)
    return Met(
        scores,
        [(since * x).flatten(3, 4) for x in reads],
        [(until * y).flatten(3, 4) for y in writes],
        first * second,
    )


def _corner(pairs: Tensor, lower: Tensor) -> Tensor:
    """Lower triangular matrices from two on the diagonal and what is below."""
    first, second = pairs.unbind(-3)
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
    corners = torch.stack([lower[..., :half, :half], lower[..., half:, half:]], -3)
    both = inverse(corners)
    first, second = both.unbind(-3)
    return _corner(both, second @ lower[..., half:, :half] @ first)
