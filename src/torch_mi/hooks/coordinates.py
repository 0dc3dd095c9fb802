# SPDX-License-Identifier: MIT OR Apache-2.0
"""Which part of an activation is meant: rows, positions, heads, neurons, experts, attention edges.

Positions are counted unpadded, per row, negative from the end; they may also be named by the text
that stands there. `Frame` is what coordinates are measured against: the shape of one run.
"""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import SupportsIndex, cast

import numpy as np
import torch
from torch import Tensor

from torch_mi.errors import InterventionError, did_you_mean
from torch_mi.hooks.point import HookPoint

Text = tuple[str, Sequence[tuple[int, int]]]
"""One row's text, and the stretch of it that each of its tokens covers."""


@dataclass(frozen=True)
class Token:
    """The one token whose text is `text`, spaces around it aside; `nth` picks among several."""

    text: str
    nth: int | None = None

    def find(self, row: Text) -> int:
        text, offsets = row
        pieces = [text[a:b].strip() for a, b in offsets]
        found = [i for i, piece in enumerate(pieces) if piece == self.text.strip()]
        if not found:
            hint = did_you_mean(self.text.strip(), [p for p in pieces if p])
            if self.text in text:
                hint = f"; it is spread over several tokens: Span({self.text!r}).last is its last"
            raise InterventionError(f"no token of {text!r} is {self.text!r}{hint}")
        return _pick(found, self.nth, f"token {self.text!r}", text)


@dataclass(frozen=True)
class Span:
    """The tokens that cover `text`: all of them, or its `.first` or `.last`."""

    text: str
    nth: int | None = None
    which: int | None = None

    @property
    def first(self) -> "Span":
        return replace(self, which=0)

    @property
    def last(self) -> "Span":
        return replace(self, which=-1)

    def find(self, row: Text) -> int | list[int]:
        text, offsets = row
        starts = [i for i in range(len(text)) if self.text and text.startswith(self.text, i)]
        if not starts:
            raise InterventionError(f"{self.text!r} does not occur in {text!r}")
        start = _pick(starts, self.nth, repr(self.text), text)
        end = start + len(self.text)
        covered = [i for i, (a, b) in enumerate(offsets) if a < b and b > start and a < end]
        return covered if self.which is None else covered[self.which]


def _pick(found: list[int], nth: int | None, what: str, text: str) -> int:
    if nth is None and len(found) > 1:
        raise InterventionError(
            f"{what} occurs {len(found)} times in {text!r}; say which with nth=0 … {len(found) - 1}"
        )
    if nth is not None and not 0 <= nth < len(found):
        raise InterventionError(f"nth={nth}, but {what} occurs {len(found)} times in {text!r}")
    return found[nth or 0]


Index = int | slice | Sequence[int]
Place = Index | Token | Span


@dataclass(frozen=True, kw_only=True)
class At:
    """Coordinates that an edit is limited to; what is not named is not limited.

    An integer drops its axis from the selection, as in numpy; a list or slice keeps it.
    `head` counts key/value heads at keys and values.
    """

    batch: Index | None = None
    pos: Place | None = None
    head: Index | None = None
    query: Place | None = None
    key: Place | None = None
    neuron: Index | None = None
    expert: Index | None = None

    def __post_init__(self) -> None:
        for name, value in self.named().items():
            object.__setattr__(self, name, _as_index(name, value))

    def __repr__(self) -> str:
        return f"At({', '.join(f'{k}={_show(v)}' for k, v in self.named().items())})"

    def named(self) -> dict[str, Place]:
        """The coordinates that are given, by name."""
        values = {f.name: cast("Place | None", self.__dict__[f.name]) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def _as_index(name: str, value: object) -> Place:
    """Whole numbers of any library as Python's own; what is no index is an error."""
    if isinstance(value, slice | Token | Span):
        return cast("Place", value)
    if isinstance(value, str):
        raise InterventionError(
            f"{name}={value!r}: text is named by Token({value!r}) or Span({value!r})"
        )
    plain = value
    if isinstance(value, Tensor | np.ndarray):
        plain = cast("object", value.tolist())  # pyright: ignore[reportUnknownMemberType] - stubs
    try:
        if isinstance(plain, SupportsIndex):
            return _whole(plain)
        return [_whole(i) for i in cast("Iterable[SupportsIndex]", plain)]
    except TypeError as cause:
        raise InterventionError(
            f"{name}={value!r} is neither a whole number, nor a list of them, nor a slice"
        ) from cause


def _whole(value: SupportsIndex) -> int:
    if isinstance(value, bool):
        raise TypeError("a truth is no index")
    return operator.index(value)


def _show(value: Place) -> str:
    if not isinstance(value, slice):
        return repr(value)
    parts = [value.start, value.stop] + ([] if value.step is None else [value.step])
    return f"slice({':'.join('' if p is None else str(p) for p in parts)})"


AXIS = {
    "batch": ("batch",),
    "pos": ("pos",),
    "head": ("head", "kv_head"),
    "query": ("query",),
    "key": ("key", "source"),
    "neuron": ("d_mlp",),
    "expert": ("expert",),
}
"""The axes that each coordinate of `At` may limit."""
NAME = {axis: name for name, axes in AXIS.items() for axis in axes}


@dataclass(frozen=True)
class Frame:
    """The shape of one run, as coordinates see it."""

    batch: int
    pos: int
    """Tokens of this run, padding included."""
    seen: int
    """Tokens before it, padding included."""
    sizes: Mapping[str, int]
    """The model's own axes: d_model, head, kv_head, d_head, d_mlp, vocab."""
    layers: range
    """The layers this run goes through."""
    real: tuple[tuple[int, ...], ...] | None = None
    """For padded batches: the columns, counted with `seen`, where each row has its tokens."""
    text: Callable[[int], Text] | None = None
    """The text of a row, if there is a tokenizer."""
    begins: bool = True
    """Whether this run embeds tokens, and does not start from a residual stream."""
    ends: bool = True
    """Whether this run goes on to the logits."""

    def size(self, axis: str) -> int:
        """How long an axis of an activation is in this run."""
        runs = {"batch": self.batch, "one": 1}
        runs |= dict.fromkeys(("pos", "query", "source"), self.pos)
        if axis == "key":
            return self.seen + self.pos
        return runs[axis] if axis in runs else self.sizes[axis]

    def shape(self, point: HookPoint) -> tuple[int, ...]:
        """The shape of the activation at `point`."""
        return tuple(self.size(axis) for axis in point.axes)

    def columns(self, row: int) -> Sequence[int]:
        """Where a row's own tokens are, counted from the first token seen."""
        return range(self.seen + self.pos) if self.real is None else self.real[row]


@dataclass(frozen=True)
class Selection:
    """Part of an activation, as an index into it."""

    index: tuple[int | slice | Tensor, ...]
    shape: tuple[int, ...]

    def take(self, x: Tensor) -> Tensor:
        return x[self.index]

    def put(self, x: Tensor, part: Tensor) -> Tensor:
        """A copy of `x` with `part` in this place."""
        out = x.clone()
        out[self.index] = part
        return out


def select(at: At, point: HookPoint, frame: Frame) -> Selection | None:
    """The part of the activation at `point` that `at` means; `None` if this run has none of it.

    A run that continues a prefix has none of the prefix's positions.
    """
    named = at.named()
    for name in named:
        if not set(AXIS[name]) & set(point.axes):
            choices = sorted({NAME[axis] for axis in point.axes if axis in NAME})
            raise InterventionError(
                f"{point.name} has no {name} axis; At() can limit {', '.join(choices)} there"
            )
    rows = indices(named.get("batch"), frame.batch, "batch", "the batch")
    chosen: list[Axis] = []
    for axis in point.axes:
        place = named.get(NAME.get(axis, ""))
        if axis == "batch":
            chosen.append(Axis(rows))
        elif axis in ("pos", "query", "key", "source") and place is not None:
            found = positions(place, axis, rows, frame)
            if found is None:
                return None
            chosen.append(found)
        else:
            chosen.append(Axis(indices(place, frame.size(axis), axis, point.name)))
    return _assemble(chosen, frame.shape(point))


@dataclass(frozen=True)
class Axis:
    """What is selected along one axis: an integer, or a list; or one of those for each row."""

    index: "int | list[int]"
    per_row: "list[int] | list[list[int]] | None" = None


def indices(place: Place | None, size: int, axis: str, where: str) -> int | list[int]:
    """Indices along an axis without text or padding, made non-negative."""
    if place is None:
        return list(range(size))
    if isinstance(place, slice):
        return _some(list(range(size))[place], place, axis)
    if isinstance(place, (Token, Span)):
        raise InterventionError(f"{place!r} names positions of text; {axis} takes numbers")
    one = isinstance(place, int)
    out: list[int] = []
    for i in [place] if isinstance(place, int) else place:
        if not -size <= i < size:
            raise InterventionError(
                f"{NAME.get(axis, axis)}={i} is out of range: {where} has {size} "
                f"(0 … {size - 1}, or negative from the end)"
            )
        out.append(i % size)
    if len(set(out)) < len(out):
        raise InterventionError(f"{NAME.get(axis, axis)}={place!r} names one place twice")
    return out[0] if one else _some(out, place, axis)


def _some(found: list[int], place: Place, axis: str) -> list[int]:
    if not found:
        raise InterventionError(f"{NAME.get(axis, axis)}={place!r} selects nothing")
    return found


def positions(place: Place, axis: str, rows: int | list[int], frame: Frame) -> Axis | None:
    """Unpadded positions as columns of this run; `None` if they are all in the prefix."""
    offset = 0 if axis == "key" else frame.seen
    found: list[int | list[int]] = []
    for row in [rows] if isinstance(rows, int) else rows:
        columns = frame.columns(row)
        where = f"row {row}" if frame.batch > 1 else "the prompt"
        index = indices(_in_text(place, row, frame), len(columns), axis, where)
        if isinstance(index, int):
            found.append(columns[index] - offset)
        else:
            found.append([columns[i] - offset for i in index])
    flat = [i for item in found for i in ([item] if isinstance(item, int) else item)]
    if all(i < 0 for i in flat):
        return None
    if any(i < 0 for i in flat):
        raise InterventionError(
            f"{axis}={place!r} is partly in the prefix that this run continues and partly after it"
        )
    if all(item == found[0] for item in found):
        return Axis(found[0])
    if len({len(item) for item in found if not isinstance(item, int)}) > 1:
        raise InterventionError(
            f"{axis}={place!r} selects different numbers of positions in different rows; "
            "limit the edit to one row with At(batch=…)"
        )
    return Axis([], cast("list[int] | list[list[int]]", found))


def _in_text(place: Place, row: int, frame: Frame) -> Index:
    if not isinstance(place, (Token, Span)):
        return place
    if frame.text is None:
        raise InterventionError(
            f"{place!r} needs text, and this run has none: give the prompt as a string or tokens "
            "to a model with a tokenizer"
        )
    return place.find(frame.text(row))


def _assemble(axes: list[Axis], shape: tuple[int, ...]) -> Selection:
    """One index for all axes, each limited on its own (an outer product)."""
    plain = [_plain(axis) for axis in axes]
    if all(p is not None for p in plain):
        sizes = [len(a.index) for a in axes if not isinstance(a.index, int)]
        return Selection(tuple(p for p in plain if p is not None), tuple(sizes))
    last = max(i for i, a in enumerate(axes) if _limits(a, shape[i]))
    used = axes[: last + 1]
    kept = [i for i, a in enumerate(used) if not isinstance(a.index, int) and not _one_a_row(a)]
    index: list[Tensor] = []
    for i, axis in enumerate(used):
        view = [1] * len(kept)
        values = torch.tensor(axis.index if axis.per_row is None else axis.per_row)
        if axis.per_row is not None:
            view[0] = len(axis.per_row)
        if i in kept:
            view[kept.index(i)] = values.shape[-1]
        index.append(values.reshape(view))
    sizes = tuple(max(t.shape[dim] for t in index) for dim in range(len(kept)))
    return Selection(tuple(index), (*sizes, *shape[last + 1 :]))


def _plain(axis: Axis) -> int | slice | None:
    """The axis as an integer or a slice, which torch serves without copying, if it is one."""
    if axis.per_row is not None:
        return None
    if isinstance(axis.index, int):
        return axis.index
    start, stop = axis.index[0], axis.index[-1] + 1
    return slice(start, stop) if axis.index == list(range(start, stop)) else None


def _limits(axis: Axis, size: int) -> bool:
    return axis.per_row is not None or axis.index != list(range(size))


def _one_a_row(axis: Axis) -> bool:
    return axis.per_row is not None and isinstance(axis.per_row[0], int)
