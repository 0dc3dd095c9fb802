# SPDX-License-Identifier: MIT OR Apache-2.0
"""One forward pass, watched: a spec resolved against a model and a run, and the taps it leaves.

At one point the edits apply in the order of their registration; then the value that flows on is
captured. A layer in which nothing is watched gets `silent`, which returns what it is given.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from torch_mi.errors import HookError, InterventionError
from torch_mi.hooks.coordinates import NAME, At, Frame, Selection, select
from torch_mi.hooks.interventions import Apply, Intervention, Replace
from torch_mi.hooks.point import Hook, HookPoint
from torch_mi.hooks.receipt import Receipt
from torch_mi.hooks.spec import HookSpec, Place, When
from torch_mi.hooks.states import state_edits
from torch_mi.hooks.steps import Apart, StepSite, apart


@runtime_checkable
class Tap(Protocol):
    """What a layer calls at each hook point: hands a value over, takes a value back."""

    def __call__(self, point: HookPoint, x: Tensor, /) -> Tensor: ...
    def later(self, point: HookPoint, make: Callable[[], Tensor], /) -> None:
        """Offer a value that nothing else needs: it is made when its capture is looked at."""
        ...

    def watches(self, *points: HookPoint) -> bool:
        """Whether anyone captures or edits one of these points here."""
        ...

    def edits(self, point: HookPoint, /) -> bool:
        """Whether anyone edits this point here."""
        ...

    def stops(self, point: HookPoint, /) -> Sequence[int]:
        """The columns of this run at which a stepwise point is captured or edited."""
        ...

    def step(self, point: HookPoint, column: int, x: Tensor, /) -> Tensor:
        """Hand over the activation [batch …] at a column of a stepwise point, and take it back."""
        ...


class Silent:
    """The tap of a layer nobody watches."""

    def __call__(self, _: HookPoint, x: Tensor, /) -> Tensor:
        return x

    def later(self, _: HookPoint, make: Callable[[], Tensor], /) -> None:
        """Nobody looks."""

    def watches(self, *_: HookPoint) -> bool:
        return False

    def edits(self, _: HookPoint, /) -> bool:
        return False

    def stops(self, _: HookPoint, /) -> Sequence[int]:
        return ()

    def step(self, _: HookPoint, __: int, x: Tensor, /) -> Tensor:
        return x


silent = Silent()


Captured = Tensor | Callable[[], Tensor]
"""A capture, or the recipe for one that the run itself did not need."""


@dataclass
class Site:
    """Everything asked for at one hook of one run."""

    hook: Hook
    edits: list[tuple[Intervention, Selection | None, Receipt]] = field(
        default_factory=list[tuple[Intervention, Selection | None, Receipt]]
    )
    before: bool = False
    after: bool = False
    limit_before: Selection | None = None
    """The part of the value that is kept; `None` for all of it."""
    limit_after: Selection | None = None
    reached: bool = False
    value_before: Captured | None = None
    value: Captured | None = None

    def add(self, edit: Intervention, selection: Selection | None, receipt: Receipt) -> None:
        """Apply an edit here, after those already registered."""
        self.edits.append((edit, selection, receipt))

    def keep(self, make: Callable[[], Tensor]) -> None:
        """Keep a recipe in place of a value; there are no edits here."""
        self.reached = True
        self.value_before = (lambda: taken(make(), self.limit_before)) if self.before else None
        self.value = (lambda: taken(make(), self.limit_after)) if self.after else None

    def __call__(self, x: Tensor) -> Tensor:
        self.reached = True
        if self.before:
            self.value_before = taken(x, self.limit_before)
        for edit, selection, receipt in self.edits:
            old = x if selection is None else selection.take(x)
            new = edit.edit(old, self.hook)
            receipt.record(old, new)
            x = new if selection is None else selection.put(x, new)
        if self.after:
            self.value = taken(x, self.limit_after)
        return x


def taken(x: Tensor, limit: Selection | None) -> Tensor:
    """The part of a value that is kept."""
    return x if limit is None else limit.take(x)


class LayerTap:
    """The tap of a layer in which something is watched."""

    def __init__(self, sites: Mapping[HookPoint, Site | StepSite]) -> None:
        self._sites = sites

    def __call__(self, point: HookPoint, x: Tensor, /) -> Tensor:
        site = self._sites.get(point)
        return site(x) if isinstance(site, Site) else x

    def later(self, point: HookPoint, make: Callable[[], Tensor], /) -> None:
        site = self._sites.get(point)
        if site is not None:
            site.keep(make)

    def watches(self, *points: HookPoint) -> bool:
        return any(point in self._sites for point in points)

    def edits(self, point: HookPoint, /) -> bool:
        return point in self._sites and bool(self._sites[point].edits)

    def stops(self, point: HookPoint, /) -> Sequence[int]:
        site = self._sites.get(point)
        return site.columns if isinstance(site, StepSite) else ()

    def step(self, point: HookPoint, column: int, x: Tensor, /) -> Tensor:
        site = self._sites.get(point)
        return site(column, x) if isinstance(site, StepSite) else x


@dataclass(frozen=True)
class Offer:
    """What a model has to offer to a spec: its points, its depth, and which it only shows."""

    points: frozenset[HookPoint]
    n_layers: int
    read_only: frozenset[HookPoint] = frozenset()
    within: tuple[frozenset[HookPoint], ...] | None = None
    """The points of each layer; `None` if all layers have all points."""

    def has(self, point: HookPoint, layer: int) -> bool:
        """Whether one layer has this point."""
        return self.within is None or point in self.within[layer]

    def shapes(self, sizes: Mapping[str, int]) -> dict[Hook, tuple[int | str, ...]]:
        """Every hook with its shape; axes that are no `sizes` of the model stay names."""
        known = {"one": 1, **sizes}
        return {
            hook: tuple(known.get(axis, axis) for axis in hook.point.axes)
            for point in HookPoint
            if point in self.points
            for hook in self.resolve(point if point.per_layer else Hook(point))
        }

    def resolve(self, place: Place) -> list[Hook]:
        """The hooks that `place` means in this model."""
        point = place if isinstance(place, HookPoint) else place.point
        if point not in self.points:
            names = ", ".join(p.name for p in HookPoint if p in self.points)
            raise HookError(f"this model has no {point.name}; it has {names}")
        if isinstance(place, HookPoint):
            hooks = place.on(self.n_layers)
            return [h for h in hooks if h.layer is None or self.has(point, h.layer)]
        if place.layer is not None and place.layer >= self.n_layers:
            raise HookError(
                f"{place!r} is out of range: this model has layers 0 … {self.n_layers - 1}"
            )
        if place.layer is not None and not self.has(point, place.layer):
            layers = [i for i in range(self.n_layers) if self.has(point, i)]
            raise HookError(f"layer {place.layer} has no {point.name}; layers {layers} have")
        return [place]


class Trace:
    """The record of one run. `trace.tap(layer)` is all that a model's forward pass sees of it."""

    def __init__(self, spec: HookSpec | None, offer: Offer, frame: Frame) -> None:
        """Resolve and check `spec` before anything runs."""
        self._frame = frame
        self._sites: dict[Hook, Site | StepSite] = {}
        self._by_layer: dict[int | None, dict[HookPoint, Site | StepSite]] = {}
        self._layers = frame.layers
        self.receipts: list[Receipt] = []
        if spec is None or spec.is_empty():
            return
        for when, places in spec.captures.items():
            for place in places:
                self._capture(place, when, spec.limits.get((when, place)), offer)
        edits = (*spec.edits, *state_edits(spec, offer.points, offer.n_layers, frame))
        for place, edit in edits:
            self._add_edit(place, edit, offer, frame, allow_unfired=spec.allow_unfired)

    def tap(self, layer: int | None = None) -> Tap:
        sites = self._by_layer.get(layer)
        return silent if sites is None else LayerTap(sites)

    def finish(self) -> tuple[dict[str, Captured], dict[str, Captured]]:
        """The captures, after and before edits. A hook that was not reached is an error."""
        if missed := [str(hook) for hook, site in self._sites.items() if not site.reached]:
            raise HookError(f"this run never came to {', '.join(missed)}")
        sites = self._sites.items()
        after = {str(h): s.value for h, s in sites if s.value is not None}
        before = {str(h): s.value_before for h, s in sites if s.value_before is not None}
        return after, before

    def explicit_layers(self, *, everywhere: bool) -> list[int]:
        """The layers whose attention ran step by step: those looked at, or all of the run's."""
        if everywhere:
            return list(self._layers)
        looked_at = (HookPoint.AttnScores, HookPoint.AttnPattern)
        layers = {hook.layer for hook in self._sites if hook.point in looked_at}
        return sorted(layer for layer in layers if layer is not None)

    def _capture(self, place: Place, when: When, at: At | None, offer: Offer) -> None:
        """Note a capture in the layers that this run goes through."""
        for site in self._open(place, offer, self._frame):
            point = site.hook.point
            if isinstance(site, StepSite):
                limit = apart(at, point, self._frame)
                self._set_steps(site, when, limit)
            else:
                limit = None if at is None else select(at, point, self._frame)
                self._set(site, when, limit)
            if at is not None and limit is None:
                raise HookError(
                    f"{place!r} is captured {at!r}, which is not in this run, "
                    f"{_extent(self._frame, offer.n_layers)}"
                )

    @staticmethod
    def _set_steps(site: StepSite, when: When, limit: Apart | None) -> None:
        if when == "before":
            site.limit_before = limit
        else:
            site.limit_after = limit

    @staticmethod
    def _set(site: Site, when: When, limit: Selection | None) -> None:
        if when == "before":
            site.before, site.limit_before = True, limit
        else:
            site.after, site.limit_after = True, limit

    def _open(self, place: Place, offer: Offer, frame: Frame) -> "list[Site | StepSite]":
        """The sites for a place, in the layers that this run goes through."""
        hooks = offer.resolve(place)
        inside = [h for h in hooks if _reached_by(h, frame)]
        if not inside:
            raise HookError(f"{place!r} is outside this run, {_extent(frame, offer.n_layers)}")
        return [self._site(hook) for hook in inside]

    def _site(self, hook: Hook) -> "Site | StepSite":
        if hook not in self._sites:
            step = hook.point.stepwise
            site = self._sites[hook] = StepSite(hook, self._frame) if step else Site(hook)
            self._by_layer.setdefault(hook.layer, {})[hook.point] = site
        return self._sites[hook]

    def _add_edit(
        self, place: Place, edit: Intervention, offer: Offer, frame: Frame, *, allow_unfired: bool
    ) -> None:
        point = place if isinstance(place, HookPoint) else place.point
        if point in offer.read_only and point in offer.points:
            editable = ", ".join(p.name for p in HookPoint if p in offer.points - offer.read_only)
            raise InterventionError(
                f"{point.name} can be captured but not edited in this model; "
                f"{editable} can be edited"
            )
        hooks = offer.resolve(place)
        inside = [h for h in hooks if _reached_by(h, frame)]
        selection = None if edit.at is None else select(edit.at, point, frame)
        fires = inside and (edit.at is None or selection is not None)
        if not fires and not allow_unfired:
            raise InterventionError(
                f"{edit!r} at {place} would never apply in this run, "
                f"{_extent(frame, offer.n_layers)}; HookSpec(allow_unfired=True) permits that"
            )
        if edit.at is not None and selection is None:
            return
        shape = frame.shape(point) if selection is None else selection.shape
        edit.check(point, shape)
        for hook in inside:
            receipt = Receipt(hook, edit, shape)
            self.receipts.append(receipt)
            self._site(hook).add(edit, selection, receipt)


def _reached_by(hook: Hook, frame: Frame) -> bool:
    if hook.layer is not None:
        return hook.layer in frame.layers
    if hook.point in (HookPoint.Embed, HookPoint.PosEmbed):
        return frame.begins
    return frame.ends


def _extent(frame: Frame, n_layers: int) -> str:
    layers = "which goes through every layer"
    if not frame.layers:
        layers = "which goes through no layer"
    elif frame.layers != range(n_layers):
        layers = f"which goes through layers {frame.layers.start} … {frame.layers.stop - 1}"
    layers += "" if frame.begins else ", starts from a residual stream"
    layers += "" if frame.ends else ", stops before the logits"
    return f"{layers}, positions {frame.seen} … {frame.seen + frame.pos - 1}"


def depends_on_length(edit: Intervention, place: Place) -> bool:
    """Whether an edit may act differently at the same position of a longer run.

    Conservative: only edits at fixed positions, or everywhere alike, are known not to.
    """
    point = place if isinstance(place, HookPoint) else place.point
    if isinstance(edit, Apply) or type(edit).__module__ != Apply.__module__:
        return True
    named = {} if edit.at is None else edit.at.named()
    for axis in ("pos", "query", "key"):
        index = named.get(axis)
        if index is not None and not (isinstance(index, int) and index >= 0):
            return True
    free = [axis for axis in ("pos", "query", "key") if axis in point.axes and axis not in named]
    if free and isinstance(edit, Replace):
        return True
    tensors = [value for value in edit.values().values() if isinstance(value, Tensor)]
    return bool(free) and any(_spans(value, point, free, named) for value in tensors)


def _spans(
    value: Tensor, point: HookPoint, free: Iterable[str], named: Mapping[str, object]
) -> bool:
    """Whether a value has more than one entry along one of the `free` axes."""
    kept = [a for a in point.axes if not isinstance(named.get(NAME.get(a, "")), int)]
    for axis, size in zip(reversed(kept), reversed(value.shape), strict=False):
        if axis in free and size != 1:
            return True
    return False
