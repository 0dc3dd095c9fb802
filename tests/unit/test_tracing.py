# SPDX-License-Identifier: MIT OR Apache-2.0
"""Causal tracing against its definition: one whole forward pass for each place and sample."""

from typing import Any

import pytest
import torch

import torch_mi as mi
from torch_mi.analysis.tracing import CausalTrace, causal_trace, embedding_spread
from torch_mi.testing import tiny

TEXT = "abcdef"
POINTS = {
    "resid": mi.HookPoint.ResidPre,
    "attn": mi.HookPoint.AttnOut,
    "mlp": mi.HookPoint.MlpOut,
}


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "falcon"])
def test_traces_equal_whole_runs(family: str):
    model, metric = tiny(family), mi.logit("q")
    found = causal_trace(model, TEXT, [1, 3], metric=metric, samples=2, window=2, seed=4)
    assert found.window == 1, "a third of three layers"
    points = POINTS.values()
    clean = model.forward(TEXT, mi.HookSpec().capture(*points))
    length = len(found.grid.axes["pos"])
    dice = torch.Generator().manual_seed(4)
    noises = torch.randn(2, 2, model.hidden_size, generator=dice) * found.noise
    spoil = [
        mi.HookSpec().intervene(mi.HookPoint.Embed, mi.Add(n, at=mi.At(pos=[1, 3]))) for n in noises
    ]
    word = model.token_id("q")

    def mean(*specs: mi.HookSpec) -> float:
        return sum(float(model.forward(TEXT, s).output[0, -1, word]) for s in specs) / 2

    assert found.grid.baseline == pytest.approx(mean(*spoil), abs=1e-5)
    assert found.grid.reference == pytest.approx(float(clean.output[0, -1, word]), abs=1e-5)
    for kind, layer, pos in [("resid", 1, 3), ("attn", 0, 4), ("mlp", 2, length - 1)]:
        hook = POINTS[kind](layer)
        back = mi.HookSpec().intervene(hook, mi.Replace(clean[hook][:, pos], at=mi.At(pos=pos)))
        value = float(found.restored(kind).values[layer, pos])
        assert value == pytest.approx(mean(*(s | back for s in spoil)), abs=1e-5)
    at = found.restored("resid")
    assert at.values[0, 0] == pytest.approx(found.grid.baseline, abs=1e-6), "before the noise"


def test_windows_of_layers_go_together():
    model = tiny("llama", changes={"num_hidden_layers": 6})
    found = causal_trace(model, TEXT, 1, metric=mi.logit("q"), samples=1, window=10, kinds=("mlp",))
    assert found.window == 2
    clean = model.forward(TEXT, mi.HookSpec().capture(mi.HookPoint.MlpOut))
    noise = torch.randn(1, 1, 24, generator=torch.Generator().manual_seed(0)) * found.noise
    spec = mi.HookSpec().intervene(mi.HookPoint.Embed, mi.Add(noise[0], at=mi.At(pos=[1])))
    for layer in (2, 3):
        hook = mi.HookPoint.MlpOut(layer)
        spec.intervene(hook, mi.Replace(clean[hook][:, 4], at=mi.At(pos=4)))
    whole = float(model.forward(TEXT, spec).output[0, -1, model.token_id("q")])
    assert float(found.grid.values[0, 3, 4]) == pytest.approx(whole, abs=1e-5)


def test_noise_is_measured_in_spreads_of_the_embeddings():
    model = tiny("gemma2")
    every = model.forward(
        torch.arange(model.vocab_size)[None], mi.HookSpec().capture(mi.HookPoint.Embed)
    )
    spread = float(every[mi.HookPoint.Embed].std())
    assert embedding_spread(model) == pytest.approx(spread, rel=1e-4)
    found = causal_trace(model, TEXT, 1, samples=1, kinds=("resid",), width=2.0)
    assert found.noise == pytest.approx(2 * spread, rel=1e-4)


def test_traces_are_saved_whole_and_repeat(tmp_path):  # pyright: ignore[reportMissingParameterType, reportUnknownParameterType]
    model = tiny("llama")
    found = causal_trace(model, TEXT, mi.Token("c"), samples=2)
    assert found.subject == (3,)
    again = CausalTrace.load(found.save(tmp_path / "t.json"))
    assert again.to_dict() == found.to_dict()
    repeated = causal_trace(model, TEXT, 3, samples=2)
    assert torch.equal(repeated.grid.values, found.grid.values)
    other = causal_trace(model, TEXT, 3, samples=2, seed=1)
    assert not torch.allclose(other.grid.values, found.grid.values)
    assert len(found.to_pandas()) == 3 * 3 * 7
    assert "c* (3)" in repr(found)
    picture: Any = found.plot()
    assert len(picture.data) == 3
    alone: Any = causal_trace(model, TEXT, 3, samples=1, kinds=("mlp",)).plot()
    assert len(alone.data) == 1


def test_wrong_requests_say_what_is_right():
    model = tiny("llama")
    with pytest.raises(
        mi.InterventionError, match=r"kinds are resid, attn, mlp.*did you mean 'mlp"
    ):
        causal_trace(model, TEXT, 1, kinds=("mlps",))
    with pytest.raises(mi.InterventionError, match="does not occur"):
        causal_trace(model, TEXT, mi.Span("zz"))
    with pytest.raises(mi.InterventionError, match="it has mlp"):
        causal_trace(model, TEXT, 1, samples=1, kinds=("mlp",)).restored("attn")


def test_in_the_demo_model_the_answer_waits_at_its_word_and_moves_to_the_end_late():
    model = mi.MIModel.from_pretrained("demo", device="cpu")
    text = " cat seven paper Rome moon cat seven paper"
    found = causal_trace(model, text, mi.Token("Rome"), samples=3, kinds=("resid", "attn"))
    (word,) = found.subject
    resid = found.restored("resid").normalized().values
    assert found.grid.reference is not None
    assert found.grid.reference > 0.9
    assert found.grid.baseline < 0.1
    assert float(resid[:4, word].min()) > 0.9, "early, it is where the word stood"
    assert float(resid[:4, -1].max()) < 0.1
    assert float(resid[-1, -1]) > 0.8, "late, it is where the word is said"
    assert float(resid[:, [0, 1, 2, 3, 5, 6, 7]].abs().max()) < 0.1
    attn = found.restored("attn").normalized().values
    assert float(attn[-1, -1]) > 0.9, "attention of the last layers carries it there"
