# SPDX-License-Identifier: MIT OR Apache-2.0
"""What is asked of flash-linear-attention's kernels, of a stand-in that computes it plainly."""

import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from torch_mi.nn import recurrence_fused
from torch_mi.nn.recurrence import Recurrence, stepwise


def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Modules with the kernels' names and signatures; the names of those called."""
    called = list[str]()

    def plainly(
        name: str, q: Tensor, decay: Tensor, given: dict[str, object]
    ) -> tuple[Tensor, Tensor]:
        called.append(name)
        assert given["scale"] == 1.0
        assert given["output_final_state"] is True
        assert decay.dtype == torch.float32
        k, v = given["k"], given["v"]
        assert isinstance(k, Tensor)
        assert isinstance(v, Tensor)
        alpha, beta = given.get("a"), given.get("b")
        assert alpha is None or isinstance(alpha, Tensor)
        assert beta is None or isinstance(beta, Tensor)
        r = Recurrence(q, k, v, decay, name != "chunk_rwkv6", alpha, beta)
        state = given["initial_state"]
        assert state is None or isinstance(state, Tensor)
        return stepwise(r, state)

    def chunk_gla(*, q: Tensor, g: Tensor, **given: object) -> tuple[Tensor, Tensor]:
        return plainly("chunk_gla", q, g, given)

    def chunk_rwkv6(*, r: Tensor, w: Tensor, u: Tensor, **given: object) -> tuple[Tensor, Tensor]:
        assert not u.any()
        assert u.shape == r.shape[2:]
        return plainly("chunk_rwkv6", r, w, given)

    def chunk_dplr_delta_rule(*, q: Tensor, gk: Tensor, **given: object) -> tuple[Tensor, Tensor]:
        return plainly("chunk_dplr_delta_rule", q, gk, given)

    kernels: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
        "gla": chunk_gla,
        "rwkv6": chunk_rwkv6,
        "generalized_delta_rule": chunk_dplr_delta_rule,
    }
    monkeypatch.setitem(sys.modules, "fla", ModuleType("fla"))
    monkeypatch.setitem(sys.modules, "fla.ops", ModuleType("fla.ops"))
    for folder, kernel in kernels.items():
        module = ModuleType(f"fla.ops.{folder}")
        module.__dict__[kernel.__name__] = kernel
        monkeypatch.setitem(sys.modules, f"fla.ops.{folder}", module)
    return called


@pytest.mark.parametrize("kind", ["erasing", "inclusive", "before"])
def test_the_kernels_are_asked_for_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dice = torch.Generator().manual_seed(0)
    q, k, a, b = (torch.randn(2, 9, 3, 4, generator=dice) * 0.5 for _ in range(4))
    v, state = torch.randn(2, 9, 3, 5, generator=dice), torch.randn(2, 3, 4, 5, generator=dice)
    decay = -torch.rand(1, 1, 3, 1, generator=dice)
    erases = (a, b) if kind == "erasing" else (None, None)
    r = Recurrence(q, k, v, decay, kind != "before", *erases)
    called = stand_in(monkeypatch)
    found, last = recurrence_fused.fused(r, state)
    wanted, after = stepwise(r, state)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(last, after)
    names = {"erasing": "chunk_dplr_delta_rule", "inclusive": "chunk_gla", "before": "chunk_rwkv6"}
    assert called == [names[kind]]


def test_float32_and_processors_keep_to_our_own_form() -> None:
    x = torch.zeros(1, 80, 1, 4)
    assert not recurrence_fused.fits(Recurrence(x, x, x, x, inclusive=True))


@pytest.mark.gpu
def test_on_a_gpu_the_kernels_agree_with_us() -> None:
    if not torch.cuda.is_available() or not recurrence_fused.installed():
        pytest.skip("needs a GPU and flash-linear-attention")
    dice = torch.Generator().manual_seed(0)
    make = [torch.randn(1, 128, 2, 64, generator=dice).cuda().bfloat16() * 0.3 for _ in range(3)]
    r = Recurrence(*make, decay=-torch.rand(1, 128, 2, 64).cuda(), inclusive=False)
    assert recurrence_fused.fits(r)
    found, wanted = recurrence_fused.fused(r, None)[0], stepwise(r, None)[0]
    torch.testing.assert_close(found, wanted, atol=0.05, rtol=0.05)
