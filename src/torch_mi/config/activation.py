# SPDX-License-Identifier: MIT OR Apache-2.0
"""The nonlinearities of MLPs."""

from collections.abc import Callable
from enum import Enum

import torch
from torch import Tensor
from torch.nn.functional import gelu, relu, silu


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GELU."""
    return gelu(x, approximate="tanh")


def quick_gelu(x: Tensor) -> Tensor:
    """The sigmoid approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


def relu_squared(x: Tensor) -> Tensor:
    """ReLU, squared (So et al. 2021)."""
    return relu(x).square()


def solu(x: Tensor) -> Tensor:
    """Softmax linear unit (Elhage et al. 2022): x times its softmax over the neurons."""
    return x * x.softmax(-1)


class Activation(Enum):
    """The nonlinearity of the MLP."""

    Silu = "silu"
    Gelu = "gelu"
    """Exact, with the error function."""
    GeluTanh = "gelu_tanh"
    """The tanh approximation."""
    QuickGelu = "quick_gelu"
    """The sigmoid approximation."""
    Relu = "relu"
    ReluSquared = "relu_squared"
    Solu = "solu"
    """x times its softmax over the neurons."""
    SoluNorm = "solu_norm"
    """The same, and a layer norm over the neurons after it."""

    @property
    def function(self) -> Callable[[Tensor], Tensor]:
        return _FUNCTIONS[self]


_FUNCTIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.Silu: silu,
    Activation.Gelu: gelu,
    Activation.GeluTanh: gelu_tanh,
    Activation.QuickGelu: quick_gelu,
    Activation.Relu: relu,
    Activation.ReluSquared: relu_squared,
    Activation.Solu: solu,
    Activation.SoluNorm: solu,
}
