# SPDX-License-Identifier: MIT OR Apache-2.0
"""The first layer and position that an edit can change, found without running anything.

Whatever is not known to be later is taken to be at the start. A `Replace` whose values are those of
the plain run up to some position changes nothing before it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from torch_mi.errors import InterventionError
from torch_mi.hooks.coordinates import NAME, At, Frame, Index, Span, Text, Token, select
from torch_mi.hooks.interventions import KINDS, Intervention, Knockout, Replace, Scale, Zero
from torch_mi.hooks.point import Hook, HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.hooks.states import state_edits
from torch_mi.hooks.trace import Trace
from torch_mi.model import MIModel
from torch_mi.partial import Record, can_cut, hooks_of, offer
from torch_mi.prompts import spelt
from torch_mi.types import numbers

TOKENS = -1
"""The layer of edits before the first layer: such a run starts from the tokens."""
NEVER = 1 << 60
"""The position of what changes nothing."""
P = HookPoint
STARTS = (P.Embed, P.PosEmbed)
OWN_POSITION = frozenset(
    point
    for point in HookPoint
    if not point.per_layer
    or point in {P.AttnQ, P.AttnRotQ, P.AttnScores, P.AttnPattern, P.AttnZ, P.AttnResult}
    or point in {P.AttnOut, P.ResidMid, P.ResidPost}
    or point.startswith(("blocks.*.mlp.", "blocks.*.ln2.", "blocks.*.hook_mlp_"))
) - frozenset(STARTS)
"""Points that in the last layer change nothing but what is read at the same position."""


AFTER_SHIFT = frozenset(point for point in OWN_POSITION if not point.per_layer) | {
    P.MlpPre,
    P.MlpGate,
    P.MlpPost,
    P.MlpRawOut,
    P.MlpOut,
    P.ResidPost,
}
"""The same in a recurrent model, whose channel mixing reads the token before."""


@dataclass(frozen=True, eq=False)
class Reached:
    """One edit at one hook of one run: where it acts, and from where it changes anything."""

    hook: Hook
    edit: Intervention
    places: tuple[int, ...] | None
    """The positions it acts at; `None` if it names none."""
    pos: int
    layer: int

    def later(self, start: int) -> Intervention | None:
        """The same edit for a run that starts at a later position; `None` if nothing is left."""
        if self.places is not None and max(self.places) < start:
            return None
        axis = _position_axis(self.hook.point)
        if not isinstance(self.edit, Replace) or start == 0 or axis is None:
            return self.edit
        at, value = self.edit.at or At(), self.edit.value
        dim = _dimension(self.hook.point, at, axis)
        if self.places is None:
            return replace(self.edit, value=value.narrow(dim, start, value.shape[dim] - start))
        keep = [i for i, place in enumerate(self.places) if place >= start]
        if len(keep) == len(self.places):
            return self.edit
        left = [self.places[i] for i in keep]
        at = replace(at, query=left) if axis == "query" else replace(at, pos=left)
        index = torch.tensor(keep, device=value.device)
        return replace(self.edit, value=value.index_select(dim, index), at=at)


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of a sweep: a spec on one prompt, and what of it must be run."""

    item: int
    index: int
    edits: tuple[Reached, ...]
    layer: int
    """The layer that it starts at; -1 for the tokens."""
    pos: int
    """The first position it can change; `NEVER` if it changes nothing that is read."""
    opaque: bool
    """Whether it calls functions that may remember other calls, so that it runs by itself."""
    ends_edited: bool
    """Whether the logits or the final norm are edited."""

    @property
    def changes_nothing(self) -> bool:
        return self.pos == NEVER

    def spec(self, start: int) -> HookSpec:
        """What is left to do in a run from position `start` on."""
        spec = HookSpec(allow_unfired=True)
        for reached in self.edits:
            if reached.layer >= self.layer and (edit := reached.later(start)) is not None:
                spec.intervene(reached.hook, edit)
        return spec


@dataclass(frozen=True, eq=False)
class Item:
    """One prompt of a sweep: its record, and where its score is read."""

    model: MIModel
    record: Record
    reads: tuple[int, ...]
    index: int = 0

    def frame(self, start: int = 0, layer: int = TOKENS) -> Frame:
        """The shape of a run of this prompt from a position and a layer on."""
        return frame_of(self.model, self.record, start, layer)


def frame_of(model: MIModel, of: Record, start: int = 0, layer: int = TOKENS) -> Frame:
    """The shape of a run of a recorded prompt from a position and a layer on."""
    ids = numbers(of.tokens[0])

    def text(_: int) -> Text:
        return spelt(model.tokenizer, ids)

    return Frame(
        1,
        of.length - start,
        start,
        model.backend.sizes,
        range(max(layer, 0), model.num_layers),
        None,
        text if model.has_tokenizer else None,
        begins=layer == TOKENS,
    )


def reach(item: Item, spec: HookSpec, index: int = 0) -> Cell:
    """What of a run with `spec` must be run; the spec is checked as a whole run would check it."""
    if spec.num_captures():
        raise InterventionError(f"a cell of a sweep may edit and nothing else, not {spec!r}")
    frame = item.frame()
    spec = lowered(item.model, spec, frame)
    for _, edit in spec.edits:
        if edit.at is not None and edit.at.batch is not None:
            raise InterventionError(f"{edit!r}: a cell of a sweep is one prompt; leave batch out")
    Trace(spec, offer(item.model), frame)
    cut = can_cut(item.model)
    # a function may look from one position to another, in the last layer too
    opaque = any(not _known(edit) for _, edit in spec.edits)
    narrow = cut and not opaque
    edits = tuple(_edits(item, spec, frame))
    if narrow:
        edits = tuple(_only_read(item, r) for r in edits if not _unread(item, r))
    live = [r for r in edits if r.pos != NEVER]
    layer = min((r.layer for r in live), default=item.model.num_layers)
    pos = min((r.pos for r in live), default=NEVER)
    if not cut and live:
        pos = 0
    if pos > max(item.reads) and not opaque:
        pos = NEVER
    ends = any(r.layer == item.model.num_layers for r in edits)
    return Cell(item.index, index, edits, layer, pos, opaque, ends)


def lowered(model: MIModel, spec: HookSpec, frame: Frame) -> HookSpec:
    """The same spec with knockout and steering of a state as edits."""
    if not (spec.state_knockout or spec.state_steering):
        return spec
    plain = spec.copy()
    plain.edits += state_edits(spec, model.backend.hook_points, model.num_layers, frame)
    plain.state_knockout = plain.state_steering = None
    return plain


def needed(model: MIModel, spec: HookSpec) -> Iterator[Hook]:
    """The places whose plain values tell whether a spec changes anything."""
    for place, edit in spec.edits:
        if isinstance(edit, Replace):
            yield from (
                h for h in hooks_of(model, place) if h.layer is not None or h.point in STARTS
            )


def _edits(item: Item, spec: HookSpec, frame: Frame) -> Iterator[Reached]:
    """Every edit at every hook, with the first position that it changes."""
    for place, given in spec.edits:
        edit = _counted(given, frame)
        for hook in hooks_of(item.model, place):
            layer = hook.layer
            if layer is None:
                layer = TOKENS if hook.point in STARTS else item.model.num_layers
            old = item.record.captured.get(hook)
            places = _places(hook.point, edit)
            pos = _first(hook.point, edit, places)
            if isinstance(edit, Replace) and old is not None:
                pos = _first_difference(hook.point, edit, old, frame)
            yield Reached(hook, edit, places, pos, layer)


def _narrows(edit: Intervention) -> bool:
    """Whether an edit of every position can be made at some of them alone."""
    return _known(edit) and (
        isinstance(edit, Replace | Scale | Zero)
        or (isinstance(edit, Knockout) and edit.mask is None)
    )


def _counted(edit: Intervention, frame: Frame) -> Intervention:
    """The same edit with its positions as numbers from the start."""
    named = {} if edit.at is None else edit.at.named()
    if edit.at is None or all(isinstance(i, int) and i >= 0 for i in named.values()):
        return edit
    found: dict[str, Index] = {}
    for axis in ("pos", "query", "key"):
        place = named.get(axis)
        if isinstance(place, Token | Span) and frame.text is not None:
            place = place.find(frame.text(0))
        if isinstance(place, int):
            found[axis] = place % frame.pos
        elif isinstance(place, slice):
            found[axis] = list(range(frame.pos))[place]
        elif isinstance(place, Sequence):
            found[axis] = [i % frame.pos for i in place]
    at = replace(edit.at, pos=found.get("pos"), query=found.get("query"), key=found.get("key"))
    return replace(edit, at=at)


def _only_read(item: Item, r: Reached) -> Reached:
    """The same edit, of no earlier positions than are read where no others matter."""
    last = r.layer == item.model.num_layers - 1 and r.hook.point in own_position(item.model)
    if not last or r.places is not None or not _narrows(r.edit):
        return r
    return replace(r, pos=max(r.pos, min(item.reads)))


def own_position(model: MIModel) -> frozenset[HookPoint]:
    """Points that in the last layer change nothing but what is read at the same position."""
    return AFTER_SHIFT if model.backend.recurrent else OWN_POSITION


def _unread(item: Item, r: Reached) -> bool:
    """Whether an edit is too late to change anything that is read."""
    late = r.layer >= item.model.num_layers - 1 and r.hook.point in own_position(item.model)
    return late and _known(r.edit) and r.places is not None and not set(r.places) & set(item.reads)


def _known(edit: Intervention) -> bool:
    """Whether this is one of the library's own edits, which are the same at every call."""
    return KINDS.get(type(edit).__name__) is type(edit)


def _position_axis(point: HookPoint) -> str | None:
    return next((axis for axis in ("pos", "query") if axis in point.axes), None)


def _places(point: HookPoint, edit: Intervention) -> tuple[int, ...] | None:
    """The positions that a counted edit names; `None` if it does not limit them."""
    index = None if edit.at is None else edit.at.named().get(_position_axis(point) or "")
    if index is None:
        return None
    return (index,) if isinstance(index, int) else tuple(cast("list[int]", index))


def _first(point: HookPoint, edit: Intervention, places: tuple[int, ...] | None) -> int:
    """The first position that a counted edit can change, going by its coordinates."""
    key = None if edit.at is None else edit.at.key
    free = _narrows(edit) and not isinstance(edit, Replace)
    if "source" in point.axes:  # a run from later on has no earlier sources
        return 0
    if places is None and key is not None and free and "key" in point.axes:
        # a key is seen by its own position and later ones
        return key if isinstance(key, int) else min(cast("list[int]", key))
    return 0 if places is None else min(places)


def _dimension(point: HookPoint, at: At, axis: str) -> int:
    """Where an axis is in the value of a counted edit: integers drop theirs."""
    before = point.axes[: point.axes.index(axis)]
    return sum(not isinstance(at.named().get(NAME.get(a, "")), int) for a in before)


def _first_difference(point: HookPoint, edit: Replace, old: Tensor, frame: Frame) -> int:
    """The first position at which a value is not what the plain run has there."""
    selection = None if edit.at is None else select(edit.at, point, frame)
    now = old if selection is None else selection.take(old)
    differs = now != edit.value.to(now)
    if not bool(differs.any()):
        return NEVER
    axis, at = _position_axis(point), edit.at or At()
    if axis is None:
        return 0
    places = _places(point, edit)
    if isinstance(at.named().get(axis), int):
        return 0 if places is None else places[0]
    where = differs.transpose(0, _dimension(point, at, axis)).flatten(1).any(1)
    return min(i if places is None else places[i] for i in numbers(where.nonzero().flatten()))
