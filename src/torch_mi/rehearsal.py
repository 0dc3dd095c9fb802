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
from torch_mi.memory import available_bytes
from torch_mi.model import AttentionMode, MIModel
from torch_mi.prompts import Batch, Prompt
from torch_mi.types import Carry

HERE, NOWHERE = torch.device("cpu"), torch.device("meta")


class Ledger(TorchDispatchMode):
    """The bytes of all tensors without data that are alive: now, and at most."""

    def __init__(self, given: Sequence[Tensor]) -> None:
        """A ledger that leaves out what is `given`."""
        super().__init__()
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


class Rehearsal(MIModel):
    """A model that reads prompts like another, and runs them without data."""

    def __init__(self, model: MIModel) -> None:
        twin, given = without_data(model.backend)
        super().__init__(twin, model.tokenizer if model.has_tokenizer else None, model.origin)
        self._real, self._place = model.device, HERE
        self.ledger = Ledger(given)
        self.keys_values = 0
        """What layers would hand on to later tokens."""
        self.attention = 0
        """The most that one layer with explicit attention takes beside what was there before."""

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
        self.keys_values = self.attention = 0
        given = self.ledger.most = self.ledger.now
        with self.ledger, Fused(self._real):
            cache = self._run(rehearsed(spec), start, attention, after, grad=grad)
        batch, pos, _ = cache.output.shape
        return RunForecast(
            self.origin.model_id,
            batch,
            pos,
            str(self._real),
            tuple(points_of(cache)),
            self.keys_values,
            cache.output.untyped_storage().nbytes(),
            self.attention,
            self.ledger.most - given,
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
        self._place = HERE
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
        """The loop over layers with a look at the ledger at each."""
        padding = None if p.run.padding is None else p.run.padding.to(NOWHERE)
        run = replace(p.run, positions=p.run.positions.to(NOWHERE), padding=padding)
        before = p.prefix.to(NOWHERE)
        shared = self.backend.begin(run)
        if isinstance(start, Residual):
            x = start.x.to(NOWHERE, self.dtype)
        else:
            x = self.backend.embed(batch.tokens.to(NOWHERE), shared, p.trace.tap())
        carries: dict[int, Carry] = {}
        always = run.explicit or self.backend.always_explicit
        for layer in p.layers:
            tap, at_door = p.trace.tap(layer), self.ledger.now
            self.ledger.most, most = at_door, self.ledger.most
            x, carry = self.backend.block(layer, x, shared, tap, before.carries.get(layer, ()))
            if always or tap.watches(HookPoint.AttnScores, HookPoint.AttnPattern):
                self.attention = max(self.attention, self.ledger.most - at_door)
            self.ledger.most = max(most, self.ledger.most)
            self.keys_values += sum(held(carry, set()))
            if p.keep:
                carries[layer] = carry
        end = self.backend.unembed(x, p.trace.tap()) if p.ends else Residual(p.layers.stop, x)
        return end, carries


def rehearsed(spec: HookSpec | None) -> HookSpec:
    """A spec whose edits need no data: for code of the user's stands an edit that is as large."""
    out = HookSpec() if spec is None else spec.copy()
    out.edits = [
        (place, Scale(1.0, at=edit.at) if _is_code(edit) else edit) for place, edit in out.edits
    ]
    return out


def _is_code(edit: Intervention) -> bool:
    return isinstance(edit, Apply) or type(edit).__module__ != Apply.__module__
