# SPDX-License-Identifier: MIT OR Apache-2.0
"""A run without data: the same code on tensors that have shapes and no entries, and a ledger.

What a run would hold is counted, not calculated: storages as they come and go, each once, however
many tensors look at it. So a forecast knows of every backend what the backend itself does.
"""

import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, UntypedStorage
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from torch_mi.backends.protocol import MIBackend
from torch_mi.cache import HookCache, Prefix, Residual
from torch_mi.errors import ModelError
from torch_mi.forecasting import RunForecast, held, points_of
from torch_mi.hooks.interventions import Apply, Intervention, Scale
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.hooks.trace import Tap, Trace
from torch_mi.memory import available_bytes
from torch_mi.model import AttentionMode, MIModel
from torch_mi.prompts import Batch, Prompt
from torch_mi.types import Carry

HERE, NOWHERE = torch.device("cpu"), torch.device("meta")


class Ledger(TorchDispatchMode):
    """The bytes of all tensors without data that are alive: now, and at most."""

    def __init__(self, given: Sequence[Tensor]) -> None:
        """A ledger that leaves out what is `given`."""
        super().__init__()  # pyright: ignore[reportUnknownMemberType] - torch's stub
        self.now = self.most = 0
        self._known: dict[int, weakref.finalize[Any, Any]] = {}
        for tensor in given:
            self._enter(tensor.untyped_storage(), 0)

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        out = func(*args, **(kwargs or {}))
        for storage in storages(out):
            if id(storage) not in self._known:
                self._enter(storage, storage.nbytes())
        return out

    def _enter(self, storage: UntypedStorage, size: int) -> None:
        self._known[id(storage)] = weakref.finalize(storage, self._leave, id(storage), size)
        self.now += size
        self.most = max(self.most, self.now)

    def _leave(self, key: int, size: int) -> None:
        del self._known[key]
        self.now -= size


class Fused(TorchFunctionMode):
    """The fused kernel as it is where there is data: it never forms the pattern."""

    def __init__(self, device: torch.device) -> None:
        """As it is on `device`: on a CPU, it needs queries and values that are equally wide."""
        super().__init__()
        self.any_width = device.type != "cpu"

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        q, k, v = cast("tuple[Tensor, Tensor, Tensor]", args)
        width = v.shape[-1]
        if width > q.shape[-1] or (width < q.shape[-1] and not self.any_width):
            return func(*args, **(kwargs or {}))
        q, k = q[..., :width], k[..., :width]
        mask = (kwargs or {}).get("attn_mask")
        added = mask.to(q.dtype) if isinstance(mask, Tensor) else None
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001
        return kernel(q, k, v, attn_mask=added)[0]


def storages(found: object) -> Iterator[UntypedStorage]:
    """Where the tensors without data in an operation's result lie."""
    if isinstance(found, Tensor):
        if found.is_meta:
            yield found.untyped_storage()
    elif isinstance(found, list | tuple):
        for item in cast("Sequence[object]", found):
            yield from storages(item)


def without_data(backend: MIBackend) -> tuple[MIBackend, list[Tensor]]:
    """A backend of the same shape whose parameters have no entries, and these parameters."""
    given: dict[int, Tensor] = {}
    for _, value in backend.named_parameters():
        twin = torch.empty_like(value, device=NOWHERE)
        given[id(value)] = twin.requires_grad_(value.requires_grad)
        if isinstance(value, torch.nn.Parameter):
            given[id(value)] = torch.nn.Parameter(twin.detach(), value.requires_grad)
    return copy.deepcopy(backend, dict(given)), list(given.values())


class Doors(Trace):
    """Another trace, with a look at the ledger wherever a layer begins."""

    def __init__(self, trace: Trace, ledger: Ledger, *, always: bool) -> None:
        """`always` says that attention is explicit in every layer."""
        self.trace, self.ledger, self.always = trace, ledger, always
        self.attention = 0
        """The most that one layer with explicit attention takes beside what was there before."""
        self._entered: tuple[int, int] | None = None

    def tap(self, layer: int | None = None) -> Tap:
        """The trace's own tap; what came before is over."""
        self.leave()
        found = self.trace.tap(layer)
        explicit = self.always or found.watches(HookPoint.AttnScores, HookPoint.AttnPattern)
        if layer is not None and explicit:
            self._entered = self.ledger.now, self.ledger.most
            self.ledger.most = self.ledger.now
        return found

    def leave(self) -> None:
        """What the layer entered last has taken, if its attention was explicit."""
        if self._entered is not None:
            now, most = self._entered
            self.attention = max(self.attention, self.ledger.most - now)
            self.ledger.most = max(self.ledger.most, most)
        self._entered = None


class Rehearsal(MIModel):
    """A model that reads prompts like another, and runs them without data."""

    def __init__(self, model: MIModel) -> None:
        twin, given = without_data(model.backend)
        super().__init__(twin, model.tokenizer if model.has_tokenizer else None, model.origin)
        self._real, self._place = model.device, HERE
        self._ledger, self._attention = Ledger(given), 0

    @property
    def device(self) -> torch.device:
        return self._place

    def estimate(
        self,
        start: Prompt | Residual,
        spec: HookSpec | None = None,
        *,
        attention: AttentionMode = "auto",
        after: Prefix | None = None,
        grad: bool = False,
    ) -> RunForecast:
        """What a run with these arguments of `forward` would take."""
        given = self._ledger.most = self._ledger.now
        with self._ledger, Fused(self._real):
            cache = self._run(rehearsed(spec), start, attention, after, grad=grad)
        total, most = self._ledger.most - given, self._attention
        kept = self._run(HookSpec(), start, "auto", after or Prefix(), grad=False).prefix
        carried = [tensor for carry in kept.carries.values() for tensor in carry]
        batch, pos, _ = cache.output.shape
        return RunForecast(
            self.origin.model_id,
            batch,
            pos,
            str(self._real),
            tuple(points_of(cache)),
            sum(held(carried, set())),
            cache.output.untyped_storage().nbytes(),
            most,
            total,
            available_bytes(self._real),
        )

    def _run(
        self,
        spec: HookSpec,
        start: Prompt | Residual,
        attention: AttentionMode,
        after: Prefix | None,
        *,
        grad: bool,
    ) -> HookCache:
        """The run, and a look at every capture."""
        self._place = HERE  # prompts are read where there are numbers
        try:
            cache = self.forward(start, spec, attention=attention, after=after, grad=grad)
            for name in cache:
                cache.require(name)
        except RuntimeError as cause:  # what torch raises where entries are needed
            raise ModelError(
                f"a {type(self.backend).__name__} cannot be run without data, so there is no "
                f"forecast: {cause}"
            ) from cause
        return cache

    def _through(
        self,
        start: "Prompt | Residual",
        batch: Batch,
        p: Any,  # how the run goes, which only MIModel makes
    ) -> tuple[Tensor | Residual, dict[int, Carry]]:
        """The run itself, on what has no data."""
        self._place = NOWHERE
        padding = None if p.run.padding is None else p.run.padding.to(NOWHERE)
        run = replace(p.run, positions=p.run.positions.to(NOWHERE), padding=padding)
        doors = Doors(p.trace, self._ledger, always=run.explicit or self.backend.always_explicit)
        if isinstance(start, Residual):
            start = Residual(start.layer, start.x.to(NOWHERE))
        batch = replace(batch, tokens=batch.tokens.to(NOWHERE))
        p = replace(p, run=run, trace=doors, prefix=p.prefix.to(NOWHERE))
        end = super()._through(start, batch, p)
        doors.leave()
        self._attention = doors.attention
        return end


def rehearsed(spec: HookSpec | None) -> HookSpec:
    """A spec whose edits need no data: for code of the user's stands an edit that is as large."""
    out = HookSpec() if spec is None else spec.copy()
    out.edits = [
        (place, Scale(1.0, at=edit.at) if _is_code(edit) else edit) for place, edit in out.edits
    ]
    return out


def _is_code(edit: Intervention) -> bool:
    return isinstance(edit, Apply) or type(edit).__module__ != Apply.__module__
