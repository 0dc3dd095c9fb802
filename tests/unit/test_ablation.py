# SPDX-License-Identifier: MIT OR Apache-2.0
"""Ablation against its definition: one whole forward pass for each cell."""

import random

import pytest
import torch

import torch_mi as mi
from torch_mi.analysis.ablation import Method, ablate, ablate_together
from torch_mi.analysis.heads import find_heads, repeated
from torch_mi.testing import tiny

PROMPTS = ["abcdefg", "hijk"]
REFERENCE = ["the cat", "a", "some dogs"]
POINTS = {
    "z": mi.HookPoint.AttnZ,
    "v": mi.HookPoint.AttnV,
    "mlp_post": mi.HookPoint.MlpPost,
    "attn_out": mi.HookPoint.AttnOut,
    "mlp_out": mi.HookPoint.MlpOut,
}


def by_hand(model: mi.MIModel, at: str, method: Method, metric: mi.Metric) -> torch.Tensor:
    point, parts = POINTS[at], at in ("z", "v", "mlp_post")
    table: list[list[float]] = []
    for layer in range(model.num_layers):
        hook = point(layer)
        runs = [model.forward(text, mi.HookSpec().capture(hook))[hook][0] for text in REFERENCE]
        mean = torch.cat(runs).mean(0)
        value = torch.zeros_like(mean) if method == "zero" else mean
        row: list[float] = []
        for part in range(value.shape[0]) if parts else [slice(None)]:

            def put(
                x: torch.Tensor,
                _: mi.Hook,
                part: int | slice = part,
                value: torch.Tensor = value,
            ) -> torch.Tensor:
                x[:, :, part] = value[part]
                return x

            spec = mi.HookSpec().intervene(hook, mi.Apply(put))
            scores = [
                metric.score(model, model.forward(text, spec).output[0, -1]) for text in PROMPTS
            ]
            row.append(float(torch.stack(scores).mean()))
        table.append(row)
    found = torch.tensor(table)
    return found if parts else found[:, 0]


@pytest.mark.parametrize("method", ["zero", "mean"])
@pytest.mark.parametrize(
    ("family", "at"),
    [("llama", at) for at in POINTS]
    + [(family, at) for family in ("gemma2", "gpt2", "phi3") for at in ("z", "attn_out")],
)
def test_ablation_equals_its_definition(family: str, at: str, method: Method):
    small = {"intermediate_size": 8} if at == "mlp_post" else {}
    model, metric = tiny(family, changes=small), mi.logit_diff("q", "z")
    grid = ablate(model, PROMPTS, at=at, metric=metric, method=method, reference=REFERENCE)
    assert (grid.values - by_hand(model, at, method, metric)).abs().max() < 1e-5
    part = {"z": "head", "v": "head", "mlp_post": "neuron"}.get(at)
    assert list(grid.axes) == (["layer"] if part is None else ["layer", part])
    assert grid.prompts == len(PROMPTS)


def test_resampling_takes_another_prompt_of_the_same_length():
    model, metric = tiny("qwen2"), mi.logit("q")
    grid = ablate(model, ["abcdefg", "lmnopqr"], at="z", metric=metric, method="resample")
    for layer in range(model.num_layers):
        hook = mi.HookPoint.AttnZ(layer)
        for head in range(model.num_heads):
            scores: list[float] = []
            for text, other in (("abcdefg", "lmnopqr"), ("lmnopqr", "abcdefg")):
                value = model.forward(other, mi.HookSpec().capture(hook))[hook][:, :, head]
                edit = mi.Replace(value, at=mi.At(head=head))
                run = model.forward(text, mi.HookSpec().intervene(hook, edit))
                scores.append(float(metric.score(model, run.output[0, -1])))
            assert grid.values[layer, head] == pytest.approx(sum(scores) / 2, abs=1e-5)
    again = ablate(model, ["abcdefg", "lmnopqr"], at="z", metric=metric, method="resample")
    assert torch.equal(again.values, grid.values)


def test_positions_can_be_ablated_one_by_one():
    model, metric = tiny("llama"), mi.logit("q")
    grid = ablate(
        model, "abcd", at="mlp_out", metric=metric, method="zero", by=("layer", "pos"), layers=[1]
    )
    assert grid.labels["pos"] == ("<s>", "a", "b", "c", "d")
    for pos in range(5):
        spec = mi.HookSpec().intervene(mi.HookPoint.MlpOut(1), mi.Zero(at=mi.At(pos=pos)))
        whole = metric.score(model, model.forward("abcd", spec).output[0, -1])
        assert grid.values[0, pos] == pytest.approx(float(whole), abs=1e-5)


def test_groups_go_at_once():
    model, metric = tiny("llama"), mi.logit("q")
    groups = {"both": [(0, 1), (2, 3), (0, 4)], "one": [(1, 0)]}
    found = ablate_together(model, "abcd", groups, metric=metric, method="zero")
    for name, group in groups.items():
        spec = mi.HookSpec()
        for layer, head in group:
            spec.intervene(mi.HookPoint.AttnZ(layer), mi.Zero(at=mi.At(head=head)))
        whole = metric.score(model, model.forward("abcd", spec).output[0, -1])
        assert float(found.at("group", name).values) == pytest.approx(float(whole), abs=1e-5)


def test_wrong_requests_say_what_is_right():
    model, metric = tiny("llama"), mi.logit("q")
    with pytest.raises(mi.InterventionError, match="did you mean 'attn_out'"):
        ablate(model, "abc", at="attn_ou", metric=metric)
    with pytest.raises(mi.InterventionError, match="no other reference prompt has as many"):
        ablate(model, ["abc", "abcd"], at="z", metric=metric, method="resample")
    with pytest.raises(mi.InterventionError, match="AttnZ of layer 0 has no part 9 of 6"):
        ablate_together(model, "abc", {"x": [(0, 9)]}, metric=metric)
    with pytest.raises(mi.InterventionError, match="layer 7 has no AttnZ"):
        ablate_together(model, "abc", {"x": [(7, 0)]}, metric=metric)


def test_without_its_induction_heads_the_demo_model_cannot_copy():
    model = mi.MIModel.from_pretrained("demo", device="cpu")
    found = find_heads(model, kind="induction")
    strong = [(layer, head) for layer, head, _ in found.best(5)]
    tokens, start = repeated(model, 12, 12, seed=5)
    answers = [int(row[start + 10]) for row in tokens]
    prompts = [row[: start + 12 + 10] for row in tokens]
    # induction heads read what previous-token heads wrote, so those are of the same circuit
    previous = find_heads(model, kind="previous_token").scores
    others = [
        (layer, head)
        for layer in range(model.num_layers)
        for head in range(model.num_heads)
        if max(found.scores[layer, head], previous[layer, head]) < 0.3
    ]
    dice = random.Random(0)
    groups = {f"random {i}": dice.sample(others, len(strong)) for i in range(9)}
    grid = ablate_together(
        model, prompts, {"induction": strong, **groups}, metric=mi.prob(answers), method="mean"
    )
    spared = grid.values[1:].tolist()
    assert grid.baseline > 0.9
    assert float(grid.values[0]) < 0.05
    # one head of layer 0 is needed for everything, and chance may hit it
    assert sorted(spared)[len(spared) // 2] > 0.8
    assert sum(score > 0.5 for score in spared) >= 7
