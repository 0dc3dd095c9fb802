# SPDX-License-Identifier: MIT OR Apache-2.0
"""Muon in float32: where a CPU has no products in bfloat16, torch's own takes half of each step."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.775, 2.0315)
"""Of the Newton-Schulz iteration, as Jordan et al. chose them: five times lead near enough."""
TIMES = 5
MOMENTUM = 0.95


class Muon(Optimizer):
    """Momentum whose singular values all become about 1 (Jordan et al. 2024), for matrices."""

    def __init__(self, matrices: Iterable[Tensor], weight_decay: float) -> None:
        super().__init__(matrices, {"lr": 1e-3, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - no closure
        """One update by the gradients that are there."""
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - MOMENTUM)
                update = orthogonal(p.grad.lerp(momentum, MOMENTUM))
                taller = math.sqrt(max(1.0, p.shape[0] / p.shape[1]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * taller)


def orthogonal(x: Tensor) -> Tensor:
    """The nearest matrix with orthogonal rows or columns, about."""
    a, b, c = COEFFICIENTS
    wide = x if x.shape[0] <= x.shape[1] else x.T
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(TIMES):
        square = wide @ wide.T
        wide = a * wide + (b * square + c * square @ square) @ wide
    return wide if x.shape[0] <= x.shape[1] else wide.T
