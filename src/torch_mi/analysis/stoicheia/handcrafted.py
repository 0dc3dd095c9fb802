# SPDX-License-Identifier: MIT OR Apache-2.0
"""Networks written by hand that find the second largest number exactly (alg-zoo, MIT-0)."""

import torch
from torch import Tensor

from torch_mi.analysis.stoicheia.networks import StoicheiaRnn
from torch_mi.analysis.stoicheia.tasks import task_named
from torch_mi.errors import ModelError

SHARPNESS = 100.0
"""λ of the network for three inputs: errors are as rare as inputs this much closer than others."""


def handcrafted(n: int, dtype: torch.dtype = torch.float64) -> StoicheiaRnn:
    """A network for `2nd_argmax` of n = 2 (2 neurons), 3 (4) or any more (2n + 2).

    For two inputs it is exact; for three it errs in the share of inputs that its `SHARPNESS` leaves
    (5 in 100,000). For more, logit i is relu(x_i) + 2 · max(0, all the others), which tells the
    second from the rest wherever it is positive (99 % of ten).
    """
    if n < 2:  # noqa: PLR2004 - there is no second
        raise ModelError(f"n={n}: there is no second largest; n is at least 2")
    makers = {2: _two, 3: _three}
    w_ih, w_hh, w_oh = makers[n]() if n in makers else _many(n)
    network = StoicheiaRnn(task_named("2nd_argmax"), n, w_ih, w_hh, w_oh)
    return network.to(dtype)


def _two() -> tuple[Tensor, Tensor, Tensor]:
    """Neurons relu(x_1 - x_0) and relu(x_0 - x_1)."""
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64)
    cross = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    return sign, -cross, cross


def _three() -> tuple[Tensor, Tensor, Tensor]:
    """Differences of two inputs, carried as two signed numbers in four neurons."""
    k = SHARPNESS
    fc1 = torch.tensor([[1, -k - 1, k], [-1, -k, k + 1]], dtype=torch.float64)
    fc2 = torch.tensor([[1, 1], [-k, k + 1], [k + 1, -k]], dtype=torch.float64)
    spread = torch.tensor([[1.0, 0, 0, -1], [0, 1, -1, 0]], dtype=torch.float64)
    gather = spread.abs()
    last, first = fc1[:, 1:], fc1[:, :2]
    turned = torch.stack([last[1, 1], -last[0, 1], -last[1, 0], last[0, 0]]).reshape(2, 2)
    back = turned / (last[0, 0] * last[1, 1] - last[0, 1] * last[1, 0])
    w_hh = spread.T @ first @ back @ spread
    return spread.T @ fc1[:, 2], w_hh, fc2 @ gather


def _many(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """A delay line of the inputs, and for each input the maximum of all the others.

    With m_t = max(0, x_0 … x_t), neuron `more` holds relu(x_t - m_{t-1}), `old` m_{t-1}, and `less`
    relu(m_{t-1} - x_t), so that more + old = m_t and more + old - less = x_t. Neuron i < n holds
    relu(x_{t-(n-1-i)}), neuron n + i the maximum of all that came before x_t but for one, less x_t,
    if positive: next step, x_t is added and the new input taken off.
    """
    more, old, less = range(2 * n - 1, 2 * n + 2)
    w_ih = torch.zeros(2 * n + 2, dtype=torch.float64)
    w_hh = torch.zeros(2 * n + 2, 2 * n + 2, dtype=torch.float64)
    w_oh = torch.zeros(n, 2 * n + 2, dtype=torch.float64)
    shown = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    w_ih[n - 1], w_ih[more], w_ih[less], w_ih[n:more] = 1, 1, -1, -1
    for i in range(n - 1):
        w_hh[i, i + 1] = 1
        w_oh[i, n + i] = 2
        w_oh[i, more:] = 2 * shown
    for i in range(n, more - 1):
        w_hh[i, i + 1] = 1
        w_hh[i, more:] = shown
    w_hh[more - 1, old] = 1
    w_hh[more, more:less] = -1
    w_hh[old, more:less] = w_hh[less, more:less] = 1
    w_oh[:, :n] = torch.eye(n, dtype=torch.float64)
    w_oh[n - 1, old] = 2
    return w_ih, w_hh, w_oh
