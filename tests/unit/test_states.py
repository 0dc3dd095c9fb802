# SPDX-License-Identifier: MIT OR Apache-2.0
"""Knockout, steering, patching and norms of recurrent states, against recurrences written out."""

import json
from pathlib import Path
from typing import Literal, cast

import pytest
import torch
from torch import Tensor

import torch_mi as mi
from torch_mi import show
from torch_mi.analysis.changes import Changed
from torch_mi.analysis.gradients import gradients
from torch_mi.analysis.state_norms import StateNorms, state_norms
from torch_mi.analysis.states import (
    StateAblationResult,
    StateSteeringResult,
    state_knockout,
    state_steering,
    state_sweep,
)
from torch_mi.testing import tiny

P = mi.HookPoint
TEXT, TWIN = "a cat.", "a dog."
VERSIONS = ("rwkv", "rwkv5", "rwkv6", "rwkv7")
MATRICES = VERSIONS[1:]


def parts(model: mi.MIModel, *points: P) -> dict[P, Tensor]:
    """Activations [pos …] of the first layer."""
    run = model.forward(TEXT, mi.HookSpec().capture(*(point(0) for point in points)))
    return {point: run[point(0)][0] for point in points}


def by_hand(model: mi.MIModel, gone: int, *, full: bool = False) -> Tensor:
    """The first layer's state [head key value] after the text, without the write of one token."""
    erases = P.RwkvKappa in model.backend.hook_points
    more = (P.RwkvKappa, P.RwkvA) if erases else ()
    of = parts(model, P.RwkvK, P.RwkvV, P.RwkvW, *more)
    state = torch.zeros(*of[P.RwkvK].shape[1:], of[P.RwkvV].shape[-1])
    for t, (k, v, w) in enumerate(zip(*(of[p] for p in (P.RwkvK, P.RwkvV, P.RwkvW)), strict=True)):
        write = torch.einsum("hk,hv->hkv", k, v)
        erased = torch.zeros_like(state)
        if erases:
            kappa, rate = of[P.RwkvKappa][t], of[P.RwkvA][t]
            found = torch.einsum("hk,hkv->hv", kappa, state)
            erased = torch.einsum("hk,hv->hkv", kappa * rate, found)
        here = t == gone
        state = w[..., None] * state
        state = state - (0 if here and full else 1) * erased + (0 if here else 1) * write
    return state


@pytest.mark.parametrize("family", MATRICES)
@pytest.mark.parametrize("full", [False, True])
def test_a_write_is_gone_from_the_state(family: str, full: bool):
    model = tiny(family)
    spec = mi.HookSpec().set_state_knockout(mi.StateKnockoutSpec((4,), full=full))
    spec.capture(P.RwkvState(0), at=mi.At(pos=-1))
    found = model.forward(TEXT, spec)[P.RwkvState(0)][0]
    torch.testing.assert_close(found, by_hand(model, 4, full=full), atol=2e-5, rtol=1e-4)
    plain = model.forward(TEXT, mi.HookSpec().capture(P.RwkvState(0), at=mi.At(pos=-1)))
    assert not torch.allclose(plain[P.RwkvState(0)][0], found, atol=1e-3)


@pytest.mark.parametrize("family", VERSIONS)
def test_steering_goes_from_knockout_to_nothing(family: str):
    model = tiny(family)
    gone = state_knockout(model, TEXT, 4, layers=(0, 2), heads=1)
    none = state_steering(model, TEXT, -3, scale=0.0, layers=(0, 2), heads=(1,))
    torch.testing.assert_close(none.steered_logits, gone.ablated_logits)
    assert none.spec.positions == gone.spec.positions == (4,)
    same = state_steering(model, TEXT, 4, scale=1.0)
    torch.testing.assert_close(same.steered_logits, same.baseline_logits)
    assert gone.kl_divergence() > 0
    assert state_steering(model, TEXT, 4, scale=3.0).kl_divergence() > 0


@pytest.mark.parametrize("family", ["rwkv", "rwkv5"])
def test_with_the_shift_blocked_a_token_leaves_no_trace(family: str):
    """Where decays do not depend on the text: then there is no third way to later tokens."""
    model = tiny(family)
    rows = [model.encode(text)[0].tolist() for text in (TEXT, TEXT[:3] + "Z" + TEXT[4:])]

    def ends(*, shift: bool) -> list[Tensor]:
        return [state_knockout(model, row, 4, shift=shift).ablated_logits for row in rows]

    one, other = ends(shift=True)
    torch.testing.assert_close(one, other)
    one, other = ends(shift=False)
    assert not torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("family", ["rwkv", "rwkv7"])
def test_a_sweep_is_one_knockout_for_each_cell(family: str):
    model = tiny(family)
    logit = mi.logit(7)
    grid = state_sweep(model, TEXT, logit)
    length = model.encode(TEXT).shape[1]
    assert grid.values.shape == (3, length)
    assert grid.labels["pos"][:3] == ("<s>", "a", " ")
    for layer, pos in ((0, 0), (1, 5), (2, length - 2)):
        alone = state_knockout(model, TEXT, pos, layers=layer).ablated_logits[7]
        assert float(grid.values[layer, pos]) == pytest.approx(float(alone), abs=2e-5)
    everywhere = state_sweep(model, TEXT, logit, by=("pos",), positions=[-3], shift=True)
    alone = state_knockout(model, TEXT, -3, shift=True).ablated_logits[7]
    assert floats(everywhere.values) == pytest.approx([float(alone)], abs=2e-5)
    heads = state_sweep(model, TEXT, logit, by=("layer", "head"), heads=[0, 3], positions=[2, 4])
    alone = state_knockout(model, TEXT, [2, 4], layers=1, heads=3).ablated_logits[7]
    assert float(heads.values[1, 1]) == pytest.approx(float(alone), abs=2e-5)
    assert grid.baseline == pytest.approx(float(model.forward(TEXT).output[0, -1, 7]), abs=2e-5)


def floats(x: Tensor) -> list[float]:
    return [float(v) for v in x.flatten()]


def test_a_sweep_of_prompts_of_one_length():
    model = tiny("rwkv6")
    grid = state_sweep(model, [TEXT, TWIN], mi.logit(7), by=("pos",))
    each = [state_sweep(model, text, mi.logit(7), by=("pos",)).values for text in (TEXT, TWIN)]
    torch.testing.assert_close(grid.values, torch.stack(each).mean(0), atol=2e-5, rtol=1e-4)
    assert grid.errors is not None
    assert grid.labels["pos"][4] == "…"
    with pytest.raises(mi.InterventionError, match="prompts of one length"):
        state_sweep(model, [TEXT, TEXT + "!"], mi.logit(7))


@pytest.mark.parametrize("family", ["rwkv", "rwkv7"])
def test_states_are_patched(family: str):
    model = tiny(family)
    grid = mi.patch(model, TEXT, TWIN, at="state", metric=mi.logit(7))
    assert list(grid.axes) == ["layer", "pos"]
    clean = model.forward(TEXT, mi.HookSpec().capture(P.RwkvState(1), at=mi.At(pos=[5])))
    put = mi.Replace(clean[P.RwkvState(1)], at=mi.At(pos=[5]))
    alone = model.forward(TWIN, mi.HookSpec().intervene(P.RwkvState(1), put)).output[0, -1, 7]
    assert float(grid.values[1, 5]) == pytest.approx(float(alone), abs=2e-5)
    assert float(grid.values[0, 2]) == pytest.approx(grid.baseline, abs=2e-5), "no difference yet"
    heads = mi.patch(model, TEXT, TWIN, at="wkv", layers=1, metric=mi.logit(7))
    assert heads.values.shape == (1, model.backend.sizes["head"])


def test_states_are_patched_by_head():
    axes: tuple[Literal["layer", "head", "pos"], ...] = ("layer", "head", "pos")
    model = tiny("rwkv5")
    grid = mi.patch(model, TEXT, TWIN, at="state", metric=mi.logit(7), by=axes, layers=[1])
    assert grid.values.shape == (1, model.backend.sizes["head"], 7)
    whole = mi.patch(model, TEXT, TWIN, at="state", metric=mi.logit(7), layers=[1])
    assert float(grid.values[0, 0, 4]) != pytest.approx(float(whole.values[0, 4]), abs=1e-4)


def test_norms():
    model = tiny("rwkv7")
    found = state_norms(model, TEXT, layers=[2, 0])
    states = model.forward(TEXT, mi.HookSpec().capture(P.RwkvState))
    for layer in (0, 2):
        expected = states[P.RwkvState(layer)][0].flatten(2).norm(dim=-1).T
        torch.testing.assert_close(found.of(layer), expected)
    assert found.norms.shape == (2, 4, 7)
    with pytest.raises(mi.ModelError, match="layer 1 was not looked at"):
        found.of(1)


def test_what_rwkv4_holds_is_a_mean():
    model = tiny("rwkv")
    found = state_norms(model, TEXT)
    of = parts(model, P.RwkvK, P.RwkvV, P.RwkvW)
    k, v, w = (of[p][..., 0].double() for p in (P.RwkvK, P.RwkvV, P.RwkvW))
    above = below = torch.zeros(k.shape[1], dtype=torch.float64)
    means: list[Tensor] = []
    for t in range(len(k)):
        above, below = w[t] * above + k[t].exp() * v[t], w[t] * below + k[t].exp()
        means.append((above / below).abs())
    torch.testing.assert_close(found.of(0).double(), torch.stack(means, 1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", VERSIONS)
def test_writes_have_gradients(family: str):
    """The gradient at a write's gate is what scaling the write does to the score."""
    model = tiny(family)
    slopes = gradients(model, TEXT, mi.logit(7), at=P.RwkvWrite)
    step = 0.03

    def score(scale: float) -> float:
        spec = mi.StateSteeringSpec((3,), layers=(1,), heads=(2,), scale=scale)
        hooks = mi.HookSpec().set_state_steering(spec)
        return float(model.forward(TEXT, hooks).output[0, -1, 7])

    true = (score(1 + step) - score(1 - step)) / (2 * step)
    assert float(slopes.gradient(P.RwkvWrite(1))[0, 3, 2]) == pytest.approx(true, rel=0.01)
    assert abs(true) > 1e-3
    with pytest.raises(mi.InterventionError, match=r"no gradient at .*RwkvState"):
        gradients(model, TEXT, mi.logit(7), at=P.RwkvState)


def test_results_keep(tmp_path: Path):
    model = tiny("rwkv7")
    gone = state_knockout(model, TEXT, [3, 4], layers=1, full=True)
    steered = state_steering(model, TEXT, 3, scale=2.0, heads=[0, 1])
    norms = state_norms(model, TEXT)
    for result in (gone, steered, norms):
        again = type(result).load(result.save(tmp_path / "r.json"))
        assert again.to_dict() == json.loads(json.dumps(result.to_dict()))
        assert result.plot().data
    assert StateAblationResult.load(gone.save(tmp_path / "k.json")).spec == gone.spec
    assert "what c (3), a (4) writes to the state in layer 1, every head removed" in " ".join(
        show.text(gone).split()
    )
    assert "× 2" in show.text(steered)
    assert "norm of the state" in show.text(norms)
    assert len(cast("list[object]", gone.to_dict()["top_changed"])) == 10
    with pytest.raises(mi.MIError, match="this is no torch-mi state steering"):
        StateSteeringResult.from_dict(gone.to_dict())
    with pytest.raises(mi.MIError, match="broken"):
        StateNorms.from_dict({"format": StateNorms.form})
    assert isinstance(gone, Changed)


def test_refusals():
    model, other = tiny("rwkv7"), tiny("llama")
    for ask in (
        lambda: state_knockout(other, TEXT, 3),
        lambda: state_steering(other, TEXT, 3, scale=2.0),
        lambda: state_sweep(other, TEXT, mi.logit(7)),
        lambda: state_norms(other, TEXT),
    ):
        with pytest.raises(mi.ModelError, match="tiny:llama has no recurrent state"):
            ask()
    with pytest.raises(mi.InterventionError, match="at='state' belongs to models with a recurrent"):
        mi.patch(other, TEXT, TWIN, at="state", metric=mi.logit(7))
    with pytest.raises(mi.InterventionError, match="at='z' belongs to models with attention"):
        mi.patch(model, TEXT, TWIN, at="z", metric=mi.logit(7))
    with pytest.raises(mi.ModelError, match="position=7 is out of range: the prompt has 7"):
        state_knockout(model, TEXT, 7)
    with pytest.raises(mi.InterventionError, match="layer 3 is out of range"):
        state_knockout(model, TEXT, 1, layers=3)
    with pytest.raises(mi.InterventionError, match="names no positions"):
        state_knockout(model, TEXT, [])
    with pytest.raises(mi.InterventionError, match="by layer, pos or head"):
        state_sweep(model, TEXT, mi.logit(7), by=())
