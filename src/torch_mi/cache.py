# SPDX-License-Identifier: MIT OR Apache-2.0
"""What one run leaves behind: captures, logits or a residual, a prefix, receipts, a manifest."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from torch_mi.errors import HookError, ModelError, did_you_mean
from torch_mi.hooks.point import Hook, HookPoint, locate
from torch_mi.hooks.trace import Captured, Receipt
from torch_mi.manifest import Manifest
from torch_mi.types import Carry, Logits, Resid


@dataclass(frozen=True, eq=False)
class Residual:
    """A residual stream [batch pos d_model] about to enter `layer`: a run can start from one.

    In RWKV-7, the first layer's values [batch pos head d_value] follow it, flattened, between the
    first layer and the last; `mi.partial.stream(model, cache, layer)` puts the two together.
    """

    layer: int
    x: Resid


@dataclass(frozen=True, eq=False)
class Prefix:
    """Tokens already run and what each layer remembers of them; a later run can follow them.

    `Prefix()` is the empty one: a run `after` it leaves its own prefix behind.
    """

    carries: Mapping[int, Carry] = field(default_factory=dict[int, Carry])
    tokens: Tensor | None = None
    positions: Tensor | None = None
    real: Tensor | None = None
    """Where the tokens [batch seen] are not padding; `None` if all are real."""
    recurrent: bool = False
    """Whether the layers remember a state, and not something for each token."""

    @staticmethod
    def before(after: "Prefix | None", *, causal: bool) -> "Prefix":
        """The prefix that a run follows, if runs of its model can follow one."""
        if after is not None and not causal:
            raise ModelError(
                "this model looks ahead, so that what comes later changes what came before: "
                "its runs follow no prefix and leave none; run the whole text"
            )
        return Prefix() if after is None else after

    @property
    def seen(self) -> int:
        """How many tokens long this is, padding included."""
        return 0 if self.positions is None else self.positions.shape[-1]

    def to(self, device: str | torch.device) -> "Prefix":
        """The same with every tensor on `device`."""

        def moved(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device)

        carries = {i: tuple(x.to(device) for x in carry) for i, carry in self.carries.items()}
        return replace(
            self,
            carries=carries,
            tokens=moved(self.tokens),
            positions=moved(self.positions),
            real=moved(self.real),
        )

    def cut(self, seen: int) -> "Prefix":
        """The first `seen` tokens of this, where each layer remembers keys and values."""
        if not 0 <= seen <= self.seen:
            raise ModelError(f"a prefix of {self.seen} tokens has no first {seen}")
        if seen == 0:
            return Prefix()
        if self.recurrent and seen != self.seen:
            raise ModelError(
                f"a recurrent model's prefix of {self.seen} tokens holds the state after them all; "
                f"run the first {seen} alone for theirs"
            )

        def first(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[:, :seen]

        if self.recurrent:
            return self
        carries = {i: tuple(x[:, :seen] for x in carry) for i, carry in self.carries.items()}
        return Prefix(carries, first(self.tokens), first(self.positions), first(self.real))

    def check(self, layers: range) -> None:
        """Raise `ModelError` unless this prefix was run through `layers`."""
        missing = [layer for layer in layers if layer not in self.carries]
        if self.seen and missing:
            raise ModelError(
                f"the prefix was run through layers {sorted(self.carries)}, "
                f"and this run goes through layer {missing[0]}"
            )


@dataclass(frozen=True, eq=False)
class Ran:
    """The parts of a run that a cache is made of."""

    end: Tensor | Residual
    after: dict[str, Captured]
    before: dict[str, Captured]
    receipts: tuple[Receipt, ...]
    tokens: Tensor | None
    real: Tensor | None
    prefix: Prefix | None
    manifest: Callable[[], Manifest]


def _made(captures: dict[str, Captured], name: str) -> Tensor:
    """A capture; one that was kept as a recipe is made now and kept."""
    value = captures[name]
    if not isinstance(value, Tensor):
        with torch.no_grad():
            value = captures[name] = value()
    return value


class HookCache(Mapping[str, Tensor]):
    """A run's captures by hook or name, and beside them its output and everything else it left.

    Iterates over hooks in the order of their capture. Looking up a place that was not captured
    is a `HookError`; so is a misspelt one.
    """

    def __init__(self, ran: Ran) -> None:
        self._ran = ran

    @property
    def output(self) -> Logits:
        """The logits [batch pos vocab]."""
        if isinstance(self._ran.end, Residual):
            raise HookError(
                f"this run stopped before layer {self._ran.end.layer}; it has .residual, no .output"
            )
        return self._ran.end

    @property
    def residual(self) -> Residual:
        """The residual stream at which a run with `stop=` ended."""
        if not isinstance(self._ran.end, Residual):
            raise HookError("this run went to the end; it has .output, no .residual")
        return self._ran.end

    @property
    def prefix(self) -> Prefix:
        """This run's tokens, with those before them, for a later run to follow."""
        if self._ran.prefix is None:
            raise HookError("this run kept no prefix; run it with after=Prefix() to keep one")
        return self._ran.prefix

    @property
    def before(self) -> Mapping[str, Tensor]:
        """Captures taken with `when="before"`, by name."""
        return {name: _made(self._ran.before, name) for name in self._ran.before}

    @property
    def receipts(self) -> tuple[Receipt, ...]:
        """What became of each edit."""
        return self._ran.receipts

    @property
    def tokens(self) -> Tensor | None:
        """The token ids [batch pos] of the run; `None` if it started from a residual."""
        return self._ran.tokens

    @property
    def real(self) -> Tensor | None:
        """Where the tokens [batch pos] are not padding; `None` if all are real."""
        return self._ran.real

    @cached_property
    def manifest(self) -> Manifest:
        """What it takes to make this run again."""
        return self._ran.manifest()

    def get(self, where: str, default: Tensor | None = None) -> Tensor | None:  # pyright: ignore[reportIncompatibleMethodOverride] - no other default makes sense
        """The capture at this place, or `default`; a misspelt name is an error all the same."""
        name = where if where in self._ran.after else Hook.parse(where)
        return _made(self._ran.after, name) if name in self._ran.after else default

    def require(self, where: str) -> Tensor:
        """The capture at this place."""
        return self[where]

    def stack(self, point: str) -> Tensor:
        """A point's captures in every layer, stacked along a new first axis."""
        place = locate(point)
        found = [self[name] for name in self if Hook.parse(name).point is place]
        if not isinstance(place, HookPoint) or not found:
            raise HookError(f"no layer's {point} was captured in this run")
        return torch.stack(found)

    def num_captures(self) -> int:
        return len(self._ran.after)

    def to(self, device: str | torch.device) -> "HookCache":
        """The same with every tensor on `device`."""
        ran = self._ran
        end = ran.end
        moved = (
            Residual(end.layer, end.x.to(device)) if isinstance(end, Residual) else end.to(device)
        )
        return HookCache(
            Ran(
                moved,
                {name: x.to(device) for name, x in self.items()},
                {name: x.to(device) for name, x in self.before.items()},
                ran.receipts,
                None if ran.tokens is None else ran.tokens.to(device),
                None if ran.real is None else ran.real.to(device),
                None if ran.prefix is None else ran.prefix.to(device),
                ran.manifest,
            )
        )

    def __getitem__(self, where: str) -> Tensor:
        found = self.get(where)
        if found is None:
            captured = list(self._ran.after)
            hint = did_you_mean(str(where), captured) if captured else "; nothing was"
            raise HookError(f"{locate(where)!r} was not captured in this run{hint}")
        return found

    def __contains__(self, where: object) -> bool:
        return isinstance(where, str) and self.get(where) is not None

    def __iter__(self) -> Iterator[str]:
        return (Hook.parse(name) for name in self._ran.after)

    def __len__(self) -> int:
        return len(self._ran.after)

    def __repr__(self) -> str:
        end = self._ran.end
        what = f"stopped before layer {end.layer}" if isinstance(end, Residual) else "logits"
        shape = list((end.x if isinstance(end, Residual) else end).shape)
        edits = f", {len(self.receipts)} edits" if self.receipts else ""
        return f"<HookCache: {what} {shape}, {len(self)} captures{edits}>"
