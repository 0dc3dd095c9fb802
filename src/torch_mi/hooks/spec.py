# SPDX-License-Identifier: MIT OR Apache-2.0
"""What to capture and where to intervene, as one value."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeVar, runtime_checkable

from torch_mi.errors import HookError, InterventionError
from torch_mi.hooks.coordinates import At
from torch_mi.hooks.interventions import Intervention
from torch_mi.hooks.point import Hook, HookPoint, locate
from torch_mi.hooks.states import StateKnockoutSpec, StateSteeringSpec

T_co = TypeVar("T_co", covariant=True)


@runtime_checkable
class Estimates(Protocol[T_co]):
    """What tells the bytes of a run."""

    def estimate(self, start: Any, spec: "HookSpec | None" = None, /) -> T_co: ...


@runtime_checkable
class Rehearsable(Protocol[T_co]):
    """A model that can be run without data."""

    @property
    def rehearsal(self) -> Estimates[T_co]: ...


When = Literal["after", "before"]
Place = Hook | HookPoint


@dataclass
class HookSpec:
    """What to capture and where to intervene: a builder, read once by each run, never written.

    A name without a layer (`HookPoint.ResidPost`, `"blocks.*.hook_resid_post"`) means every layer.
    With `allow_unfired`, edits that a run does not reach are no error.
    """

    captures: dict[When, list[Place]] = field(
        default_factory=lambda: {"after": [], "before": []}, kw_only=True
    )
    limits: dict[tuple[When, Place], At] = field(
        default_factory=dict[tuple[When, Place], At], kw_only=True
    )
    """The part of a place that its capture keeps, where it does not keep all."""
    edits: list[tuple[Place, Intervention]] = field(
        default_factory=list[tuple[Place, Intervention]], kw_only=True
    )
    state_knockout: StateKnockoutSpec | None = field(default=None, kw_only=True)
    state_steering: StateSteeringSpec | None = field(default=None, kw_only=True)
    allow_unfired: bool = field(default=False, kw_only=True)

    def capture(self, *where: str, when: When = "after", at: At | None = None) -> Self:
        """Capture these places, after the edits there or before them; of each the part `at`."""
        if when not in self.captures:
            raise HookError(f"when={when!r}; a capture is taken 'after' the edits or 'before' them")
        kept = self.captures[when]
        for place in dict.fromkeys(map(locate, where)):
            if place not in kept:
                kept.append(place)
                if at is not None:
                    self.limits[when, place] = at
            elif self.limits.get((when, place)) != at:
                whole = self.limits.get((when, place)) or "whole"
                raise HookError(f"{place!r} is captured {whole} already; capture it once")
        return self

    def intervene(self, where: str, intervention: Intervention) -> Self:
        """Apply `intervention` there, after those already registered."""
        if not isinstance(intervention, Intervention):  # pyright: ignore[reportUnnecessaryIsInstance] - users are untyped
            raise InterventionError(
                f"{intervention!r} is not an intervention; use Replace, Add, Knockout, Scale, Zero "
                "or Apply(fn)"
            )
        self.edits.append((locate(where), intervention))
        return self

    def set_state_knockout(self, spec: StateKnockoutSpec) -> Self:
        self.state_knockout = spec
        return self

    def set_state_steering(self, spec: StateSteeringSpec) -> Self:
        self.state_steering = spec
        return self

    def extend(self, other: "HookSpec") -> Self:
        """All that `other` captures and does, too; its edits come after those here."""
        for mine, theirs, what in (
            (self.state_knockout, other.state_knockout, "knockout"),
            (self.state_steering, other.state_steering, "steering"),
        ):
            if mine is not None and theirs is not None and mine != theirs:
                raise InterventionError(f"both specs have a state {what}, and they differ")
        for when, places in other.captures.items():
            for place in places:
                self.capture(place, when=when, at=other.limits.get((when, place)))
        self.edits.extend(other.edits)
        self.state_knockout = self.state_knockout or other.state_knockout
        self.state_steering = self.state_steering or other.state_steering
        self.allow_unfired = self.allow_unfired or other.allow_unfired
        return self

    def copy(self) -> "HookSpec":
        captures: dict[When, list[Place]] = {
            when: list(places) for when, places in self.captures.items()
        }
        return replace(self, captures=captures, limits=dict(self.limits), edits=list(self.edits))

    def __or__(self, other: "HookSpec") -> "HookSpec":
        return self.copy().extend(other)

    def is_empty(self) -> bool:
        """Whether a run with this spec is a plain run."""
        return not (self.num_captures() or self.edits or self.state_knockout or self.state_steering)

    def num_captures(self) -> int:
        """How many places are captured; a place in every layer counts once."""
        return sum(map(len, self.captures.values()))

    def num_interventions(self) -> int:
        return len(self.edits)

    def is_captured(self, where: str) -> bool:
        return any(_covers(place, where) for places in self.captures.values() for place in places)

    def interventions_at(self, where: str) -> Iterator[Intervention]:
        """The edits at this place, in the order in which they apply."""
        return (edit for place, edit in self.edits if _covers(place, where))

    def has_intervention_at(self, where: str) -> bool:
        return any(True for _ in self.interventions_at(where))

    def estimate(self, model: Rehearsable[T_co], prompt: Any) -> T_co:
        """What a run of `model` with this spec would take, in bytes; nothing runs.

        `model.rehearsal.estimate` is the same with the other arguments of `forward`.
        """
        return model.rehearsal.estimate(prompt, self)

    def save(self, path: str | Path) -> Path:
        """Write to `path` as JSON, with tensors beside it as safetensors."""
        from torch_mi.hooks.saving import save_spec  # noqa: PLC0415 - saving builds specs

        return save_spec(self, path)

    @staticmethod
    def load(path: str | Path) -> "HookSpec":
        """Read what `save` wrote."""
        from torch_mi.hooks.saving import load_spec  # noqa: PLC0415 - saving builds specs

        return load_spec(path)

    def __repr__(self) -> str:
        parts = [f"at {place!r}: {edit!r}" for place, edit in self.edits]
        for when, places in self.captures.items():
            if places:
                names = ", ".join(
                    repr(p) + (f" {self.limits[when, p]}" if (when, p) in self.limits else "")
                    for p in places
                )
                parts.append(f"capture {names}" + (" before edits" if when == "before" else ""))
        parts += [repr(s) for s in (self.state_knockout, self.state_steering) if s is not None]
        parts += ["edits may stay unfired"] if self.allow_unfired else []
        return f"<HookSpec: {'; '.join(parts) or 'a plain run'}>"


def frozen(spec: HookSpec | None) -> HookSpec | None:
    """A spec as one run saw it, whatever its builder does next."""
    if spec is None:
        return None
    if not isinstance(spec, HookSpec):  # pyright: ignore[reportUnnecessaryIsInstance] - users are untyped
        raise HookError(f"{spec!r} is not a HookSpec; write HookSpec().capture(…).intervene(…)")
    return spec.copy()


def _covers(place: Place, where: str) -> bool:
    """Whether `place` is `where`, or is the same point in every layer."""
    wanted = locate(where)
    return place == wanted or (isinstance(wanted, Hook) and place is wanted.point)
