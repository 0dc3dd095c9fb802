# SPDX-License-Identifier: MIT OR Apache-2.0
"""RWKV-4's weighted means are the plain sums, in any number of steps, at any scale."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torch_mi.nn.wkv4 import effective4, wkv4


def draw(length: int, *, gated: bool, static: bool = True) -> tuple[Tensor, ...]:
    """Keys, values, decays, bonuses and gates in float64."""
    dice = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=dice, dtype=torch.float64)

    decay = -normal(1, 1, 3).exp() if static else -normal(2, length, 3).exp()
    gate = normal(2, length, 3).abs() if gated else torch.ones(2, length, 3, dtype=torch.float64)
    return 2 * normal(2, length, 3), normal(2, length, 3), decay, normal(3), gate


def plain_sums(k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, gate: Tensor) -> Tensor:
    """The definition, sum by sum."""
    decay = decay.expand(v.shape)
    means: list[Tensor] = []
    for t in range(v.shape[1]):
        weights = [gate[:, i] * (decay[:, i + 1 : t].sum(1) + k[:, i]).exp() for i in range(t)] + [
            (bonus + k[:, t]).exp()
        ]
        above = sum(w * v[:, i] for i, w in enumerate(weights))
        means.append(torch.as_tensor(above / sum(weights)))
    return torch.stack(means, 1)


@settings(max_examples=8)
@given(st.integers(1, 90), st.booleans(), st.booleans())
def test_it_is_the_plain_sums(length: int, gated: bool, static: bool) -> None:
    k, v, decay, bonus, gate = draw(length, gated=gated, static=static)
    mean, _ = wkv4(k, v, decay, bonus, gate if gated else None, None)
    torch.testing.assert_close(mean, plain_sums(k, v, decay, bonus, gate))


@pytest.mark.parametrize("cut", [1, 30, 69])
def test_sums_carry_on(cut: int) -> None:
    k, v, decay, bonus, gate = draw(70, gated=True)
    whole, end = wkv4(k, v, decay, bonus, gate, None)
    first, state = wkv4(k[:, :cut], v[:, :cut], decay, bonus, gate[:, :cut], None)
    second, last = wkv4(k[:, cut:], v[:, cut:], decay, bonus, gate[:, cut:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(unscaled(last), unscaled(end))


def unscaled(sums: Tensor) -> Tensor:
    return sums[..., :2] * sums[..., 2:].exp()


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("gated", [True, False])
def test_effective_attention_is_exact(gated: bool, static: bool) -> None:
    k, v, decay, bonus, gate = draw(45, gated=gated, static=static)
    mean, _ = wkv4(k, v, decay, bonus, gate if gated else None, None)
    weights = effective4(k, decay, bonus, gate if gated else None)
    torch.testing.assert_close((weights @ v.mT[..., None])[..., 0].mT, mean)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 45).double())
    assert not weights.triu(1).any()


def test_great_keys_overflow_nothing() -> None:
    k = torch.tensor([[300.0, -500.0, 0.0, 900.0, 20.0]]).mT[None].repeat(1, 12, 1)
    v = torch.linspace(-1, 1, 60)[None, :, None]
    decay, bonus = torch.full((1, 1, 1), -90.0), torch.zeros(1)
    mean, state = wkv4(k, v, decay, bonus, None, None)
    assert mean.isfinite().all()
    assert state.isfinite().all()
    assert mean.abs().max() <= 1
    assert effective4(k, decay, bonus, None).isfinite().all()


def test_a_closed_gate_leaves_nothing_behind() -> None:
    """Not even the scale of a key that dwarfs all others; its own mean is what it was."""
    k, v, decay, bonus, gate = (x.float() for x in draw(40, gated=False))
    k[:, 5] = 100.0
    gate[:, 5] = 0.0
    mean, state = wkv4(k, v, decay, bonus, gate, None)
    open_mean, _ = wkv4(k, v, decay, bonus, None, None)
    torch.testing.assert_close(mean[:, :6], open_mean[:, :6])
    keys = k.clone()
    keys[:, 5] = -200.0
    without, last = wkv4(keys, v, decay, bonus, None, None)
    torch.testing.assert_close(mean[:, 6:], without[:, 6:])
    torch.testing.assert_close(unscaled(state), unscaled(last))


def test_a_gate_may_turn_a_write_around() -> None:
    k, v, decay, bonus, gate = draw(40, gated=True)
    gate[:, ::3] = -0.1 * gate[:, ::3]
    k[:, ::3] = -3.0
    mean, _ = wkv4(k, v, decay, bonus, gate, None)
    torch.testing.assert_close(mean, plain_sums(k, v, decay, bonus, gate))


@pytest.mark.parametrize("length", [5, 34])
def test_gradients_are_right(length: int) -> None:
    k, v, decay, bonus, gate = draw(length, gated=True)
    terms = [x[:1].detach() if x.dim() > 1 else x for x in (k, v, decay, bonus, gate)]
    for term in terms:
        term.requires_grad_()

    def run(*x: Tensor) -> Tensor:
        return wkv4(x[0], x[1], x[2], x[3], x[4], None)[0]

    assert torch.autograd.gradcheck(run, terms, fast_mode=True)


def test_a_closed_gate_has_a_gradient() -> None:
    """What opening it would do."""
    k, v, decay, bonus, gate = draw(9, gated=False)
    gate[:, 4] = 0.0
    gate.requires_grad_()
    wkv4(k, v, decay, bonus, gate, None)[0][:, 5].sum().backward()
    assert gate.grad is not None
    found, step = gate.grad[:, 4], 1e-6
    ajar = gate.detach().clone()
    ajar[:, 4] = step
    apart = plain_sums(k, v, decay, bonus, ajar) - plain_sums(k, v, decay, bonus, gate.detach())
    torch.testing.assert_close(found, apart[:, 5] / step, rtol=1e-3, atol=1e-8)


def test_halves_are_summed_in_float32() -> None:
    k, v, decay, bonus, gate = (x.bfloat16() for x in draw(50, gated=True))
    mean, state = wkv4(k, v, decay, bonus, gate, None)
    right, _ = wkv4(k.float(), v.float(), decay.float(), bonus.float(), gate.float(), None)
    assert (mean.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(mean, right.bfloat16())
