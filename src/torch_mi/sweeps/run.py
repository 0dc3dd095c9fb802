# SPDX-License-Identifier: MIT OR Apache-2.0
"""The one loop behind everything that runs a model many times: for each spec, a run and a score.

A plain run of each prompt is recorded. A cell then runs from the first layer and position that its
edits can change, side by side with others, and only the rows that the metric reads are unembedded.
Prompts of a dataset are run as if each were alone, whatever their lengths.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from torch_mi.errors import InterventionError
from torch_mi.hooks.coordinates import At, Place, select
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.manifest import Manifest
from torch_mi.memory import available_bytes
from torch_mi.model import MIModel, batch_of
from torch_mi.partial import Record, can_cut, record
from torch_mi.prompts import Prompt
from torch_mi.sweeps.execute import (
    Ended,
    climb,
    judged,
    out_of_memory,
    scores_of,
    too_large,
    unembedded,
)
from torch_mi.sweeps.metrics import Judge, Metric, as_metric
from torch_mi.sweeps.plan import Batch, Plan, Room, arrange, rounds, wide_bytes
from torch_mi.sweeps.progress import Advance, bar
from torch_mi.sweeps.reach import Cell, Item, frame_of, needed, reach
from torch_mi.sweeps.result import SweepResult
from torch_mi.sweeps.store import Keys, Store, joined
from torch_mi.types import numbers

Specs = Iterable[HookSpec] | Mapping[str, HookSpec] | Callable[[int], Iterable[HookSpec]]
"""The specs of every prompt; or a function from the number of a prompt to its own."""
TOGETHER = 512
"""Cells that are planned together, if no single prompt has more."""


def sweep(  # noqa: PLR0913 - the one door
    model: MIModel,
    prompts: Prompt,
    specs: Specs,
    metric: Metric | Judge,
    *,
    position: Place = -1,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
) -> SweepResult:
    """The score of the run with each spec, on one prompt or each of a list.

    The same as `model.forward(prompt, spec)` for each, for far less work. `specs` is any
    collection or generator, a mapping if cells have names, or a function from the number of a
    prompt to that prompt's specs. Scores are read at `position`, the last unless given; of
    several positions the mean is taken. With `checkpoint`, finished cells are kept in that file,
    and a sweep that was stopped goes on where it was. `progress` shows a bar; `None` shows it on a
    terminal.
    """
    job = _job(model, prompts, specs, metric, position)
    with ExitStack() as stack:
        if checkpoint is not None:
            job.keep_in(stack.enter_context(_store(checkpoint)))
        job.advance = stack.enter_context(bar(job.total, progress))
        stack.enter_context(torch.no_grad())
        return job.run()


def plan_sweep(model: MIModel, prompts: Prompt, specs: Specs, *, position: Place = -1) -> Plan:
    """What a sweep would run, and what it would save; only the plain runs are made."""
    job = _job(model, prompts, specs, as_metric(lambda logits: logits[:, 0]), position)
    with torch.no_grad():
        for chunk in job.chunks():
            job.plan_of(chunk)
    return job.plan


def score_cells(
    model: MIModel, tokens: Tensor, specs: Sequence[HookSpec], metric: Metric
) -> SweepResult:
    """The score of each spec's run on one prompt [1 pos], read at the last position."""
    return sweep(model, tokens, specs, metric, progress=False)


@dataclass(eq=False)
class Chunk:
    """Prompts of one length that are planned together, and their cells."""

    items: dict[int, Item]
    cells: list[Cell]
    specs: dict[int, Sequence[HookSpec]]
    metrics: dict[int, list[Metric]]
    baselines: dict[int, float]

    @property
    def length(self) -> int:
        return next(iter(self.items.values())).record.length


@dataclass(eq=False)
class Job:
    """One sweep while it runs."""

    model: MIModel
    rows: list[Tensor]
    specs_of: Callable[[int], Sequence[HookSpec]]
    names: tuple[str, ...] | None
    metric: Metric
    position: Place
    plan: Plan = field(default_factory=Plan)
    advance: Advance = lambda _: None
    store: Store | None = None
    keys: Keys | None = None
    most: int | None = None
    """Tokens of the largest batch to try, once one has run out of memory."""
    manifest: Manifest | None = None

    @property
    def total(self) -> int | None:
        """How many cells there are, if that is known before they are made."""
        return None if self.names is None else len(self.names) * len(self.rows)

    def keep_in(self, store: Store) -> None:
        """Keep finished cells in a file."""
        self.store = store
        self.keys = Keys(self.model, self.metric, repr(self.position))

    def run(self) -> SweepResult:
        """Every cell of every prompt."""
        found: dict[int, list[float]] = {}
        baselines: dict[int, float] = {}
        for chunk in self.chunks():
            found |= self._run_chunk(chunk)
            baselines |= chunk.baselines
        names = self.names or tuple(map(str, range(len(found[0]))))
        order = range(len(self.rows))
        if self.manifest is None:
            raise InterventionError("a sweep needs a prompt")
        tokens = [numbers(row[0]) for row in self.rows]
        return SweepResult(
            repr(self.metric),
            names,
            torch.tensor([found[i] for i in order]),
            torch.tensor([baselines[i] for i in order]),
            self.plan,
            replace(self.manifest, tokens=tokens, spec=None),
        )

    def chunks(self) -> Iterator[Chunk]:
        """Prompts of one length at a time, as many as make a good number of cells."""
        order = sorted(range(len(self.rows)), key=lambda i: self.rows[i].shape[1])
        cells: int | None = None
        while order:
            chunk = Chunk({}, [], {}, {}, {})
            length = self.rows[order[0]].shape[1]
            room = self._records_that_fit(length)
            while order and self.rows[order[0]].shape[1] == length:
                i = order.pop(0)
                self._take(chunk, i)
                count = len(chunk.specs[i])
                if cells is not None and count != cells:
                    raise InterventionError(
                        f"every prompt needs equally many specs; prompt {i} has {count}, "
                        f"others {cells}"
                    )
                cells = count
                if len(chunk.cells) >= TOGETHER or len(chunk.items) >= room:
                    break
            yield chunk

    def _records_that_fit(self, length: int) -> int:
        """How many prompts of a length may be recorded at a time."""
        sizes, free = self.model.backend.sizes, available_bytes(self.model.device)
        heads = 2 * sizes.get("kv_head", 0) * sizes.get("d_head", 0)
        each = (sizes["d_model"] + heads) * self.model.num_layers * self.model.dtype.itemsize
        return 1 << 30 if free is None else max(1, free // 10 // (each * length))

    def _take(self, chunk: Chunk, i: int) -> None:
        """Record a prompt and work out what its cells reach."""
        specs = chunk.specs[i] = self.specs_of(i)
        tokens = self.rows[i]
        points = dict.fromkeys(hook for spec in specs for hook in needed(self.model, spec))
        made = record(self.model, tokens, points)
        self.manifest = self.manifest or made.manifest
        item = chunk.items[i] = Item(self.model, made, self._reads(made), i)
        cells = [reach(item, spec, k) for k, spec in enumerate(specs)]
        chunk.cells += cells
        plain = unembedded(self.model, made.residuals[-1][0, list(item.reads)])
        chunk.metrics[i] = [self.metric.of(i, len(self.rows), row) for row in plain]
        chunk.baselines[i] = judged(self.model, chunk.metrics[i], plain[None])[0]
        self._count(item, cells)

    def _reads(self, made: Record) -> tuple[int, ...]:
        """The positions of a prompt that the metric reads."""
        found = select(At(pos=self.position), HookPoint.ResidPre, frame_of(self.model, made))
        if found is None:
            raise InterventionError(f"position={self.position!r} is not in the prompt")
        places = torch.arange(made.length)[None]
        return tuple(numbers(places[found.index[:2]].flatten()))

    def _count(self, item: Item, cells: Sequence[Cell]) -> None:
        """What these cells would take, run one by one as a whole."""
        plan, length = self.plan, item.record.length
        plan.cells += len(cells)
        plan.prompts += 1
        plan.whole_work += len(cells) * length * self.model.num_layers
        plan.whole_unembedded += len(cells) * length
        plan.idle += sum(cell.changes_nothing for cell in cells)
        plan.note(
            "run by themselves, for they call functions that are not known",
            sum(cell.opaque for cell in cells),
        )
        if not can_cut(self.model):
            plan.note(
                "run from the first position: in this model later positions change earlier ones",
                sum(not cell.changes_nothing for cell in cells),
            )

    def plan_of(self, chunk: Chunk, keys: str | None = None) -> list[Batch]:
        """The batches of a chunk; those that a checkpoint remembers, if it does."""
        wide = wide_bytes(self.model, chunk.cells, chunk.length)
        room = Room.measured(self.model, wide)
        if self.store is not None and keys is not None:
            if keys in self.store.rooms:
                room = Room(*self.store.rooms[keys])
            else:
                self.store.set_room(keys, [room.tokens, room.call, room.token_bytes])
        batches = arrange(chunk.cells, chunk.length, self.model.num_layers, room)
        for batch in batches:
            tokens = len(batch.cells) * (batch.length - batch.start)
            self.plan.batch_bytes = max(self.plan.batch_bytes, tokens * room.token_bytes)
            self.plan.batches += 1
            self.plan.work += batch.work(self.model.num_layers)
            reads = sum(len(chunk.items[cell.item].reads) for cell in batch.cells)
            self.plan.unembedded += reads
        return batches

    def _run_chunk(self, chunk: Chunk) -> dict[int, list[float]]:
        """The scores of every cell of a chunk, by prompt."""
        found = {i: [chunk.baselines[i]] * len(specs) for i, specs in chunk.specs.items()}
        keys = self._keys(chunk)
        batches = self.plan_of(chunk, joined(list(keys.values())) if keys else None)
        stored = {} if self.store is None else self.store.scores
        idle = [cell for cell in chunk.cells if cell.changes_nothing]
        self.advance(len(idle))
        for together in rounds(batches):
            cells = [cell for batch in together for cell in batch.cells]
            missing = {c for c in cells if keys.get(c, "") not in stored}
            for cell in cells:
                if cell not in missing:
                    found[cell.item][cell.index] = stored[keys[cell]]
            self.plan.stored += len(cells) - len(missing)
            ended = [e for batch in together for e in self._run(batch, chunk, missing, keys)]
            scores = scores_of(self.model, chunk.metrics, ended)
            for end, score in zip(ended, scores, strict=True):
                found[end.cell.item][end.cell.index] = score
            if self.store is not None and ended:
                self.store.add([keys[end.cell] for end in ended], scores)
            self.advance(len(cells))
        return found

    def _keys(self, chunk: Chunk) -> dict[Cell, str]:
        """What each cell is stored under; nothing without a checkpoint."""
        if self.keys is None:
            return {}
        count = len(self.rows)
        return {
            cell: self.keys.of(
                self.rows[cell.item], count, cell.item, chunk.specs[cell.item][cell.index]
            )
            for cell in chunk.cells
        }

    def _run(
        self, batch: Batch, chunk: Chunk, missing: set[Cell], keys: Mapping[Cell, str]
    ) -> list[Ended]:
        """Run a batch, in halves if it does not fit."""
        cells = tuple(cell for cell in batch.cells if cell in missing)
        if not cells:
            return []
        batch = replace(batch, cells=cells)
        name = joined([keys[cell] for cell in cells]) if keys else ""
        if self.store is not None and name in self.store.halved:
            return self._run_halves(batch, chunk, missing, keys)
        tokens = len(cells) * (batch.length - batch.start)
        if self.most is None or tokens <= self.most or len(cells) == 1:
            try:
                return climb(self.model, chunk.items, batch)
            except (RuntimeError, MemoryError) as cause:
                if not out_of_memory(cause):
                    raise
                if len(cells) == 1:
                    raise too_large(batch) from cause
                self.most = tokens // 2
        self.plan.splits += 1
        if self.store is not None:
            self.store.halve(name)
        return self._run_halves(batch, chunk, missing, keys)

    def _run_halves(
        self, batch: Batch, chunk: Chunk, missing: set[Cell], keys: Mapping[Cell, str]
    ) -> list[Ended]:
        return [end for half in batch.halves() for end in self._run(half, chunk, missing, keys)]


@contextmanager
def _store(path: str | Path) -> Generator[Store]:
    store = Store(path)
    try:
        yield store
    finally:
        store.close()


def _job(
    model: MIModel, prompts: Prompt, specs: Specs, metric: Metric | Judge, position: Place
) -> Job:
    """A sweep that has not begun."""
    rows = [torch.tensor([row]) for row in batch_of(model, prompts).rows()]
    judge = as_metric(metric)
    if callable(specs):
        of = specs
        return Job(model, rows, lambda i: _checked(of(i)), None, judge, position)
    named = cast("Mapping[str, HookSpec]", specs) if isinstance(specs, Mapping) else None
    listed = _checked(cast("Iterable[HookSpec]", specs) if named is None else named.values())
    names = map(str, range(len(listed)) if named is None else named)
    return Job(model, rows, lambda _: listed, tuple(names), judge, position)


def _checked(specs: Iterable[HookSpec]) -> list[HookSpec]:
    if isinstance(specs, HookSpec):
        raise InterventionError("sweep takes a collection of specs; put the one spec in a list")
    listed = list(specs)
    for spec in listed:
        if not isinstance(spec, HookSpec):  # pyright: ignore[reportUnnecessaryIsInstance] - users are untyped
            raise InterventionError(f"{spec!r} is not a HookSpec")
    if not listed:
        raise InterventionError("a sweep needs at least one spec")
    return listed
