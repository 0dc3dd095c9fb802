# SPDX-License-Identifier: MIT OR Apache-2.0
"""Part of a run: from any layer, for later positions alone, up to any layer.

In a causal model nothing that happens at a position changes an earlier one. So a plain run is
recorded once, and another that differs from it from some layer and position on is run from there,
with the keys and values of earlier positions from the record.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_mi.backends.protocol import Run, offer_of, stream_width
from torch_mi.cache import HookCache, Prefix, Residual
from torch_mi.errors import ModelError
from torch_mi.hooks.point import Hook, HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.hooks.trace import Offer, Tap, silent
from torch_mi.manifest import Manifest
from torch_mi.model import MIModel
from torch_mi.types import Carry

PIECE, PIECES = 16, 32
"""A recurrent state is kept every so many tokens, or so many times in a text."""


@dataclass(frozen=True, eq=False)
class Record:
    """A plain run of one prompt, any part of which can be run again."""

    tokens: Tensor
    """Token ids [1 pos]."""
    residuals: tuple[Tensor, ...]
    """What enters each layer: the residual stream [1 pos d_model] and what flows beside it; and
    the stream that leaves the last."""
    captured: Mapping[str, Tensor]
    """Other activations, by hook, where they were asked for."""
    run: HookCache
    _prefix: Prefix
    _states: "States | None" = None

    @property
    def manifest(self) -> Manifest:
        """What it takes to make the plain run again; made when it is asked for."""
        return self.run.manifest

    @property
    def length(self) -> int:
        """How many tokens the prompt has."""
        return self.tokens.shape[1]

    def residual(self, layer: int, start: int = 0) -> Residual:
        """What enters `layer`, or leaves the last, from position `start` on."""
        return Residual(layer, self.residuals[layer][:, start:])

    def prefix(self, start: int) -> Prefix:
        """What the positions before `start` leave behind."""
        if self._states is None or start == 0:
            return self._prefix.cut(start)
        layers = range(len(self.residuals) - 1)
        positions = torch.arange(start, device=self.tokens.device)[None]
        carries = {layer: self.past(layer, start) for layer in layers}
        return Prefix(carries, self.tokens[:, :start], positions, recurrent=True)

    def past(self, layer: int, start: int) -> Carry:
        """What one layer remembers of the positions before `start`; nothing if there are none."""
        if not start:
            return ()
        if self._states is not None:
            return self._states.before(layer, start)
        return tuple(x[:, :start] for x in self._prefix.carries[layer])


class States:
    """What the layers of a recurrent model remember at any position of a recorded run.

    States at some positions are kept; those in between are run again from the last one kept.
    """

    def __init__(self, model: MIModel, residuals: Sequence[Tensor]) -> None:
        self._model, self._residuals = model, residuals
        self._length = residuals[0].shape[1]
        self._piece = max(PIECE, -(-self._length // PIECES))
        self._kept: dict[int, list[Carry]] = {}
        self._last: dict[int, tuple[int, Carry]] = {}

    def before(self, layer: int, start: int) -> Carry:
        """What a layer remembers of the positions before `start`."""
        if layer in self._last and self._last[layer][0] == start:
            return self._last[layer][1]
        kept = self._kept.setdefault(layer, [()])
        while len(kept) <= start // self._piece:
            begin_at = (len(kept) - 1) * self._piece
            kept.append(self._on(layer, begin_at, begin_at + self._piece, kept[-1]))
        known = start // self._piece
        found = self._on(layer, known * self._piece, start, kept[known])
        self._last[layer] = start, found
        return found

    def _on(self, layer: int, start: int, stop: int, past: Carry) -> Carry:
        if start == stop:
            return past
        shared = begin(self._model, stop, start)
        x = self._residuals[layer][:, start:stop]
        return self._model.backend.remember(layer, x, shared, silent, past)


def record(model: MIModel, tokens: Tensor, points: Iterable[str] = ()) -> Record:
    """A plain run of one prompt [1 pos], recorded, with the activations at `points`."""
    if len(tokens) != 1:
        raise ModelError(f"a record is of one prompt, not of {len(tokens)}")
    wanted, layers = tuple(points), range(model.num_layers)
    flowing = [p(layer) for layer in layers for p in model.backend.stream_points(layer)]
    spec = HookSpec().capture(*flowing, *wanted)
    recurrent = model.backend.recurrent
    keep = can_cut(model) and not recurrent
    run = model.forward(tokens, spec, after=Prefix() if keep else None, stop=model.num_layers)
    residuals = [stream(model, run, layer) for layer in layers]
    return Record(
        tokens.to(model.device),
        (*residuals, run.residual.x),
        {hook: run[hook] for hook in run},
        run,
        run.prefix if keep else Prefix(),
        States(model, residuals) if recurrent else None,
    )


def stream(model: MIModel, cache: HookCache, layer: int) -> Tensor:
    """What enters a layer of a run that captured it: the stream and what flows beside it.

    `Residual(layer, stream(model, cache, layer))` is where a run can start. In most models it is
    the capture of `ResidPre`; RWKV-7 needs that of `RwkvVFirst` too.
    """
    parts = [cache[point(layer)] for point in model.backend.stream_points(layer)]
    return parts[0] if len(parts) == 1 else torch.cat([part.flatten(2) for part in parts], -1)


def blank(model: MIModel, layer: int, rows: int) -> Residual:
    """Zeros to start `layer` from, as `rows` texts of one token."""
    width = stream_width(model.backend, layer)
    return Residual(layer, torch.zeros(rows, 1, width, dtype=model.dtype, device=model.device))


def entering(model: MIModel, x: Tensor, tap: Tap) -> Tensor:
    """What enters a layer, after the edits of the residual stream there."""
    width = model.hidden_size
    if x.shape[-1] == width:
        return tap(HookPoint.ResidPre, x)
    return torch.cat([tap(HookPoint.ResidPre, x[..., :width]), x[..., width:]], -1)


def rerun(
    model: MIModel,
    of: Record,
    spec: HookSpec | None = None,
    *,
    layer: int = 0,
    start: int = 0,
    stop: int | None = None,
) -> HookCache:
    """A recorded run again from `layer` to the door of `stop`, for positions from `start` on.

    What `spec` does there is done; what it does in earlier layers or at earlier positions is
    taken to do nothing.
    """
    if not 0 <= start < of.length:
        raise ModelError(
            f"start={start} is out of range: the record has positions 0 … {of.length - 1}"
        )
    if start and not can_cut(model):
        raise ModelError("in this model later positions change earlier ones; start at position 0")
    allowed = None if spec is None else spec.copy()
    if allowed is not None:
        allowed.allow_unfired = True
    after = of.prefix(start) if start else None
    return model.forward(of.residual(layer, start), allowed, after=after, stop=stop)


def can_cut(model: MIModel) -> bool:
    """Whether a run can begin at a later position, with the earlier ones from a record."""
    return model.backend.causal


def begin(model: MIModel, length: int, start: int) -> Any:
    """What the layers share in a run of positions `start` … `length` - 1 of unpadded prompts."""
    positions = torch.arange(start, length, device=model.device)[None]
    return model.backend.begin(Run(positions, start))


def offer(model: MIModel) -> Offer:
    """What a model has to offer to a spec."""
    return offer_of(model.backend)


def hooks_of(model: MIModel, place: Hook | HookPoint) -> list[Hook]:
    """The places that a name means in this model."""
    return offer(model).resolve(place)
