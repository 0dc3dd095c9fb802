# SPDX-License-Identifier: MIT OR Apache-2.0
"""Which writes to a recurrent state to remove or rescale; only recurrent models have one.

A token's write to the state of a layer is knocked out (factor 0) or scaled: an edit at `RwkvWrite`.
What the token adds to its own output beside the state, what it erases, and what the next token
reads of it through the token shift are not touched; `full` and `shift` touch those too.
"""

from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from typing import Protocol, Self, runtime_checkable

from torch_mi.errors import InterventionError
from torch_mi.hooks.coordinates import At, Frame
from torch_mi.hooks.hook import Hook
from torch_mi.hooks.interventions import Intervention, Scale, Zero
from torch_mi.hooks.point import HookPoint


@dataclass(frozen=True)
class StateKnockoutSpec:
    """State writes to remove: at these positions, in these layers (`None` is every layer)."""

    positions: tuple[int, ...] = ()
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    """`None` is every head."""
    full: bool = False
    """Whether the token erases nothing either, where a model erases (RWKV-7, the delta rule)."""
    shift: bool = False
    """Whether the next token does not see this one through the token shift either. A short
    convolution is no token shift: what it passes on stays."""

    def position(self, *positions: int) -> Self:
        """These positions too."""
        return replace(self, positions=(*self.positions, *positions))

    def head(self, *heads: int) -> Self:
        """These heads and no others."""
        return replace(self, heads=heads)

    def layer(self, *layers: int) -> Self:
        """These layers and no others."""
        return replace(self, layers=layers)

    def layer_range(self, first: int, last: int) -> Self:
        """Layers `first` to `last`, both included, and no others."""
        return replace(self, layers=tuple(range(first, last + 1)))

    def applies_to_layer(self, layer: int) -> bool:
        return self.layers is None or layer in self.layers

    def position_set(self) -> frozenset[int]:
        return frozenset(self.positions)

    def validate(self, n_layers: int, seq_len: int) -> None:
        """Raise `InterventionError` unless this fits a run of `seq_len` tokens."""
        if not self.positions:
            raise InterventionError(f"{type(self).__name__} names no positions")
        for layer in self.layers or ():
            if not 0 <= layer < n_layers:
                raise InterventionError(f"layer {layer} is out of range: the model has {n_layers}")
        for position in self.positions:
            if not 0 <= position < seq_len:
                raise InterventionError(
                    f"position {position} is out of range: the run has {seq_len} tokens "
                    f"(0 … {seq_len - 1})"
                )


@dataclass(frozen=True)
class StateSteeringSpec(StateKnockoutSpec):
    """State writes to multiply by `scale`: 0 removes, 1 changes nothing."""

    scale: float = 1.0


@runtime_checkable
class HasStateEdits(Protocol):
    """The part of a `HookSpec` that is about recurrent states."""

    state_knockout: StateKnockoutSpec | None
    state_steering: StateSteeringSpec | None


def state_edits(
    spec: HasStateEdits, points: Set[HookPoint], n_layers: int, frame: Frame
) -> Iterator[tuple[Hook, Intervention]]:
    """The edits that knockout and steering of a state are; of both, knockout wins where it is."""
    knockout, steering = spec.state_knockout, spec.state_steering
    if (knockout or steering) and HookPoint.RwkvWrite not in points:
        raise InterventionError(
            "this model has no recurrent state to knock out or steer; "
            "its attention is edited at AttnScores and AttnPattern"
        )
    length = frame.seen + frame.pos
    for each in (knockout, steering):
        if each is not None:
            each.validate(n_layers, length)
    for layer in range(n_layers):
        gone = positions_in(knockout, layer)
        for position in positions_in(steering, layer):
            left = remaining(steering, knockout, frame) if position in gone else steering
            yield from edits_of(left, layer, (position, length), points)
        for position in gone:
            yield from edits_of(knockout, layer, (position, length), points)


def remaining(
    steering: StateSteeringSpec | None, knockout: StateKnockoutSpec | None, frame: Frame
) -> StateSteeringSpec | None:
    """What is left to steer where both are: the heads that are not knocked out, and no more."""
    if steering is None or knockout is None or knockout.heads is None:
        return None
    every = steering.heads or tuple(range(frame.sizes["head"]))
    heads = tuple(head for head in every if head not in knockout.heads)
    return replace(steering, heads=heads, shift=False) if heads else None


def positions_in(spec: StateKnockoutSpec | None, layer: int) -> list[int]:
    """The positions that a spec names in a layer."""
    if spec is None or not spec.applies_to_layer(layer):
        return []
    return sorted(spec.position_set())


def edits_of(
    spec: StateKnockoutSpec | None, layer: int, where: tuple[int, int], points: Set[HookPoint]
) -> Iterator[tuple[Hook, Intervention]]:
    """The edits at one position of one layer, in a run that is so long."""
    if spec is None:
        return
    position, length = where
    heads = None if spec.heads is None else list(spec.heads)
    for point in (HookPoint.RwkvWrite, HookPoint.RwkvErase):
        if point in points and (spec.full or point is HookPoint.RwkvWrite):
            yield Hook(point, layer), edit_of(spec, At(pos=position, head=heads))
    for point in (HookPoint.RwkvShift, HookPoint.MlpShift):
        if spec.shift and point in points and position + 1 < length:
            yield Hook(point, layer), edit_of(spec, At(pos=position + 1))


def edit_of(spec: StateKnockoutSpec, at: At) -> Intervention:
    """What a spec does to what passes there."""
    return Scale(spec.scale, at=at) if isinstance(spec, StateSteeringSpec) else Zero(at=at)
