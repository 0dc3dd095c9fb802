# SPDX-License-Identifier: MIT OR Apache-2.0
"""Which cells run side by side, from where, and how much work that saves.

Cells that change the same positions form a staircase: at each layer those that start there join
the batch, and every row holds later positions only. Cells that start at neighbouring positions
share a staircase where a batch of few tokens would cost more than the positions run in vain.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby

import torch

from torch_mi.hooks.point import HookPoint
from torch_mi.memory import available_bytes, human_bytes
from torch_mi.model import MIModel
from torch_mi.sweeps.reach import Cell

SHARE = {"cpu": 0.25, "cuda": 0.6}
"""How much of the free memory a batch may take."""
MOST = {"cpu": 1024, "cuda": 32768}
"""Tokens beyond which a larger batch is no faster."""
CALL = {"cpu": 32, "cuda": 1024}
"""What one more call of a layer costs, in tokens."""
LOOK_BACK = 64
"""How many neighbouring first positions are considered for one staircase."""
ROUND = 64
"""Runs that are unembedded, scored and stored together."""


@dataclass(frozen=True)
class Room:
    """How large a batch may be."""

    tokens: int
    call: int
    token_bytes: int

    @staticmethod
    def measured(model: MIModel, wide: int = 0) -> "Room":
        """What the free memory of the model's device allows, with `wide` more bytes a token."""
        kind = model.device.type
        each = token_bytes(model) + wide
        free = available_bytes(model.device)
        most = MOST.get(kind, MOST["cuda"])
        if free is not None:
            most = min(most, int(free * SHARE.get(kind, 0.5)) // each)
        return Room(max(1, most), CALL.get(kind, CALL["cuda"]), each)

    def rows(self, length: int) -> int:
        """How many rows of so many tokens."""
        return max(1, self.tokens // length)


def token_bytes(model: MIModel) -> int:
    """Memory that one more token of a batch takes while a layer runs, not too little."""
    sizes = model.backend.sizes
    heads = 2 * sizes.get("head", 0) + 4 * sizes.get("kv_head", 0)
    wide = 8 * sizes["d_model"] + 4 * sizes.get("d_mlp", 0) + heads * sizes.get("d_head", 0)
    return wide * max(model.dtype.itemsize, torch.float32.itemsize)


@dataclass(frozen=True, eq=False)
class Batch:
    """Cells that run side by side, for positions `start` … `length` - 1."""

    cells: tuple[Cell, ...]
    start: int
    length: int

    def work(self, n_layers: int) -> int:
        """Tokens that go through a layer, added up over the layers."""
        return (self.length - self.start) * sum(n_layers - max(c.layer, 0) for c in self.cells)

    def halves(self) -> "tuple[Batch, Batch]":
        """The same cells in two batches."""
        middle = len(self.cells) // 2
        first, second = self.cells[:middle], self.cells[middle:]
        return Batch(first, self.start, self.length), Batch(second, self.start, self.length)


def arrange(cells: Sequence[Cell], length: int, n_layers: int, room: Room) -> list[Batch]:
    """The batches of cells whose prompts have one length."""
    busy = [cell for cell in cells if not cell.changes_nothing]
    alone = [Batch((cell,), cell.pos, length) for cell in busy if cell.opaque]
    rest = sorted((c for c in busy if not c.opaque), key=lambda c: (c.pos, c.layer, c.item))
    out: list[Batch] = []
    for together in _staircases(rest, length, n_layers, room.call):
        start = together[0].pos
        steps = sorted(together, key=lambda c: (c.layer, c.item, c.pos))
        rows = room.rows(length - start)
        # evenly, for the last batch is otherwise a small one
        parts = -(-len(steps) // rows)
        rows = -(-len(steps) // parts)
        out += [
            Batch(tuple(steps[i : i + rows]), start, length) for i in range(0, len(steps), rows)
        ]
    return out + alone


def _staircases(
    cells: Sequence[Cell], length: int, n_layers: int, call: int
) -> Iterator[list[Cell]]:
    """Cells, sorted by first position, in stretches that are cheapest to run together."""
    groups = [list(group) for _, group in groupby(cells, lambda c: c.pos)]
    steps = [sum(n_layers - max(c.layer, 0) for c in group) for group in groups]
    least = [0] * (len(groups) + 1)
    begins = [0] * (len(groups) + 1)
    for end in range(1, len(groups) + 1):
        least[end], first, taken = 1 << 62, n_layers, 0
        for begin in range(end - 1, max(-1, end - 1 - LOOK_BACK), -1):
            taken += steps[begin]
            first = min(first, *(max(c.layer, 0) for c in groups[begin]))
            cost = call * (n_layers - first) + taken * (length - groups[begin][0].pos)
            if least[begin] + cost < least[end]:
                least[end], begins[end] = least[begin] + cost, begin
    found: list[list[Cell]] = []
    end = len(groups)
    while end:
        found.append([c for group in groups[begins[end] : end] for c in group])
        end = begins[end]
    return reversed(found)


def rounds(batches: Sequence[Batch]) -> Iterator[list[Batch]]:
    """Batches in order, as many at a time as are scored together."""
    kept: list[Batch] = []
    for batch in batches:
        kept.append(batch)
        if sum(len(b.cells) for b in kept) >= ROUND:
            yield kept
            kept = []
    if kept:
        yield kept


@dataclass
class Plan:
    """How much a sweep runs, and how much it would run cell by cell."""

    cells: int = 0
    prompts: int = 0
    idle: int = 0
    """Cells that provably change nothing that is read; they are not run."""
    stored: int = 0
    """Cells whose scores were found in the checkpoint."""
    batches: int = 0
    work: int = 0
    """Tokens that go through a layer, added up over the layers."""
    whole_work: int = 0
    """The same for one whole run for each cell."""
    unembedded: int = 0
    """Positions that are turned into logits."""
    whole_unembedded: int = 0
    batch_bytes: int = 0
    """What the largest batch takes, as estimated."""
    splits: int = 0
    """How often a batch was halved because memory ran out."""
    notes: dict[str, int] = field(default_factory=dict[str, int])
    """What kept cells from the fast way, and how many."""

    def note(self, why: str, cells: int = 1) -> None:
        if cells:
            self.notes[why] = self.notes.get(why, 0) + cells

    def explain(self) -> str:
        """What is run and what is saved, in words."""
        prompts = "1 prompt" if self.prompts == 1 else f"{self.prompts:,} prompts"
        lines = [
            f"{self.cells:,} cells on {prompts}: {self.idle:,} provably change nothing and are "
            f"not run, {self.stored:,} were in the checkpoint",
            f"layers × tokens: {self.work:,} in {self.batches:,} batches; one whole run for each "
            f"cell takes {self.whole_work:,}{_times(self.whole_work, self.work)}",
            f"positions unembedded: {self.unembedded:,} of {self.whole_unembedded:,}",
            f"largest batch: about {human_bytes(self.batch_bytes)}"
            + (f"; halved {self.splits} times when memory ran out" if self.splits else ""),
        ]
        return "\n".join(
            [*lines, *(f"{cells:,} cells: {why}" for why, cells in self.notes.items())]
        )

    def to_dict(self) -> dict[str, object]:
        """This, as JSON values."""
        return asdict(self)


def _times(whole: int, work: int) -> str:
    return f" ({whole / work:.1f} × as much)" if work else ""


def wide_bytes(model: MIModel, cells: Sequence[Cell], length: int) -> int:
    """What a token takes more where attention scores or heads' shares are formed."""
    wide = {HookPoint.AttnScores, HookPoint.AttnPattern, HookPoint.AttnResult}
    edited = any(reached.hook.point in wide for cell in cells for reached in cell.edits)
    if not edited and not model.backend.always_explicit:
        return 0
    sizes = model.backend.sizes
    return 4 * sizes.get("head", 1) * max(4 * length, 2 * sizes["d_model"] if edited else 0)
