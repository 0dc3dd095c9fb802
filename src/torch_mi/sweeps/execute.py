# SPDX-License-Identifier: MIT OR Apache-2.0
"""Batches of cells, run: each row its own edits, from its own layer, to the rows that are read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_mi.errors import ModelError
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.trace import Tap, Trace, silent
from torch_mi.model import MIModel
from torch_mi.partial import begin, offer
from torch_mi.sweeps.metrics import Metric
from torch_mi.sweeps.plan import Batch
from torch_mi.sweeps.reach import TOKENS, Cell, Item
from torch_mi.types import Carry

UNEMBED = 128
"""Positions that are turned into logits at a time."""
Rows = list[tuple[int, Tap]]


class RowsTap:
    """The taps of the rows of one batch as one: each sees its own row, as if it were alone."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __call__(self, point: HookPoint, x: Tensor, /) -> Tensor:
        watching = [(row, tap) for row, tap in self._rows if tap.watches(point)]
        if not watching:
            return x
        out = x.clone()
        for row, tap in watching:
            out[row : row + 1] = tap(point, x[row : row + 1])
        return out

    def later(self, point: HookPoint, make: Callable[[], Tensor], /) -> None:
        """Cells of a sweep capture nothing."""

    def watches(self, *points: HookPoint) -> bool:
        return any(tap.watches(*points) for _, tap in self._rows)

    def edits(self, point: HookPoint, /) -> bool:
        return any(tap.edits(point) for _, tap in self._rows)


def tap_of(rows: Rows) -> Tap:
    """One tap for a batch, silent where no row is watched."""
    watched = [(row, tap) for row, tap in rows if tap is not silent]
    return RowsTap(watched) if watched else silent


@dataclass(frozen=True, eq=False)
class Ended:
    """Where one cell's run came out: the residual stream where it is read, or logits."""

    cell: Cell
    x: Tensor | None
    """[read d_model]"""
    logits: Tensor | None = None
    """[read vocab], where the unembedding itself is edited."""


def climb(model: MIModel, items: Mapping[int, Item], batch: Batch) -> list[Ended]:
    """Run a batch: at each layer the cells that start there join it."""
    start, cells = batch.start, sorted(batch.cells, key=lambda c: c.layer)
    shared = begin(model, batch.length, start)
    owners = [items[cell.item] for cell in cells]
    traces = [
        Trace(cell.spec(start), offer(model), owner.frame(start, cell.layer))
        for cell, owner in zip(cells, owners, strict=True)
    ]
    parts: list[Tensor] = []
    count = sum(cell.layer == TOKENS for cell in cells)
    if count:
        tokens = torch.cat([owner.record.tokens[:, start:] for owner in owners[:count]])
        tap = tap_of([(row, trace.tap()) for row, trace in enumerate(traces[:count])])
        parts.append(model.backend.embed(tokens, shared, tap))
    for layer in range(max(cells[0].layer, 0), model.num_layers):
        while count < len(cells) and cells[count].layer == layer:
            parts.append(owners[count].record.residual(layer, start).x)
            count += 1
        x = parts[0] if len(parts) == 1 else torch.cat(parts)
        tap = tap_of([(row, trace.tap(layer)) for row, trace in enumerate(traces[:count])])
        x, _ = model.backend.block(layer, x, shared, tap, _past(owners[:count], layer, start))
        parts = [x]
    for owner in owners[count:]:
        parts.append(owner.record.residual(model.num_layers, start).x)
    x = torch.cat(parts)
    return [
        _ended(model, owners[row], cell, x[row : row + 1], traces[row], start)
        for row, cell in enumerate(cells)
    ]


def _past(owners: Sequence[Item], layer: int, start: int) -> Carry:
    """What a layer remembers of the positions before `start`, for each row."""
    first = owners[0].record
    if all(owner.record is first for owner in owners):
        return tuple(x.expand(len(owners), *x.shape[1:]) for x in first.past(layer, start))
    each = [owner.record.past(layer, start) for owner in owners]
    return tuple(torch.cat(rows) for rows in zip(*each, strict=True))


def _ended(model: MIModel, owner: Item, cell: Cell, x: Tensor, trace: Trace, start: int) -> Ended:
    """What is read of one row; positions before its start are the plain run's."""
    reads = torch.tensor(owner.reads, device=x.device)
    if cell.ends_edited:
        logits = model.backend.unembed(x, trace.tap())[0]
        if min(owner.reads) < start:
            plain = model.backend.unembed(owner.record.residuals[-1][:, :start], silent)[0]
            logits = torch.cat([plain, logits])
            start = 0
        trace.finish()
        return Ended(cell, None, logits[reads - start])
    trace.finish()
    if min(owner.reads) < start:
        x, start = torch.cat([owner.record.residuals[-1][:, :start], x], 1), 0
    return Ended(cell, x[0, reads - start])


def unembedded(model: MIModel, x: Tensor) -> Tensor:
    """The logits [row vocab] of residual streams [row d_model] that left the last layer."""
    parts = [model.backend.unembed(part[None], silent)[0] for part in x.split(UNEMBED)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def scores_of(
    model: MIModel,
    metrics: Mapping[int, Sequence[Metric]],
    ended: Sequence[Ended],
) -> list[float]:
    """The score of each run: the mean over the positions that are read."""
    found = [0.0] * len(ended)
    hidden = [i for i, end in enumerate(ended) if end.x is not None]
    for k in range(0, len(hidden), UNEMBED):
        some = hidden[k : k + UNEMBED]
        rows = [x for i in some if (x := ended[i].x) is not None]
        logits = unembedded(model, torch.cat(rows)).split([len(x) for x in rows])
        _score(model, metrics, dict(zip(some, logits, strict=True)), ended, found)
    direct = {i: end.logits for i, end in enumerate(ended) if end.logits is not None}
    _score(model, metrics, direct, ended, found)
    return found


def _score(
    model: MIModel,
    metrics: Mapping[int, Sequence[Metric]],
    logits: Mapping[int, Tensor],
    ended: Sequence[Ended],
    found: list[float],
) -> None:
    """Fill in the scores of the cells whose logits [read vocab] are given, prompt by prompt."""
    by_prompt: dict[int, list[int]] = {}
    for i in logits:
        by_prompt.setdefault(ended[i].cell.item, []).append(i)
    for item, those in by_prompt.items():
        values = judged(model, metrics[item], torch.stack([logits[i] for i in those]))
        for i, value in zip(those, values, strict=True):
            found[i] = value


def judged(model: MIModel, metrics: Sequence[Metric], logits: Tensor) -> list[float]:
    """Scores of logits [row read vocab] by the metric of each position that is read."""
    each = [metric.score(model, logits[:, i]).float() for i, metric in enumerate(metrics)]
    scores = each[0] if len(each) == 1 else torch.stack(each).mean(0)
    return scores.cpu().tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - torch's stub


def out_of_memory(error: BaseException) -> bool:
    """Whether torch says that there was not the memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # what the processor's allocator raises has no class of its own
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def too_large(batch: Batch) -> ModelError:
    """What to say if not even one cell fits."""
    return ModelError(
        f"out of memory with a single run of {batch.length - batch.start} tokens; use a shorter "
        "prompt, or load with dtype=torch.bfloat16"
    )
