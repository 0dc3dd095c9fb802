# SPDX-License-Identifier: MIT OR Apache-2.0
"""Attention knockout: specs, masks, and runs against softmaxes written out by hand."""

from typing import Any

import pytest
import torch

import torch_mi as mi
from torch_mi.analysis.changes import kl_divergence, top_changed, truncated_kl_divergence
from torch_mi.analysis.edges import (
    ALL,
    AttentionEdge,
    KnockoutSpec,
    create_knockout_mask,
    expanded,
)
from torch_mi.analysis.knockout import AblationResult, knockout, knockout_grid
from torch_mi.model import batch_of
from torch_mi.testing import tiny

FAMILIES = ["llama", "gemma2", "phi3", "gpt2", "bloom", "starcoder2"]


def test_builders():
    spec = KnockoutSpec().layer(3).layer(1, 2).head(4).head(0).edge(5, 2)
    assert spec.layers == (1, 2), "the second choice replaces the first"
    assert spec.heads == (0,)
    assert KnockoutSpec().layer_range(2, 4).layers == (2, 3, 4)
    spec = KnockoutSpec().from_position(3).to_position(1).from_to_positions(4, [0, 2])
    edges = [(3, ALL), (ALL, 1), (4, 0), (4, 2)]
    assert spec.edges == tuple(AttentionEdge(*edge) for edge in edges)
    assert KnockoutSpec().applies_to_layer(17)
    assert KnockoutSpec().applies_to_head(17)
    assert not KnockoutSpec().layer().applies_to_layer(0)
    assert not KnockoutSpec().head().applies_to_head(0)
    assert spec.max_from_pos() == 4
    assert spec.max_to_pos() == 2
    assert KnockoutSpec().max_from_pos() is None


def test_which_specs_are_of_the_prompt_alone():
    spec = KnockoutSpec().edge(5, 2).edge(8, 3)
    assert spec.is_prompt_only(10)
    assert not spec.is_prompt_only(6)
    assert not KnockoutSpec().to_position(5).is_prompt_only(10)
    assert KnockoutSpec().from_position(5).is_prompt_only(10)
    assert KnockoutSpec().is_prompt_only(1)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (KnockoutSpec().layer(100).edge(50, 25), "layer 100 .* has 30"),
        (KnockoutSpec().layer_range(28, 30).edge(1, 0), "layer 30 .* has 30"),
        (KnockoutSpec().head(16).edge(1, 0), "head 16 .* has 16"),
        (KnockoutSpec().edge(20, 0), "from position 20 .* has 20"),
        (KnockoutSpec().edge(1, 20), "to position 20 .* has 20"),
        (KnockoutSpec(edges=(AttentionEdge(ALL, ALL),)), "names whole heads; ablate"),
    ],
)
def test_what_is_out_of_range_is_named(spec: KnockoutSpec, said: str):
    with pytest.raises(mi.InterventionError, match=said):
        spec.validate(30, 16, 20)
    KnockoutSpec().layer(10).edge(5, 3).validate(30, 16, 20)


def test_masks():
    mask = create_knockout_mask(KnockoutSpec().head(0).edge(2, 1), 2, 4)
    assert mask.shape == (1, 2, 4, 4)
    assert mask.flatten()[9] == -torch.inf
    assert mask.flatten()[25] == 0
    assert int((mask == -torch.inf).sum()) == 1
    spec = KnockoutSpec().from_position(2).edge(1, 0)
    assert len(expanded(spec, 4)) == 5
    assert int((create_knockout_mask(spec, 1, 4) == -torch.inf).sum()) == 5
    with pytest.raises(mi.InterventionError, match="from position 9"):
        create_knockout_mask(KnockoutSpec().edge(9, 0), 2, 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_do_what_the_mask_says(family: str):
    model, text = tiny(family), "abcdef"
    length = len(batch_of(model, text).rows()[0])
    spec = KnockoutSpec().layer(0, 2).head(1, 3).edge(4, 2).to_position(1).from_position(-1)
    spec = spec.edge(-2, 0)
    mask = create_knockout_mask(spec, model.num_heads, length)
    by_mask = mi.HookSpec()
    for layer in (0, 2):
        by_mask.intervene(mi.HookPoint.AttnScores(layer), mi.Knockout(mask))
    pattern = mi.HookPoint.AttnPattern
    run = model.forward(text, spec.hooks(model, length).capture(pattern))
    whole = model.forward(text, by_mask)
    assert (run.output - whole.output).abs().max() < 1e-5
    gone = mask[0] == -torch.inf
    assert float(run[pattern(2)][0][gone].abs().max()) == 0
    assert float(run[pattern(1)][0][gone].abs().max()) > 0
    assert float(run[pattern(2)][0, 1, -1].abs().max()) == 0, "a row that sees nothing is zero"
    assert run.output.isfinite().all()


def test_the_result_compares_the_two_runs():
    model = tiny("llama")
    spec = KnockoutSpec().layer(1).from_position(-1)
    found = knockout(model, "abcdef", spec, position=-1)
    plain = model.forward("abcdef").output[0, -1]
    cut = model.forward("abcdef", spec.hooks(model, 7)).output[0, -1]
    assert torch.equal(found.baseline_logits, plain)
    assert torch.equal(found.ablated_logits, cut)
    p, q = plain.double().softmax(-1), cut.double().softmax(-1)
    assert found.kl_divergence() == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-6)
    assert found.logit_diff(5) == pytest.approx(float(plain[5] - cut[5]))
    top = found.top_changed_tokens(4)
    changes = (p - q).abs().sort(descending=True).values
    assert [t.change for t in top] == pytest.approx(changes[:4].tolist(), abs=1e-6)
    assert top[0].change == pytest.approx(abs(top[0].before - top[0].after))
    with pytest.raises(mi.InterventionError, match="97 is out of range"):
        found.logit_diff(97)


def test_results_are_saved_whole(tmp_path):  # pyright: ignore[reportMissingParameterType, reportUnknownParameterType]
    spec = KnockoutSpec().layer(1).head(0, 2).to_position(0)
    found = knockout(tiny("llama"), "abc", spec)
    again = AblationResult.load(found.save(tmp_path / "a.json"))
    assert again.to_dict() == found.to_dict()
    assert again.spec == spec
    assert len(found.to_pandas()) == 64
    assert "all → 0 in layer 1, heads 0, 2 removed" in repr(found)
    picture: Any = found.plot()
    assert len(picture.data) == 2


def test_each_layer_and_head_by_itself():
    model, metric = tiny("gemma2"), mi.logit("q")
    prompts = ["abcdef", "xyz"]
    spec = KnockoutSpec().from_position(-1)
    grid = knockout_grid(model, prompts, spec, metric=metric, by=("layer", "head"))
    assert grid.values.shape == (model.num_layers, model.num_heads)
    for layer, head in ((0, 1), (2, 5)):
        one = spec.layer(layer).head(head)
        scores = [
            float(model.forward(t, one.hooks(model, len(t) + 1)).output[0, -1, model.token_id("q")])
            for t in prompts
        ]
        assert grid.values[layer, head] == pytest.approx(sum(scores) / 2, abs=1e-5)
    with pytest.raises(mi.InterventionError, match="by layer or head"):
        knockout_grid(model, "abc", spec, metric=metric, by=())


def test_specs_without_edges_say_so():
    with pytest.raises(mi.InterventionError, match=r"names no edges; add .edge"):
        knockout(tiny("llama"), "abc", KnockoutSpec().layer(1))
    with pytest.raises(mi.ModelError, match="takes one prompt, not 2"):
        knockout(tiny("llama"), ["abc", "d"], KnockoutSpec().edge(1, 0))
    nobody = knockout(tiny("llama"), "abc", KnockoutSpec().head().edge(1, 0))
    assert nobody.kl_divergence() == 0


def test_divergence_is_exact_and_the_old_one_is_not():
    torch.manual_seed(0)
    a, b = torch.randn(2, 50) * 20
    p, q = a.double().softmax(-1), b.double().softmax(-1)
    exact = float((p * (p.log() - q.log())).sum())
    assert kl_divergence(a, b) == pytest.approx(exact, rel=1e-9)
    assert truncated_kl_divergence(a, b) < exact - 0.01
    assert kl_divergence(a, a) == 0
    with pytest.raises(mi.InterventionError, match=r"at one position, not \[2, 3\]"):
        kl_divergence(torch.zeros(2, 3), torch.zeros(2, 3))
    ties = top_changed(torch.zeros(4), torch.zeros(4), 9)
    assert [t.token_id for t in ties] == [0, 1, 2, 3]


def test_a_fact_of_the_demo_model_comes_from_its_subject():
    model = mi.MIModel.from_pretrained("demo", device="cpu")
    text = "The capital of France is"
    subject = model.to_str_tokens(text).index(" France")
    cut = knockout(model, text, KnockoutSpec().edge(-1, subject))
    kept = knockout(model, text, KnockoutSpec().edge(-1, 1))
    paris = model.token_id(" Paris")
    before = float(cut.baseline_logits.softmax(-1)[paris])
    assert before > 0.9
    assert float(cut.ablated_logits.softmax(-1)[paris]) < 0.5
    assert float(kept.ablated_logits.softmax(-1)[paris]) > 0.9
    assert cut.kl_divergence() > 10 * kept.kl_divergence()
