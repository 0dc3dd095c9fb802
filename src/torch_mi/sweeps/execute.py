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
from torch_mi.partial import begin, can_cut, entering, offer
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

    def stops(self, point: HookPoint, /) -> Sequence[int]:
        return sorted({column for _, tap in self._rows for column in tap.stops(point)})

    def step(self, point: HookPoint, column: int, x: Tensor, /) -> Tensor:
        watching = [(row, tap) for row, tap in self._rows if column in tap.stops(point)]
        out = x.clone()
        for row, tap in watching:
            out[row : row + 1] = tap.step(point, column, x[row : row + 1])
        return out


@dataclass(frozen=True, eq=False)
class Ended:
    """Where one cell's run came out: the residual stream where it is read, or logits."""

    cell: Cell
    x: Tensor | None
    """[read d_model]"""
    logits: Tensor | None = None
    """[read vocab], where the unembedding itself is edited."""


@dataclass(frozen=True, eq=False)
class Row:
    """One cell of a batch while it runs."""

    cell: Cell
    owner: Item
    trace: Trace


def climb(model: MIModel, items: Mapping[int, Item], batch: Batch) -> list[Ended]:
    """Run a batch: at each layer the cells that start there join it."""
    start, layers = batch.start, model.num_layers
    shared = begin(model, batch.length, start)
    rows = [
        Row(
            c,
            items[c.item],
            Trace(c.spec(start), offer(model), items[c.item].frame(start, c.layer)),
        )
        for c in sorted(batch.cells, key=lambda c: c.layer)
    ]
    count = sum(row.cell.layer == TOKENS for row in rows)
    parts: list[Tensor] = []
    if count:
        tokens = torch.cat([row.owner.record.tokens[:, start:] for row in rows[:count]])
        parts.append(model.backend.embed(tokens, shared, _tap(rows[:count], None)))
    kept = _first_read(rows, batch, layers)
    for layer in range(max(rows[0].cell.layer, 0), layers):
        while count < len(rows) and rows[count].cell.layer == layer:
            parts.append(rows[count].owner.record.residual(layer, start).x)
            count += 1
        x = parts[0] if len(parts) == 1 else torch.cat(parts)
        tap, past = _tap(rows[:count], layer), _past(rows[:count], layer, start)
        if layer == layers - 1 and kept > start:
            # nothing after this layer's keys and values needs the positions before
            x = entering(model, x, tap)
            before = begin(model, kept, start)
            past = model.backend.remember(layer, x[:, : kept - start], before, silent, past)
            x = x[:, kept - start :]
            start, shared, tap = kept, begin(model, batch.length, kept), silent
        x, _ = model.backend.block(layer, x, shared, tap, past)
        parts = [x]
    parts += [row.owner.record.residual(layers, start).x for row in rows[count:]]
    ends = torch.split(torch.cat(parts), 1)
    return [_ended(model, row, x, start) for row, x in zip(rows, ends, strict=True)]


def _tap(rows: Sequence[Row], layer: int | None) -> Tap:
    """One tap for the rows of a batch, silent where none is watched."""
    taps = [(i, row.trace.tap(layer)) for i, row in enumerate(rows)]
    watched = [(i, tap) for i, tap in taps if tap is not silent]
    return RowsTap(watched) if watched else silent


def _first_read(rows: Sequence[Row], batch: Batch, layers: int) -> int:
    """The first position that the last layer must be run for, where nothing is edited there."""
    for row in rows:
        late = any(
            r.layer == layers - 1 and r.hook.point is not HookPoint.ResidPre for r in row.cell.edits
        )
        if late or row.cell.ends_edited or not can_cut(row.owner.model):
            return batch.start
    return max(batch.start, min(min(row.owner.reads) for row in rows))


def _past(rows: Sequence[Row], layer: int, start: int) -> Carry:
    """What a layer remembers of the positions before `start`, for each row."""
    first = rows[0].owner.record
    if all(row.owner.record is first for row in rows):
        return tuple(x.expand(len(rows), *x.shape[1:]) for x in first.past(layer, start))
    each = [row.owner.record.past(layer, start) for row in rows]
    return tuple(torch.cat(parts) for parts in zip(*each, strict=True))


def _ended(model: MIModel, row: Row, x: Tensor, start: int) -> Ended:
    """What is read of one row; positions before its start are the plain run's."""
    record = row.owner.record
    reads = torch.tensor(row.owner.reads, device=x.device)
    early = min(row.owner.reads) < start
    if row.cell.ends_edited:
        logits = model.backend.unembed(x, row.trace.tap())
        if early:
            plain = model.backend.unembed(record.residuals[-1][:, :start], silent)
            logits, start = torch.cat([plain, logits], 1), 0
        row.trace.finish()
        return Ended(row.cell, None, logits[0, reads - start])
    row.trace.finish()
    if early:
        x, start = torch.cat([record.residuals[-1][:, :start], x], 1), 0
    return Ended(row.cell, x[0, reads - start])


def unembedded(model: MIModel, x: Tensor) -> Tensor:
    """The logits [row vocab] of residual streams [row d_model] that left the last layer."""
    parts = [model.backend.unembed(part[None], silent)[0] for part in torch.split(x, UNEMBED)]
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
        logits = torch.split(unembedded(model, torch.cat(rows)), [len(x) for x in rows])
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
