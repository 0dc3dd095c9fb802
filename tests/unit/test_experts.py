# SPDX-License-Identifier: MIT OR Apache-2.0
"""Mixtures of experts: what routes, what runs, what an edit of gates does."""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from torch_mi import testing
from torch_mi.backends.transformer import Transformer
from torch_mi.config.parts import Experts, GroupScore, Latent, Scoring
from torch_mi.config.transformer import TransformerConfig
from torch_mi.errors import ConfigError, HookError, InterventionError
from torch_mi.hooks.coordinates import At
from torch_mi.hooks.interventions import Add, Replace, Scale, Zero
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.hooks.trace import silent
from torch_mi.model import MIModel
from torch_mi.nn.experts import Matrices, Mixture

SPARSE = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek", "deepseek_v2", "deepseek_v3")


def mixture_of(model: MIModel, layer: int) -> Mixture:
    found = cast("Transformer", model.backend).blocks[layer].mlp
    assert isinstance(found, Mixture)
    return found


def sparse_layer(model: MIModel) -> int:
    return model.config.experts.layers.index(True)


def mixture(seed: int = 0, **changes: Any) -> Mixture:
    """A random mixture, six experts wide."""
    torch.manual_seed(seed)
    how: dict[str, Any] = {"layers": (True,) * 3, "count": 6, "chosen": 2, "width": 9, **changes}
    cfg = replace(testing.tiny("llama").config, experts=Experts(**how))
    return Mixture(cfg)


def slowly(m: Mixture, x: Tensor) -> Tensor:
    """The output by its definition, token by token and expert by expert."""
    out = torch.zeros_like(x)
    for row in range(x.shape[0]):
        for pos in range(x.shape[1]):
            token, total = x[row, pos], torch.zeros(x.shape[-1])
            scores = m.router.weight @ token
            scores = scores.sigmoid() if m.how.scoring is Scoring.Sigmoid else scores.softmax(0)
            for expert in slow_choice(m, scores):
                weight = scores[expert]
                if m.how.normalised:
                    weight = weight / sum(scores[e] for e in slow_choice(m, scores))
                banks = (cast("Matrices", m.experts.gate), m.experts.up, m.experts.down)
                gate, up, down = (bank.weight[expert] for bank in banks)
                hidden = torch.nn.functional.silu(gate @ token) * (up @ token)
                total = total + weight * m.how.scale * (down @ hidden)
            out[row, pos] = total
    return out


def slow_choice(m: Mixture, scores: Tensor) -> list[int]:
    judged = scores if m.correction is None else scores + m.correction.bias
    size = m.how.count // m.how.groups
    groups = [list(range(g * size, (g + 1) * size)) for g in range(m.how.groups)]
    best = 1 if m.how.group_score is GroupScore.Best else min(2, size)
    groups.sort(key=lambda g: -sum(sorted((float(judged[e]) for e in g), reverse=True)[:best]))
    allowed = [e for g in groups[: m.how.chosen_groups] for e in g]
    return sorted(allowed, key=lambda e: -float(judged[e]))[: m.how.chosen]


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "normalised, scaled": {"normalised": True, "scale": 1.7},
    "all chosen": {"chosen": 6},
    "sigmoid": {"scoring": Scoring.Sigmoid, "normalised": True},
    "corrected": {"scoring": Scoring.Sigmoid, "correction": True, "chosen": 3},
    "groups": {"groups": 3, "chosen_groups": 2, "chosen": 3},
    "groups by their two best": {
        "groups": 2,
        "chosen_groups": 1,
        "group_score": GroupScore.TwoBest,
        "correction": True,
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixture_is_what_its_definition_says(kind: str) -> None:
    m = mixture(**KINDS[kind])
    with torch.no_grad():
        m.router.weight.mul_(3)
        if m.correction is not None:
            m.correction.bias.copy_(torch.randn(6))
        x = torch.randn(2, 5, 24)
        torch.testing.assert_close(m(x, silent), slowly(m, x), atol=1e-6, rtol=0)


def test_only_the_chosen_experts_run(monkeypatch: pytest.MonkeyPatch) -> None:
    m = mixture(count=6, chosen=2)
    ran = dict[int, int]()
    forward = type(m.experts).forward

    def count(bank: Any, expert: int, x: Tensor) -> Tensor:
        ran[expert] = ran.get(expert, 0) + len(x)
        return forward(bank, expert, x)

    monkeypatch.setattr(type(m.experts), "forward", count)
    x = torch.randn(1, 1, 24)
    m(x, silent)
    assert len(ran) == 2
    assert sum(ran.values()) == 2
    ran.clear()
    m(torch.randn(3, 7, 24), silent)
    assert sum(ran.values()) == 3 * 7 * 2


@pytest.mark.parametrize("family", SPARSE)
def test_gates_are_zero_but_for_the_chosen(family: str) -> None:
    model = testing.tiny(family)
    layer, how = sparse_layer(model), model.config.experts
    points = (HookPoint.ExpertIndices, HookPoint.ExpertGates, HookPoint.ExpertOut)
    seen = model.forward(testing.random_tokens(model), HookSpec().capture(*points))
    chosen, gates, out = (seen[point(layer)] for point in points)
    assert not chosen.is_floating_point()
    mask = torch.zeros_like(gates, dtype=torch.bool).scatter(-1, chosen, value=True)
    assert bool((gates[~mask] == 0).all())
    assert bool((gates[mask] != 0).all())
    assert bool((out[~mask] == 0).all())
    if not how.correction:
        best = gates.gather(-1, chosen)
        assert bool((best[..., :-1] >= best[..., 1:]).all())
    if how.normalised:
        torch.testing.assert_close(gates.sum(-1), torch.full(gates.shape[:2], how.scale))


@pytest.mark.parametrize("family", SPARSE)
def test_an_expert_that_was_not_chosen_can_be_called_in(family: str) -> None:
    """With gates of one's own, the output is the sum over exactly those experts."""
    model = testing.tiny(family)
    tokens, layer = testing.random_tokens(model, 2, 4), sparse_layer(model)
    m = mixture_of(model, layer)
    gates = torch.zeros(2, 4, m.how.count)
    gates[:, :, 1], gates[0, 2, 4] = 0.3, -2.0
    spec = HookSpec().capture(HookPoint.MlpIn(layer), HookPoint.MlpRawOut(layer))
    spec.capture(HookPoint.ExpertOut(layer))
    seen = model.forward(tokens, spec.intervene(HookPoint.ExpertGates(layer), Replace(gates)))
    x = seen[HookPoint.MlpIn(layer)]
    wanted = torch.zeros(2, 4, m.how.count, 24)
    with torch.no_grad():
        wanted[:, :, 1] = 0.3 * m.experts(1, x.flatten(0, 1)).view_as(x)
        wanted[0, 2, 4] = -2.0 * m.experts(4, x[0, 2][None])[0]
        whole = wanted.sum(2) if m.shared is None else wanted.sum(2) + m.shared_out(m.shared, x)
    torch.testing.assert_close(seen[HookPoint.ExpertOut(layer)], wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[HookPoint.MlpRawOut(layer)], whole, atol=1e-5, rtol=0)


def test_a_router_can_be_steered_to_an_expert() -> None:
    model = testing.tiny("mixtral")
    tokens = testing.random_tokens(model, 1, 5)
    push = Add(torch.tensor(50.0), at=At(expert=3, pos=2))
    spec = HookSpec().capture(HookPoint.ExpertIndices, HookPoint.ExpertGates)
    seen = model.forward(tokens, spec.intervene(HookPoint.RouterLogits(1), push))
    assert seen[HookPoint.ExpertIndices(1)][0, 2, 0] == 3
    assert seen[HookPoint.ExpertGates(1)][0, 2, 3] == pytest.approx(1.0)


def test_gates_say_what_calling_an_expert_in_would_do() -> None:
    """The gradient of a gate that is zero is the pull of an expert that did not run."""
    model = testing.tiny("mixtral")
    tokens, hook = testing.random_tokens(model, 1, 4), HookPoint.ExpertGates(2)
    seen = model.forward(tokens, HookSpec().capture(hook), grad=True)
    slope = torch.autograd.grad(seen.output[0, -1, 5], seen[hook])[0][0, -1]
    unused = int((seen[hook][0, -1] == 0).nonzero()[0, 0])
    ends = [
        model.forward(
            tokens,
            HookSpec().intervene(hook, Add(torch.tensor(s * 1e-3), at=At(pos=-1, expert=unused))),
        ).output[0, -1, 5]
        for s in (1, -1)
    ]
    assert float(ends[0] - ends[1]) / 2e-3 == pytest.approx(float(slope[unused]), rel=0.02)
    assert abs(float(slope[unused])) > 0.01


def test_choices_are_seen_and_not_edited() -> None:
    model = testing.tiny("mixtral")
    tokens = testing.random_tokens(model)
    spec = HookSpec().intervene(HookPoint.ExpertIndices, Zero())
    with pytest.raises(InterventionError, match=r"ExpertIndices can be captured but not edited"):
        model.forward(tokens, spec)
    beyond, nowhere = Scale(2.0, at=At(expert=5)), Scale(2.0, at=At(expert=1))
    spec = HookSpec().intervene("blocks.0.mlp.hook_expert_gates", beyond)
    with pytest.raises(InterventionError, match=r"expert=5 is out of range.*has 5"):
        model.forward(tokens, spec)
    spec = HookSpec().intervene(HookPoint.ResidPre, nowhere)
    with pytest.raises(InterventionError, match=r"ResidPre has no expert axis"):
        model.forward(tokens, spec)


def test_layers_with_experts_have_no_neurons_and_others_no_router() -> None:
    model = testing.tiny("qwen2_moe")
    assert model.config.experts.layers == (True, False, True)
    assert HookPoint.MlpPost(1) in model.hooks
    assert HookPoint.MlpPost(0) not in model.hooks
    seen = model.forward(testing.random_tokens(model), HookSpec().capture(HookPoint.ExpertGates))
    assert list(seen) == [HookPoint.ExpertGates(0), HookPoint.ExpertGates(2)]
    with pytest.raises(HookError, match=r"layer 1 has no RouterLogits; layers \[0, 2\] have"):
        model.forward(testing.random_tokens(model), HookSpec().capture(HookPoint.RouterLogits(1)))


def test_what_a_token_gets_does_not_depend_on_its_company() -> None:
    model = testing.tiny("deepseek_v3")
    tokens = testing.random_tokens(model, 4, 6)
    together = model.forward(tokens).output
    for row in range(4):
        alone = model.forward(tokens[row : row + 1]).output
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0)


def test_the_correction_chooses_and_weighs_nothing() -> None:
    model = testing.tiny("deepseek_v3")
    layer = sparse_layer(model)
    m = mixture_of(model, layer)
    assert m.correction is not None
    points = (HookPoint.ExpertWeights(layer), HookPoint.ExpertGates(layer))
    tokens = testing.random_tokens(model, 1, 6)
    with torch.no_grad():
        m.correction.bias.copy_(torch.tensor([9.0, 9, 9] + [0.0] * (m.how.count - 3)))
    seen = model.forward(tokens, HookSpec().capture(*points))
    weights, gates = (seen[point] for point in points)
    assert bool((gates[..., 3:] == 0).all())
    wanted = weights[..., :3] / weights[..., :3].sum(-1, keepdim=True) * m.how.scale
    torch.testing.assert_close(gates[..., :3], wanted)
    assert not m.correction.bias.requires_grad


def test_the_latent_vector_is_all_that_values_come_from() -> None:
    model = testing.tiny("deepseek_v2")
    assert model.backend.sizes["d_latent"] == 11
    assert (model.backend.sizes["d_head"], model.backend.sizes["d_value"]) == (9, 7)
    gone = HookSpec().intervene(HookPoint.AttnLatent(1), Zero())
    seen = model.forward(
        testing.random_tokens(model),
        gone.capture(HookPoint.AttnV, HookPoint.AttnK, HookPoint.AttnOut),
    )
    assert bool((seen[HookPoint.AttnV(1)] == 0).all())
    assert bool((seen[HookPoint.AttnOut(1)] == 0).all())
    key = seen[HookPoint.AttnK(1)]
    assert bool((key[..., :5] == 0).all())
    assert torch.equal(key[:, :, 0, 5:], key[:, :, 3, 5:])
    assert bool((key[..., 5:] != 0).any())


def test_turning_is_confined_to_its_part_of_a_head() -> None:
    model = testing.tiny("deepseek_v3")
    points = (HookPoint.AttnK(0), HookPoint.AttnRotK(0))
    seen = model.forward(testing.random_tokens(model), HookSpec().capture(*points))
    before, after = (seen[point] for point in points)
    assert torch.equal(before[..., :5], after[..., :5])
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.allclose(before[:, 1:, :, 5:], after[:, 1:, :, 5:])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "too many chosen": ({"chosen": 7}, "7 experts for each token, but there are 6"),
    "none chosen": ({"chosen": 0}, "chosen = 0 is not positive"),
    "uneven groups": ({"groups": 4}, "6 experts cannot be chosen from 1 of 4 groups"),
    "few in few groups": ({"groups": 3, "chosen": 3}, "3 experts.*but there are 2"),
    "lonely groups": (
        {"groups": 6, "group_score": GroupScore.TwoBest, "chosen": 1},
        "6 groups of one expert have no two best",
    ),
    "a negative width": ({"shared_width": -1}, "shared_width = -1 is negative"),
}


@pytest.mark.parametrize("what", WRONG)
def test_impossible_experts_are_refused(what: str) -> None:
    changes, message = WRONG[what]
    how: dict[str, Any] = {"layers": (True,), "count": 6, "chosen": 2, "width": 9}
    with pytest.raises(ConfigError, match=message):
        Experts(**{**how, **changes})


def test_impossible_combinations_are_refused() -> None:
    cfg: TransformerConfig = testing.tiny("llama").config
    experts = Experts(layers=(True, False), count=6, chosen=2, width=9)
    with pytest.raises(ConfigError, match=r"2 experts\.layers for 3 layers"):
        replace(cfg, experts=experts)
    mixed = replace(experts, layers=(True, False, True))
    with pytest.raises(ConfigError, match=r"some layers have no experts"):
        replace(cfg, experts=mixed, intermediate_size=0)
    latent = Latent(query_rank=None, kv_rank=8, nope_dim=4, rope_dim=4, value_dim=6)
    with pytest.raises(ConfigError, match=r"a key and value for each of 6 heads"):
        replace(cfg, latent=latent, ropes=(None,) * 3)
    with pytest.raises(ConfigError, match=r"latent attention: kv_rank = 0 is not positive"):
        replace(latent, kv_rank=0)
