# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the laws of `torch_mi.testing` share: what there is to watch and edit, what must hold."""

import torch
from torch import Tensor

from torch_mi.hooks.point import Hook, HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.model import MIModel

AXES = ("pos", "query", "key", "source")
"""Axes that are as long as the text."""


def everything(model: MIModel) -> HookSpec:
    """A spec that captures all there is."""
    return HookSpec().capture(*(p for p in HookPoint if p in model.backend.hook_points))


def editable(model: MIModel) -> list[HookPoint]:
    """The points that can be edited."""
    return [p for p in HookPoint if p in model.backend.hook_points - model.backend.read_only]


def places(model: MIModel, point: HookPoint) -> list[Hook]:
    """Where a point is."""
    return [hook for hook in model.hooks if hook.point is point]


def logits_of(model: MIModel, tokens: Tensor, spec: HookSpec | None = None) -> Tensor:
    """The logits of an explicit run."""
    return model.forward(tokens, spec, attention="explicit").output


def shape_of(model: MIModel, hook: Hook, tokens: Tensor) -> tuple[int, ...]:
    """How large the activation at a hook is declared to be."""
    batch, pos = tokens.shape
    runs = {"batch": batch} | dict.fromkeys(AXES, pos)
    return tuple(axis if isinstance(axis, int) else runs[axis] for axis in model.hooks[hook])


def slopes_of(end: Tensor, at: list[Tensor]) -> tuple[Tensor | None, ...]:
    """The gradients of a number."""
    must(end.requires_grad, "a run with grad built no graph")
    return torch.autograd.grad(end, at, allow_unused=True)


def must(holds: bool, what: str) -> None:  # noqa: FBT001 - it reads as a sentence
    """What a law says."""
    if not holds:
        raise AssertionError(what)


def agree(what: str, found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    """Equality up to `tolerance` of the largest finite entry."""
    if torch.equal(found, wanted):
        return
    wanted = wanted.expand_as(found) if wanted.ndim == 0 else wanted
    size = wanted.nan_to_num(neginf=0).abs().max().item()
    torch.testing.assert_close(
        found, wanted, rtol=0, atol=tolerance * max(1.0, size), msg=lambda m: f"{what}: {m}"
    )
