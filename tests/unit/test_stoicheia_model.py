# SPDX-License-Identifier: MIT OR Apache-2.0
"""Relu networks behind the one door: every place watched and changed, step by step."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import torch_mi as mi
from tests.unit.test_stoicheia import drawn
from torch_mi.analysis.stoicheia.kernel import Hold, outputs
from torch_mi.partial import record, rerun
from torch_mi.testing import LAWS, every_hook_fires

P = mi.HookPoint
N, HIDDEN, ROWS = 4, 5, 3
RNN = drawn("2nd_argmax", N, HIDDEN)
X = RNN.task.draw(N, ROWS)
Change = Callable[[str, int, Tensor], Tensor]


def run(change: Change | None = None) -> dict[str, Tensor]:
    """A run by hand, in which `change` sees every value by its name and step."""

    def at(name: str, step: int, value: Tensor) -> Tensor:
        value = value if change is None else change(name, step, value)
        seen.setdefault(name, []).append(value)
        return value

    seen: dict[str, list[Tensor]] = {}
    h = torch.zeros(ROWS, HIDDEN, dtype=torch.float64)
    for t in range(N):
        read = at("hook_embed", t, X[:, t, None] * RNN.w_ih)
        before = at("rnn.hook_pre_activation", t, read + h @ RNN.w_hh.T)
        h = at("rnn.hook_hidden", t, before.relu())
    h = at("rnn.hook_final_state", 0, h)
    at("rnn.hook_output", 0, h @ RNN.w_oh.T)
    last = ("rnn.hook_final_state", "rnn.hook_output")
    return {k: v[0] if k in last else torch.stack(v, 1) for k, v in seen.items()}


def test_the_laws_hold() -> None:
    model, numbers = RNN.model(), torch.tensor([[2, 1, 3, 1], [1, 4, 2, 2]])
    for law in LAWS:
        law(model, numbers)


@pytest.mark.parametrize("point", [point for point in P if point.name.startswith("Rnn")])
def test_an_axis_that_is_dropped_is_noticed(point: P, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(point, "axes", point.axes[:-1])
    with pytest.raises((AssertionError, mi.MIError)):
        every_hook_fires(RNN.model(), torch.tensor([[2, 1, 3, 1]]))


def test_every_place_holds_what_it_says() -> None:
    wanted = run()
    cache = RNN.model().forward(X, mi.HookSpec().capture(*wanted))
    for name, value in wanted.items():
        torch.testing.assert_close(cache[name], value)
    assert cache["rnn.hook_hidden"] is cache[P.RnnHidden(0)]
    torch.testing.assert_close(cache.output[:, -1], outputs(RNN, X))
    torch.testing.assert_close(cache.output, cache["rnn.hook_hidden"] @ RNN.w_oh.T)
    third = RNN.model().forward(X, mi.HookSpec().capture("rnn.hook_hidden", at=mi.At(pos=2)))
    torch.testing.assert_close(third["rnn.hook_hidden"], wanted["rnn.hook_hidden"][:, 2])


STEPPED = ("hook_embed", "rnn.hook_pre_activation", "rnn.hook_hidden")


@pytest.mark.parametrize("place", [*STEPPED, "rnn.hook_final_state", "rnn.hook_output"])
def test_an_edit_anywhere_is_what_it_is_by_hand(place: str) -> None:
    step = 1 if place in STEPPED else None
    width = N if place == "rnn.hook_output" else HIDDEN
    new = torch.rand(ROWS, width, dtype=torch.float64) + 0.5

    def change(name: str, t: int, value: Tensor) -> Tensor:
        return new if name == place and t == (step or 0) else value

    wanted, names = run(change), tuple(run())
    edit = mi.Replace(new, at=None if step is None else mi.At(pos=step))
    cache = RNN.model().forward(X, mi.HookSpec().capture(*names).intervene(place, edit))
    for name in names:
        torch.testing.assert_close(cache[name], wanted[name])
    assert [receipt.times for receipt in cache.receipts] == [1]
    torch.testing.assert_close(cache.output[:, -1], wanted["rnn.hook_output"])


def test_neurons_are_ablated_as_the_kernel_does() -> None:
    model, hidden = RNN.model(), P.RnnHidden(0)
    for held, at in (
        (Hold((2,)), mi.At(neuron=2)),
        (Hold((1, 4)), mi.At(neuron=[1, 4])),
        (Hold((3,), step=1), mi.At(neuron=3, pos=1)),
    ):
        spec = mi.HookSpec().intervene(hidden, mi.Zero(at=at))
        kernel = outputs(RNN, X, held)
        torch.testing.assert_close(model.forward(X, spec).output[:, -1], kernel)


def test_edits_differ_by_row_and_carry_on() -> None:
    """An edit of one row at one step changes that row from there on, and no other."""
    plain = run()["rnn.hook_hidden"]
    spec = mi.HookSpec().capture(P.RnnHidden)
    spec.intervene(P.RnnPreActivation, mi.Add(torch.tensor(9.0), at=mi.At(batch=1, pos=1)))
    seen = RNN.model().forward(X, spec)[P.RnnHidden(0)]
    changed = (seen != plain).any(-1)
    assert changed.tolist() == [[False] * 4, [False, True, True, True], [False] * 4]


def test_runs_continue_prefixes_and_start_from_streams() -> None:
    model = RNN.model()
    whole = model.forward(X).output
    prefix = model.forward(X[:, :2], after=mi.Prefix()).prefix
    torch.testing.assert_close(model.forward(X[:, 2:], after=prefix).output, whole[:, 2:])
    start = mi.Residual(0, X[:, :, None] * RNN.w_ih)
    torch.testing.assert_close(model.forward(start).output, whole)
    alone = model.forward(X[:1]).output
    again = rerun(model, record(model, X[:1].float()), start=2).output
    torch.testing.assert_close(again, alone[:, 2:], atol=1e-6, rtol=1e-6)


def test_gradients_flow_through_steps() -> None:
    cache = RNN.model().forward(X, mi.HookSpec().capture("hook_embed"), grad=True)
    slope = torch.autograd.grad(cache.output[:, -1, 0].sum(), cache["hook_embed"])[0]
    x = X.clone().requires_grad_()
    h = torch.zeros(ROWS, HIDDEN, dtype=torch.float64)
    for t in range(N):
        h = torch.relu(x[:, t, None] * RNN.w_ih + h @ RNN.w_hh.T)
    wanted = torch.autograd.grad((h @ RNN.w_oh.T)[:, 0].sum(), x)[0]
    torch.testing.assert_close((slope * RNN.w_ih).sum(-1), wanted)


def test_what_is_no_prompt_is_refused() -> None:
    model = RNN.model()
    with pytest.raises(mi.ModelError, match=r"reads numbers \[pos\] or \[batch pos\], not 'hello'"):
        model.forward("hello")
    with pytest.raises(mi.ModelError, match="reads 4 numbers, not 5"):
        model.forward([0.1, 0.2, 0.3, 0.4, 0.5])
    with pytest.raises(mi.ModelError, match="equally many numbers"):
        model.forward([[0.1, 0.2], [0.3]])
    with pytest.raises(mi.ModelError, match="not finite"):
        model.forward([0.1, float("nan")])
    with pytest.raises(mi.ModelError, match=r"got \[1, 1, 4\]"):
        model.forward(torch.zeros(1, 1, 4))
    with pytest.raises(mi.HookError, match="this model has no AttnPattern"):
        model.forward(X, mi.HookSpec().capture(P.AttnPattern))
    with pytest.raises(mi.HookError, match=r"did you mean 'blocks\.0\.rnn\.hook_hidden'"):
        mi.HookSpec().capture("rnn.hook_hiden")
    with pytest.raises(mi.InterventionError, match="0 … 4"):
        model.forward(X, mi.HookSpec().intervene("rnn.hook_hidden", mi.Zero(at=mi.At(neuron=5))))
    assert model.forward(X).manifest.tokens is None
    assert model.forward([1, 0, 2, 1]).output.shape == (1, 4, 4)
    assert "1 layers, d_model 5, vocabulary 1 and 4 logits" in repr(model)
