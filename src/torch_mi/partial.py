# SPDX-License-Identifier: MIT OR Apache-2.0
"""Part of a run: from any layer, for later positions alone, up to any layer.

In a causal model nothing that happens at a position changes an earlier one. So a plain run is
recorded once, and another that differs from it from some layer and position on is run from there,
with the keys and values of earlier positions from the record.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_mi.backends.protocol import Run, offer_of
from torch_mi.cache import HookCache, Prefix, Residual
from torch_mi.errors import ModelError
from torch_mi.hooks.point import Hook, HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.hooks.trace import Offer
from torch_mi.manifest import Manifest
from torch_mi.model import MIModel
from torch_mi.types import Carry


@dataclass(frozen=True, eq=False)
class Record:
    """A plain run of one prompt, any part of which can be run again."""

    tokens: Tensor
    """Token ids [1 pos]."""
    residuals: tuple[Tensor, ...]
    """The residual stream [1 pos d_model] entering each layer, and that leaving the last."""
    captured: Mapping[str, Tensor]
    """Other activations, by hook, where they were asked for."""
    run: HookCache
    _prefix: Prefix

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
        return self._prefix.cut(start)

    def past(self, layer: int, start: int) -> Carry:
        """What one layer remembers of the positions before `start`; nothing if there are none."""
        return tuple(x[:, :start] for x in self._prefix.carries[layer]) if start else ()


def record(model: MIModel, tokens: Tensor, points: Iterable[str] = ()) -> Record:
    """A plain run of one prompt [1 pos], recorded, with the activations at `points`."""
    if len(tokens) != 1:
        raise ModelError(f"a record is of one prompt, not of {len(tokens)}")
    wanted = tuple(points)
    spec = HookSpec().capture(HookPoint.ResidPre, *wanted)
    cut = can_cut(model)
    run = model.forward(tokens, spec, after=Prefix() if cut else None, stop=model.num_layers)
    residuals = [run[HookPoint.ResidPre(layer)] for layer in range(model.num_layers)]
    return Record(
        tokens.to(model.device),
        (*residuals, run.residual.x),
        {hook: run[hook] for hook in run},
        run,
        run.prefix if cut else Prefix(),
    )


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
