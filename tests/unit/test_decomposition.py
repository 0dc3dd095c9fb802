# SPDX-License-Identifier: MIT OR Apache-2.0
"""The residual stream taken apart: its terms are what they say, sum to it, and so do the logits."""

from pathlib import Path

import pytest
import torch

import torch_mi as mi
from torch_mi.analysis.decomposition import (
    LogitAttributions,
    Residuals,
    accumulated_resid,
    decompose_resid,
    logit_attrs,
)
from torch_mi.families import FAMILIES
from torch_mi.testing import tiny

P = mi.HookPoint
PROMPT = "the quick fox"


def everything(model: mi.MIModel) -> list[str]:
    points = {"heads": P.AttnResult, "neurons": P.MlpPost, "experts": P.ExpertOut}
    return [name for name, point in points.items() if point in model.backend.hook_points]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_terms_sum_to_the_stream_and_shares_to_the_logit(family: str) -> None:
    model = tiny(family)
    scale = float(decompose_resid(model, PROMPT).whole.abs().max())
    for split in ((), everything(model)):
        for layer in (None, 1):
            found = decompose_resid(model, PROMPT, split=split, layer=layer)
            assert found.error < 1e-5 * max(1.0, scale), (split, layer)
        attrs = logit_attrs(model, PROMPT, target="q", split=split, position="all")
        assert attrs.error < 1e-4, split
        logits = model.forward(PROMPT).output[0, :, model.token_id("q", output=True)]
        if model.config.final_logit_softcapping is None:
            assert torch.allclose(attrs.logits, logits.detach(), atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "olmo2", "falcon", "gpt_neox"])
def test_a_neuron_writes_its_activation_times_its_row(family: str) -> None:
    model = tiny(family)
    found = decompose_resid(model, PROMPT, split="neurons", position=3)
    cache = model.forward(PROMPT, mi.HookSpec().capture(P.MlpPost, P.MlpOut, P.MlpRawOut))
    weights = dict(model.backend.named_parameters())["blocks.1.mlp.down.weight"].detach()
    at = [i for i, term in enumerate(found.terms) if (term.kind, term.layer) == ("neuron", 1)]
    assert len(at) == model.backend.sizes["d_mlp"]
    raw = cache[P.MlpPost(1)][0, 3, :, None] * weights.T
    if P.Ln2PostScale in model.backend.layer_points(1):
        whole = found.vectors[at].sum(0)[0]
        assert torch.allclose(whole, cache[P.MlpOut(1)][0, 3], atol=1e-5)
        assert not torch.allclose(found.vectors[at, 0], raw, atol=1e-3)
    else:
        assert torch.allclose(found.vectors[at, 0], raw, atol=1e-5)


def test_experts_write_what_their_hook_says() -> None:
    model = tiny("qwen2_moe")
    found = decompose_resid(model, PROMPT, split="experts")
    cache = model.forward(PROMPT, mi.HookSpec().capture(P.ExpertOut, P.SharedExpertOut))
    layer = next(t.layer for t in found.terms if t.kind == "expert")
    assert layer is not None
    at = [i for i, term in enumerate(found.terms) if (term.kind, term.layer) == ("expert", layer)]
    assert torch.allclose(found.vectors[at].movedim(0, 1), cache[P.ExpertOut(layer)][0], atol=1e-6)
    shared = next(
        i for i, t in enumerate(found.terms) if (t.kind, t.layer) == ("shared expert", layer)
    )
    assert torch.allclose(found.vectors[shared], cache[P.SharedExpertOut(layer)][0], atol=1e-6)


def test_modes_keep_their_kind_and_the_input() -> None:
    model = tiny("gpt2")
    kinds = {
        mode: [t.kind for t in decompose_resid(model, PROMPT, mode=mode, layer=2).terms]
        for mode in ("all", "attn", "mlp")
    }
    assert kinds["attn"] == ["attention", "attention bias"] * 2
    assert kinds["mlp"] == ["mlp"] * 2
    assert kinds["all"] == ["embedding", "positions"] + ["attention", "attention bias", "mlp"] * 2
    with pytest.raises(mi.ModelError, match="do not add up"):
        _ = decompose_resid(model, PROMPT, mode="attn").error


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "falcon"])
def test_what_is_accumulated_is_the_stream(family: str) -> None:
    model = tiny(family)
    spec = mi.HookSpec().capture(P.ResidPre, P.ResidMid, P.ResidPost)
    cache = model.forward(PROMPT, spec)
    found = accumulated_resid(model, PROMPT, mid=True)
    expected = [x for i in range(3) for x in (cache[P.ResidPre(i)], cache[P.ResidMid(i)])]
    assert torch.equal(found.vectors, torch.cat([*expected, cache[P.ResidPost(2)]]))
    assert [t.name for t in found.terms][-3:] == ["into L2", "within L2", "final"]
    short = accumulated_resid(model, PROMPT, layer=1, position=-1)
    assert torch.equal(short.vectors[:, 0], torch.cat([x[:, -1] for x in expected[:3:2]]))
    sums = decompose_resid(model, PROMPT, layer=2).vectors.sum(0)
    assert torch.allclose(accumulated_resid(model, PROMPT, layer=2).whole, sums, atol=1e-5)


def test_shares_agree_with_attribute_and_with_differences() -> None:
    model = tiny("starcoder2")
    one = mi.attribute(model, PROMPT, target="q", versus="z", position=4)
    both = logit_attrs(model, PROMPT, target="q", versus="z", position="all")
    assert [s.name for s in one.shares] == [t.name for t in both.terms]
    assert torch.allclose(torch.tensor([s.value for s in one.shares]), both.values[:, 4], atol=1e-6)
    assert torch.allclose(both.heads(4), one.heads().float(), atol=1e-6)
    alone = [logit_attrs(model, PROMPT, target=w, position=4).values for w in ("q", "z")]
    assert torch.allclose(alone[0] - alone[1], both.values[:, 4:5], atol=1e-5)
    names, sums = both.by_layer()
    assert names[:3] == ["embedding", "L0 attention", "L0 MLP"]
    assert torch.allclose(sums.sum(0), both.logits, atol=1e-4)


def test_results_are_saved_whole_and_shown(tmp_path: Path) -> None:
    model = tiny("llama")
    found = decompose_resid(model, "abc", split="heads")
    loaded = Residuals.load(found.save(tmp_path / "r.json"))
    assert loaded.to_dict() == found.to_dict()
    assert torch.equal(loaded.vectors, found.vectors)
    assert "longest" in repr(found)
    assert len(found.plot().to_dict()["data"][0]["z"]) == len(found.terms)
    assert len(found.to_pandas()) == found.norms.numel()
    for position in (-1, "all"):
        attrs = logit_attrs(model, "abc", target="q", versus="z", position=position)
        loaded = LogitAttributions.load(attrs.save(tmp_path / "l.json"))
        assert loaded.to_dict() == attrs.to_dict()
        assert "over z" in repr(attrs)
        assert attrs.plot().data
        assert len(attrs.to_pandas()) == attrs.values.numel()
        weighs = [abs(value) for _, value in attrs.best(4)]
        assert weighs == sorted(attrs.values[:, -1].abs().tolist(), reverse=True)[:4]


def test_wrong_requests_say_what_is_right() -> None:
    model = tiny("llama")
    with pytest.raises(mi.ModelError, match="did you mean 'neurons'"):
        decompose_resid(model, PROMPT, split="neuron")
    with pytest.raises(mi.ModelError, match="this model has no experts"):
        logit_attrs(model, PROMPT, target="q", split="experts")
    with pytest.raises(mi.ModelError, match="one prompt at a time, got 2"):
        decompose_resid(model, ["ab", "cd"])
    with pytest.raises(mi.ModelError, match=r"layer=4 is out of range: 0 … 3"):
        accumulated_resid(model, PROMPT, layer=4)
    with pytest.raises(mi.ModelError, match="mode='atn' is not one of all, attn, mlp"):
        decompose_resid(model, PROMPT, mode="atn")


def test_the_demo_model_says_paris_by_its_parts() -> None:
    model = mi.MIModel.from_pretrained("demo")
    found = logit_attrs(
        model, "The capital of France is", target=" Paris", versus=" Rome",
        split=("heads", "neurons"),
    )  # fmt: skip
    assert found.error < 1e-4
    best = found.best(1)[0]
    assert best[1] > 0
    assert best[0].layer is not None
    logits = model.forward("The capital of France is").output[0, -1]
    lead = logits[model.token_id(" Paris")] - logits[model.token_id(" Rome")]
    assert float(found.logits[0]) == pytest.approx(float(lead), abs=1e-3)


@pytest.mark.parametrize(("width", "outputs"), [(0, None), (16, None), (0, 2)])
def test_toy_transformers_come_apart(width: int, outputs: int | None) -> None:
    """Attention alone, and logits that do not stand for tokens."""
    cfg = mi.TransformerConfig.toy(
        vocab_size=11, num_layers=2, hidden_size=8, num_attention_heads=2,
        intermediate_size=width, output_vocab_size=outputs,
    )  # fmt: skip
    model, ids = mi.MIModel.from_config(cfg), torch.tensor([[1, 2, 3]])
    assert decompose_resid(model, ids).error < 1e-5
    found = logit_attrs(model, ids, target=1, position="all")
    assert found.error < 1e-4
    assert torch.allclose(found.logits, model.forward(ids).output[0, :, 1], atol=1e-4)
    assert mi.attribute(model, ids, target=1).plot().data
