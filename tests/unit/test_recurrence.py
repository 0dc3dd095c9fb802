# SPDX-License-Identifier: MIT OR Apache-2.0
"""Linear recurrences: every form computes what the definition says, values and gradients."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from torch_mi.nn import recurrence_chunks
from torch_mi.nn.recurrence import Recurrence, chunked, effective, recur, stepwise

Form = Callable[[Recurrence, Tensor | None], tuple[Tensor, Tensor]]
DECAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: torch.zeros_like(x)[:1, :1, :1, :1],
    "constant per head": lambda x: -x[:1, :1, :, :1],
    "static": lambda x: -3 * x[:1, :1],
    "static, sharp": lambda x: -80 * x[:1, :1],
    "per head": lambda x: -5 * x[..., :1],
    "bounded": lambda x: -0.6065 * x,
    "wide": lambda x: -80 * x**6,
    "sharp": lambda x: -80 * torch.ones_like(x),
    "hardly any": lambda x: -1e-8 * x,
}
ERASING = {"none", "per head", "bounded", "wide", "hardly any"}


@dataclass(frozen=True)
class Sizes:
    """How large a recurrence is."""

    batch: int = 2
    length: int = 11
    heads: int = 2
    d_key: int = 4
    d_value: int = 3


def draw(decay: str, sizes: Sizes, *, erases: bool, inclusive: bool = True) -> Recurrence:
    """A random recurrence in float64; with an erase term as in RWKV-7."""
    dice = torch.Generator().manual_seed(sizes.length)

    def normal(width: int) -> Tensor:
        shape = (sizes.batch, sizes.length, sizes.heads, width)
        return torch.randn(shape, generator=dice, dtype=torch.float64)

    def uniform() -> Tensor:
        return torch.rand(normal(sizes.d_key).shape, generator=dice, dtype=torch.float64)

    kappa = normalize(normal(sizes.d_key), dim=-1)
    return Recurrence(
        normal(sizes.d_key),
        normal(sizes.d_key),
        normal(sizes.d_value),
        DECAYS[decay](uniform()),
        inclusive,
        -kappa if erases else None,
        kappa * uniform() if erases else None,
    )


def cases() -> list[tuple[str, bool, bool]]:
    plain = [(decay, False, inclusive) for decay in DECAYS for inclusive in (True, False)]
    return plain + [(decay, True, True) for decay in DECAYS if decay in ERASING]


def written_out(r: Recurrence, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The definition, matrix by matrix: S = (diag(e^decay) + beta alpha^T) S + k v^T."""
    batch, length, heads, d_key = r.q.shape
    decay = r.decay.expand(r.q.shape)
    read, last = torch.zeros_like(r.v), torch.zeros(batch, heads, d_key, r.v.shape[-1]).to(r.v)
    for b in range(batch):
        for h in range(heads):
            s = last[b, h] if state is None else state[b, h]
            for t in range(length):
                before, step = s, torch.diag(decay[b, t, h].exp())
                if r.alpha is not None and r.beta is not None:
                    step = step + torch.outer(r.beta[b, t, h], r.alpha[b, t, h])
                s = step @ s + torch.outer(r.k[b, t, h], r.v[b, t, h])
                read[b, t, h] = (s if r.inclusive else before).T @ r.q[b, t, h]
            last[b, h] = s
    return read, last


def some_state(r: Recurrence) -> Tensor:
    shape = (r.q.shape[0], r.q.shape[2], r.q.shape[3], r.v.shape[3])
    return torch.randn(shape, generator=torch.Generator().manual_seed(7)).to(r.dtype)


def near(found: Tensor, right: Tensor, tolerance: float = 1e-12) -> None:
    """Apart by no more than that much of the largest."""
    assert found.isfinite().all()
    assert (found - right).abs().max() <= tolerance * right.abs().max().clamp(1e-30)


def changed(r: Recurrence, by: Callable[[Tensor], Tensor]) -> Recurrence:
    """Every tensor put through `by`."""
    return Recurrence(
        by(r.q),
        by(r.k),
        by(r.v),
        by(r.decay),
        r.inclusive,
        None if r.alpha is None else by(r.alpha),
        None if r.beta is None else by(r.beta),
    )


@pytest.mark.parametrize(("decay", "erases", "inclusive"), cases())
def test_every_form_is_the_definition(decay: str, erases: bool, inclusive: bool) -> None:
    r = draw(decay, Sizes(length=37), erases=erases, inclusive=inclusive)
    state = some_state(r)
    right, last = written_out(r, state)
    for form in (stepwise, chunked, recur):
        read, end = form(r, state)
        near(read, right)
        near(end, last)


@settings(max_examples=25)
@given(
    st.sampled_from(cases()),
    st.builds(
        Sizes,
        st.integers(1, 3),
        st.integers(1, 80),
        st.integers(1, 3),
        st.integers(1, 9),
        st.integers(1, 9),
    ),
)
def test_chunks_of_any_shape_are_the_steps(case: tuple[str, bool, bool], sizes: Sizes) -> None:
    r = draw(case[0], sizes, erases=case[1], inclusive=case[2])
    for state in (None, some_state(r)):
        (read, last), (right, end) = chunked(r, state), stepwise(r, state)
        near(read, right)
        near(last, end)


@pytest.mark.parametrize(("decay", "erases", "inclusive"), cases())
def test_float32_is_close_at_a_real_size(decay: str, erases: bool, inclusive: bool) -> None:
    wide = draw(decay, Sizes(1, 512, 1, 64, 64), erases=erases, inclusive=inclusive)
    r = changed(wide, Tensor.float)
    right, end = stepwise(changed(r, Tensor.double), None)
    read, last = chunked(r, None)
    assert read.dtype == last.dtype == torch.float32
    near(read.double(), right, 1e-5)
    near(last.double(), end, 1e-5)


def test_the_same_key_over_and_over_is_no_harder() -> None:
    """Powers of the triangle would grow to 1e8 here; it is solved, not summed up."""
    r = draw("none", Sizes(1, 96, 1, 16, 8), erases=True)
    key = normalize(torch.ones_like(r.q), dim=-1)
    r = changed(replace(r, k=key, alpha=-key, beta=key), Tensor.float)
    right, _ = stepwise(changed(r, Tensor.double), None)
    near(chunked(r, None)[0].double(), right, 1e-5)
    scores = effective(r)  # every write erases all before it
    assert scores.tril(-1).abs().max() <= 1e-5 * scores.abs().max()


@pytest.mark.parametrize("form", [stepwise, chunked])
@pytest.mark.parametrize("erases", [False, True])
def test_a_state_carries_on(form: Form, erases: bool) -> None:
    r = draw("bounded", Sizes(length=75), erases=erases)
    whole, end = form(r, None)
    state, parts = None, list[Tensor]()
    for start, stop in ((0, 1), (1, 40), (40, 75)):
        read, state = form(r.part(start, stop), state)
        parts.append(read)
    assert state is not None
    near(torch.cat(parts, 1), whole)
    near(state, end)


def test_long_inputs_go_by_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    r = draw("static", Sizes(length=100), erases=False)
    whole = chunked(r, None)
    monkeypatch.setattr(recurrence_chunks, "SEGMENT", 32)
    for found, right in zip(chunked(r, None), whole, strict=True):
        near(found, right)


@pytest.mark.parametrize(("decay", "erases", "inclusive"), cases())
def test_effective_attention_is_exact(decay: str, erases: bool, inclusive: bool) -> None:
    r = draw(decay, Sizes(length=19), erases=erases, inclusive=inclusive)
    scores = effective(r)
    near((scores @ r.v.transpose(1, 2)).transpose(1, 2), stepwise(r, None)[0])
    assert not scores.triu(1 if inclusive else 0).any()


@pytest.mark.parametrize(("decay", "erases"), [("bounded", True), ("wide", True), ("wide", False)])
def test_gradients_are_right(decay: str, erases: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrence_chunks, "SIZE", 4)
    r = draw(decay, Sizes(1, 7, 1, 2, 2), erases=erases)
    terms = [x for x in (r.q, r.k, r.v, r.decay, some_state(r), r.alpha, r.beta) if x is not None]

    def run(*x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v, fade, state, *erase = x
        return chunked(Recurrence(q, k, v, fade, True, *erase), state)

    for term in terms:
        term.requires_grad_()
    assert torch.autograd.gradcheck(run, terms, fast_mode=True)


@pytest.mark.parametrize(("decay", "erases", "inclusive"), cases())
def test_gradients_in_float32_are_those_of_the_steps(
    decay: str, erases: bool, inclusive: bool
) -> None:
    wide = draw(decay, Sizes(1, 70, 1, 8, 8), erases=erases, inclusive=inclusive)
    found = gradients(chunked, changed(wide, Tensor.float))
    right = gradients(stepwise, changed(changed(wide, Tensor.float), Tensor.double))
    for name, gradient in found.items():
        near(gradient.double(), right[name], 1e-5)


@pytest.mark.parametrize("erases", [False, True])
@pytest.mark.parametrize("each", [0.9, 1.87, 3.7, 7.4, 14.9, 29.0])
def test_gradients_are_finite_wherever_blocks_end(each: float, erases: bool) -> None:
    """Decays that just fit a block of 32, 16 or 8 in float32, or are too sharp for any."""
    r = as_sharp_as(each, erases=erases)
    found, right = gradients(chunked, r), gradients(stepwise, changed(r, Tensor.double))
    for name, gradient in found.items():
        near(gradient.double(), right[name], 1e-4)


@pytest.mark.parametrize("erases", [False, True])
@pytest.mark.parametrize("each", [3.7, 7.4, 14.9, 29.0, float("inf")])
def test_values_are_close_wherever_blocks_end(each: float, erases: bool) -> None:
    """The same without gradients, where blocks are larger; and what fades at once."""
    r = as_sharp_as(each, erases=erases)
    mixed = replace(r, decay=r.decay * torch.tensor([1.0, 0.1, 0.01, 1e-3]))
    for one in (r, mixed):
        right, end = stepwise(changed(one, Tensor.double), None)
        read, last = chunked(one, None)
        near(read.double(), right, 1e-5)
        near(last.double(), end, 1e-5)


def as_sharp_as(each: float, *, erases: bool) -> Recurrence:
    drawn = draw("sharp", Sizes(1, 70, 1), erases=erases)
    return changed(replace(drawn, decay=torch.full_like(drawn.decay, -each)), Tensor.float)


def gradients(form: Form, r: Recurrence) -> dict[str, Tensor]:
    """Those of a weighted sum of all that comes out."""
    leaves = list[Tensor]()

    def leaf(x: Tensor) -> Tensor:
        leaves.append(x.detach().requires_grad_())
        return leaves[-1]

    read, last = form(changed(r, leaf), leaf(some_state(r)))
    out = torch.cat([read.flatten(), last.flatten()])
    (out * torch.arange(out.numel()).to(out).cos()).sum().backward()
    return {str(i): x.grad for i, x in enumerate(leaves) if x.grad is not None}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_summed_in_float32(dtype: torch.dtype) -> None:
    r = changed(draw("bounded", Sizes(length=60), erases=True), lambda x: x.to(dtype))
    right, end = stepwise(changed(r, Tensor.float), None)
    for form in (stepwise, chunked):
        read, last = form(r, None)
        assert (read.dtype, last.dtype) == (dtype, torch.float32)
        near(read.float(), right, torch.finfo(dtype).eps)
        near(last, end, 1e-5)


def test_the_delta_rule_is_a_special_case() -> None:
    """S = (1 - b k k^T) S + b k v^T: after a full write, the key finds that value and no other."""
    r = draw("none", Sizes(1, 40, 2, 8, 5), erases=False)
    key = normalize(r.k, dim=-1)
    rate = torch.rand(1, 40, 2, 1, dtype=torch.float64)
    rate[:, -1] = 1
    read, _ = chunked(replace(r, q=key, k=rate * key, alpha=-key, beta=rate * key), None)
    near(read[:, -1], r.v[:, -1])


def test_without_decay_and_erasing_it_is_linear_attention() -> None:
    r = draw("none", Sizes(length=40), erases=False)
    q, k, v = (x.transpose(1, 2) for x in (r.q, r.k, r.v))
    near(recur(r, None)[0].transpose(1, 2), (q @ k.mT).tril() @ v)


def test_many_heads_of_one_value_share_keys() -> None:
    """Mamba: a head for each channel, keys and queries the same for all of them."""
    r = draw("wide", Sizes(2, 30, 6, 4, 1), erases=False)
    shared = replace(
        r, q=r.q[:, :, :1].expand(-1, -1, 6, -1), k=r.k[:, :, :1].expand(-1, -1, 6, -1)
    )
    for found, right in zip(recur(shared, None), written_out(shared, None), strict=True):
        near(found, right)


def test_growing_states_are_computed_too() -> None:
    """Logarithms above 0, which only edits make."""
    r = draw("wide", Sizes(1, 20, 1, 4, 4), erases=False)
    r = replace(r, decay=r.decay.clamp(-1) + 1.5)
    near(chunked(r, None)[0], stepwise(r, None)[0])
