# SPDX-License-Identifier: MIT OR Apache-2.0
"""An activation that a run hands over token by token, each depending on the one before.

What is asked of the whole activation [batch pos …] is taken apart by column: at each column of the
run, which edits apply to which rows, and what is to be kept.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import cast

import torch
from torch import Tensor

from torch_mi.hooks.coordinates import At, Axis, Frame, Selection, indices, positions, select
from torch_mi.hooks.interventions import KINDS, Intervention
from torch_mi.hooks.point import Hook, HookPoint
from torch_mi.hooks.receipt import Receipt


@dataclass(frozen=True)
class Part:
    """What is selected at one column: of the activation there, and of a value for all of it."""

    column: int
    selection: Selection
    """Into the activation [batch 1 …] of this column."""
    row: int | None
    """The place of these rows among all that are selected; `None` if this is all of them."""
    place: int | None
    """The place of this column among those that are selected; `None` if the axis is dropped."""


@dataclass(frozen=True)
class Apart:
    """A selection of a whole activation, column by column."""

    parts: tuple[Part, ...]
    rank: int
    """How many axes the whole selection has."""
    dropped: bool
    """Whether a single position was named, whose axis the selection has not."""
    by_row: bool
    """Whether rows have their positions in different columns."""

    def value(self, value: Tensor, part: Part) -> Tensor:
        """What a value for the whole selection holds for one part of it."""
        axes = [(0, part.row)] if self.by_row else []
        axes += [] if self.dropped else [(self._pos, part.place)]
        for axis, index in axes:
            dim = value.ndim - (self.rank - axis)
            if index is not None and dim >= 0 and value.shape[dim] > 1:
                value = value.narrow(dim, index, 1)
        return value

    def join(self, kept: Mapping[int, Tensor]) -> Tensor:
        """The whole selection, from the activation [batch 1 …] at each column."""
        rows: dict[int | None, list[Tensor]] = {}
        for part in self.parts:
            rows.setdefault(part.row, []).append(part.selection.take(kept[part.column]))
        joined = [
            taken[0] if self.dropped else torch.cat(taken, self._pos) for taken in rows.values()
        ]
        return joined[0] if len(joined) == 1 else torch.cat(joined)

    @property
    def _pos(self) -> int:
        """Where the positions are in the whole selection: first if one row was named."""
        return 1 if self.batched else 0

    batched: bool = True
    """Whether the selection has an axis of rows."""


def apart(at: At | None, point: HookPoint, frame: Frame) -> Apart | None:
    """A selection of the activation at `point`, by column; `None` if this run has none of it."""
    at = at or At()
    rows = indices(at.batch, frame.batch, "batch", "the batch")
    columns = Axis(list(range(frame.pos)))
    if at.pos is not None:
        found = positions(at.pos, "pos", rows, frame)
        if found is None:
            return None
        columns = found
    one = Frame(frame.batch, 1, 0, frame.sizes, frame.layers)
    dropped = isinstance(columns.index, int)
    if columns.per_row is not None:
        dropped = isinstance(columns.per_row[0], int)
    parts = tuple(_parts(at, point, one, columns, rows))
    batched = not isinstance(rows, int)
    rank = len(parts[0].selection.shape)
    return Apart(parts, rank, dropped, columns.per_row is not None, batched)


def _parts(
    at: At, point: HookPoint, one: Frame, columns: Axis, rows: int | Sequence[int]
) -> Iterator[Part]:
    """A part for every column, and every row if their columns differ."""
    if columns.per_row is None:
        yield from _columns(at, point, one, columns.index, None)
        return
    for i, (row, own) in enumerate(zip(cast("list[int]", rows), columns.per_row, strict=True)):
        yield from _columns(replace(at, batch=[row]), point, one, own, i)


def _columns(
    at: At, point: HookPoint, one: Frame, columns: int | list[int], row: int | None
) -> Iterator[Part]:
    single = isinstance(columns, int)
    here = select(replace(at, pos=0 if single else [0]), point, one)
    if here is None:
        return
    for place, column in enumerate([columns] if isinstance(columns, int) else columns):
        yield Part(column, here, row, None if single else place)


@dataclass
class StepSite:
    """Everything asked for at one stepwise hook of one run."""

    hook: Hook
    frame: Frame
    edits: dict[int, list[tuple[Intervention, Selection, Receipt]]] = field(
        default_factory=dict[int, list[tuple[Intervention, Selection, Receipt]]]
    )
    limit_before: Apart | None = None
    limit_after: Apart | None = None
    reached: bool = False
    _recipe: Callable[[], Tensor] | None = None
    _before: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    _after: dict[int, Tensor] = field(default_factory=dict[int, Tensor])

    def add(self, edit: Intervention, selection: object, receipt: Receipt) -> None:  # noqa: ARG002
        """Take an edit of the whole activation apart by column."""
        found = apart(edit.at, self.hook.point, self.frame)
        for part in () if found is None else found.parts:
            values = {}
            if found is not None and KINDS.get(type(edit).__name__) is type(edit):
                values = {
                    f.name: found.value(value, part)
                    for f in fields(edit)
                    if isinstance(value := cast("object", vars(edit)[f.name]), Tensor)
                }
            narrowed = replace(edit, **values) if values else edit
            self.edits.setdefault(part.column, []).append((narrowed, part.selection, receipt))

    def keep(self, make: Callable[[], Tensor]) -> None:
        """Keep a recipe for the activation [batch column …] at `columns`; there are no edits."""
        self.reached = True
        self._recipe = make

    @property
    def columns(self) -> list[int]:
        """The columns of this run at which something is asked for."""
        kept = [limit for limit in (self.limit_before, self.limit_after) if limit is not None]
        asked = {part.column for limit in kept for part in limit.parts}
        return sorted(asked | set(self.edits))

    def __call__(self, column: int, x: Tensor) -> Tensor:
        """Hand over the activation [batch …] at one column."""
        self.reached = True
        x = x[:, None]
        self._before[column] = x
        for edit, selection, receipt in self.edits.get(column, ()):
            old = selection.take(x)
            new = edit.edit(old, self.hook)
            receipt.record(old, new, again=receipt.times > 0)
            x = selection.put(x, new)
        self._after[column] = x
        return x[:, 0]

    @property
    def value_before(self) -> Tensor | Callable[[], Tensor] | None:
        return self._value(self.limit_before, self._before)

    @property
    def value(self) -> Tensor | Callable[[], Tensor] | None:
        return self._value(self.limit_after, self._after)

    def _value(
        self, limit: Apart | None, kept: dict[int, Tensor]
    ) -> Tensor | Callable[[], Tensor] | None:
        if limit is None or self._recipe is None:
            return None if limit is None else limit.join(kept)
        columns, make = self.columns, self._recipe

        def made() -> Tensor:
            whole = make()
            return limit.join({c: whole[:, i : i + 1] for i, c in enumerate(columns)})

        return made
