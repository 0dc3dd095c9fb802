# SPDX-License-Identifier: MIT OR Apache-2.0
"""RMS norm and layer norm, with their denominator and normalised value on show."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torch_mi.config.parts import NormType
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.trace import Tap

Vectors = Float[Tensor, "batch pos *head width"]
"""Vectors of the residual stream, or of each head."""


def length(x: Tensor) -> Tensor:
    """The Euclidean length of each vector, in one kernel."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - torch's stub


class Norm(nn.Module):
    """Division by the root mean square, after the mean is taken off in a layer norm."""

    def __init__(
        self,
        kind: NormType,
        eps: float,
        shape: int | tuple[int, ...],
        scale: HookPoint | None = None,
        normalized: HookPoint | None = None,
    ) -> None:
        """A norm over the last axis of `shape`, gain one, tapped at the two points if given."""
        super().__init__()
        self.kind, self.eps, self.centred = kind, eps, kind.centred
        self.scale, self.normalized = scale, normalized
        self.weight = nn.Parameter(torch.ones(shape)) if kind.has_gain else None
        self.bias = nn.Parameter(torch.zeros(shape)) if kind.has_bias else None

    def forward(self, x: Vectors, tap: Tap) -> Vectors:
        """The norm of `x`, computed in float32."""
        if self.kind is NormType.Absent:
            return x
        h = x.float()
        if self.centred:
            h = h - h.mean(-1, keepdim=True)
        mean_square = length(h).square() / h.shape[-1]
        denominator = (mean_square + self.eps).sqrt()
        if self.scale is None or self.normalized is None:
            return self.gain(h / denominator, x)
        denominator = tap(self.scale, denominator)
        return self.gain(tap(self.normalized, h / denominator), x)

    def gain(self, h: Vectors, like: Vectors) -> Vectors:
        """Gain and bias; families differ in where low precision rounds."""
        if self.weight is None:
            return h.to(like)
        match self.kind:
            case NormType.Rms:
                return self.weight * h.to(like)
            case NormType.RmsPlusOne:
                return (h * (1 + self.weight.float())).to(like)
            case _:
                bias = 0 if self.bias is None else self.bias
                return (h * self.weight + bias).to(like)
