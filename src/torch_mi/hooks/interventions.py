# SPDX-License-Identifier: MIT OR Apache-2.0
"""What can be done to an activation. Each intervention is a value: printable, comparable, saved.

A value that is put in place must have the shape of what it replaces; a value that is added may
broadcast to that shape, never enlarge it; dtype and device follow the activation.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Real
from typing import cast

import torch
from torch import Tensor

from torch_mi.errors import InterventionError
from torch_mi.hooks.coordinates import At
from torch_mi.hooks.point import Hook, HookPoint


@dataclass(frozen=True, kw_only=True, eq=False)
class Intervention(ABC):  # noqa: PLW1641 - tensors have no stable hash
    """A change to an activation, limited to `at`. Subclass it and define `edit` for your own."""

    at: At | None = None

    @abstractmethod
    def edit(self, x: Tensor, hook: Hook) -> Tensor:
        """The new value of `x`, the part of the activation at `hook` that `at` selects."""

    def check(self, point: HookPoint, shape: tuple[int, ...]) -> None:  # noqa: B027 - many fit all
        """Raise `InterventionError` unless this edit fits a selection of `shape` at `point`."""

    def values(self) -> dict[str, object]:
        """The fields of this edit, `at` aside, by name."""
        own = {f.name: cast("object", self.__dict__[f.name]) for f in fields(self)}
        del own["at"]
        return own

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other) or not isinstance(other, Intervention):
            return NotImplemented
        ours, theirs = self.values(), other.values()
        return self.at == other.at and all(_same(ours[k], theirs[k]) for k in ours)

    def __repr__(self) -> str:
        shown = [_show(v) for v in self.values().values() if v is not None]
        shown += [f"at={self.at!r}"] if self.at else []
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, eq=False, repr=False)
class Replace(Intervention):
    """Put `value` in place of the activation; it has exactly the selected shape."""

    value: Tensor

    def __post_init__(self) -> None:
        _needs_tensor(self.value, "Replace")

    def check(self, point: HookPoint, shape: tuple[int, ...]) -> None:
        if tuple(self.value.shape) != shape:
            raise InterventionError(
                f"Replace at {point.name} needs a value of shape {list(shape)}, "
                f"got {list(self.value.shape)}"
            )
        _finite(self.value, point, "Replace", barred=point is HookPoint.AttnScores)

    def edit(self, x: Tensor, hook: Hook) -> Tensor:  # noqa: ARG002
        return self.value.to(x)


@dataclass(frozen=True, eq=False, repr=False)
class Add(Intervention):
    """Add `delta`, which may broadcast to the selection: steering, feature injection."""

    delta: Tensor

    def __post_init__(self) -> None:
        _needs_tensor(self.delta, "Add")

    def check(self, point: HookPoint, shape: tuple[int, ...]) -> None:
        _broadcasts(self.delta, point, shape, "Add")
        _finite(self.delta, point, "Add")

    def edit(self, x: Tensor, hook: Hook) -> Tensor:  # noqa: ARG002
        return x + self.delta.to(x)


@dataclass(frozen=True, eq=False, repr=False)
class Knockout(Intervention):
    """Remove attention edges: scores become -inf, so their probability is exactly zero.

    With a `mask` (0 keeps, -inf removes) that broadcasts to the selection, or without one for all
    that `at` selects. Acts at `AttnScores`, after any soft-cap.
    """

    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.mask is not None:
            _needs_tensor(self.mask, "Knockout")

    def check(self, point: HookPoint, shape: tuple[int, ...]) -> None:
        if point is not HookPoint.AttnScores:
            raise InterventionError(
                f"Knockout removes attention edges and acts at AttnScores, not at {point.name}; "
                "Zero() sets an activation to zero"
            )
        if self.mask is None:
            return
        _broadcasts(self.mask, point, shape, "Knockout")
        if not bool(((self.mask == 0) | (self.mask == -torch.inf)).all()):
            raise InterventionError("a Knockout mask holds 0 (keep) and -inf (remove) only")

    def edit(self, x: Tensor, hook: Hook) -> Tensor:  # noqa: ARG002
        return torch.full_like(x, -torch.inf) if self.mask is None else x + self.mask.to(x)


@dataclass(frozen=True, eq=False, repr=False)
class Scale(Intervention):
    """Multiply the activation by a finite `factor`. Scores that are -inf stay so."""

    factor: float

    def __post_init__(self) -> None:
        if not isinstance(self.factor, Real):
            raise InterventionError(f"Scale needs a number, not {self.factor!r}; Apply takes more")
        object.__setattr__(self, "factor", float(self.factor))

    def check(self, point: HookPoint, shape: tuple[int, ...]) -> None:  # noqa: ARG002
        if not math.isfinite(self.factor):
            raise InterventionError(
                f"Scale at {point.name} needs a finite factor, got {self.factor}"
            )

    def edit(self, x: Tensor, hook: Hook) -> Tensor:
        scaled = x * self.factor
        return _keep_barred(x, scaled) if hook.point is HookPoint.AttnScores else scaled


@dataclass(frozen=True, eq=False, repr=False)
class Zero(Intervention):
    """Set the activation to zero. Scores that are -inf stay so."""

    def edit(self, x: Tensor, hook: Hook) -> Tensor:
        zero = torch.zeros_like(x)
        return _keep_barred(x, zero) if hook.point is HookPoint.AttnScores else zero


@dataclass(frozen=True, eq=False, repr=False)
class Apply(Intervention):
    """Call `fn(activation, hook)`, which returns a tensor of the same shape.

    `fn` is given a copy, so it may write in place. A spec with an `Apply` cannot be saved.
    """

    fn: Callable[[Tensor, Hook], Tensor]

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise InterventionError(f"Apply needs a function, not {self.fn!r}")

    def edit(self, x: Tensor, hook: Hook) -> Tensor:
        new = self.fn(x.clone(), hook)
        if not isinstance(new, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance] - user code
            raise InterventionError(
                f"the function of Apply at {hook} returned {type(new).__name__}, not a tensor"
            )
        if new.shape != x.shape:
            raise InterventionError(
                f"the function of Apply at {hook} returned shape {list(new.shape)} "
                f"for an activation of shape {list(x.shape)}"
            )
        return new.to(x)


KINDS: dict[str, type[Intervention]] = {
    kind.__name__: kind for kind in (Replace, Add, Knockout, Scale, Zero)
}
"""The interventions that can be saved, by name."""


def _needs_tensor(value: object, what: str) -> None:
    if not isinstance(value, Tensor) or value.is_complex():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise InterventionError(f"{what} needs a tensor of real numbers, not {kind}")


def _keep_barred(x: Tensor, new: Tensor) -> Tensor:
    return torch.where(x == -torch.inf, x, new)


def _broadcasts(value: Tensor, point: HookPoint, shape: tuple[int, ...], what: str) -> None:
    ours, theirs = reversed(value.shape), reversed(shape)
    fits = value.ndim <= len(shape) and all(a in (1, b) for a, b in zip(ours, theirs, strict=False))
    if not fits:
        raise InterventionError(
            f"{what} at {point.name} needs a value that broadcasts to {list(shape)}, "
            f"got {list(value.shape)}"
        )


def _finite(value: Tensor, point: HookPoint, what: str, *, barred: bool = False) -> None:
    """Refuse NaN and infinities; `barred` allows -inf, which scores hold where the mask is."""
    good = value.isfinite() | (value == -torch.inf) if barred else value.isfinite()
    if not bool(good.all()):
        bad = value[~good].flatten()[0].item()
        raise InterventionError(f"{what} at {point.name}: the value holds {bad}")


def _same(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b.to(a.device))
    return type(a) is type(b) and a == b


def _show(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return repr(value)
