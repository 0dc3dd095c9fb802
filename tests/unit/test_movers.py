# SPDX-License-Identifier: MIT OR Apache-2.0
"""Heads that say a word: shares against `attribute`, and the name movers of the demo model.

In GPT-2 name movers look at the indirect object itself. In the demo model they look at the giver's
second mention, to which attention of layer 0 has brought the indirect object's name; what they
write raises that name and lowers the giver's.
"""

import json
import random
from pathlib import Path

import pytest
import torch

import torch_mi as mi
from torch_mi.analysis.ablation import ablate_together
from torch_mi.analysis.movers import Movers, find_movers
from torch_mi.testing import tiny
from training import corpus, words

P = mi.HookPoint
COUNT, MOVERS = 20, 7


@pytest.fixture(scope="module")
def demo() -> mi.MIModel:
    return mi.MIModel.from_pretrained("demo", device="cpu")


@pytest.fixture(scope="module")
def asked(demo: mi.MIModel) -> tuple[list[str], list[str], list[str]]:
    """Prompts about people who never met in training, the takers and the givers."""
    prompts, takers, givers = list[str](), list[str](), list[str]()
    for question in corpus.ioi_questions(11, COUNT):
        said = [token.strip() for token in demo.to_str_tokens(question.prompt)]
        [giver] = [name for name in words.NAMES if said.count(name) == 2]
        prompts.append(question.prompt)
        takers.append(question.answer)
        givers.append(f" {giver}")
    return prompts, takers, givers


@pytest.fixture(scope="module")
def found(demo: mi.MIModel, asked: tuple[list[str], list[str], list[str]]) -> Movers:
    prompts, takers, givers = asked
    return find_movers(demo, prompts, target=takers, versus=givers)


def best(found: Movers) -> list[tuple[int, int]]:
    return [(layer, head) for layer, head, _ in found.best(MOVERS)]


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "cohere"])
def test_shares_are_those_of_attribution_and_looks_those_of_the_patterns(family: str):
    model = tiny(family)
    prompts, targets = ["the cat, the cat", "a fox"], ["c", "x"]
    found = find_movers(model, prompts, target=targets, versus="t", position=-2)
    for i, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        one = mi.attribute(model, prompt, target=target, versus="t", position=-2)
        torch.testing.assert_close(found.shares[i], one.heads())
        assert float(found.leads[i]) == pytest.approx(one.logit, abs=1e-4)
        tokens = model.to_str_tokens(prompt)
        cache = model.forward(prompt, mi.HookSpec().capture(P.AttnPattern))
        for layer in range(model.num_layers):
            rows = cache[P.AttnPattern(layer)][0, :, -2]
            for looks, word in ((found.to_target, target), (found.to_versus, "t")):
                there = [k for k, token in enumerate(tokens) if token == word]
                torch.testing.assert_close(looks[i, layer], rows[:, there].sum(-1))


def test_the_demo_models_name_movers_stand_out(demo: mi.MIModel, found: Movers):
    mean, movers = found.mean, best(found)
    rest = [
        float(mean[i, j])
        for i in range(demo.num_layers)
        for j in range(demo.num_heads)
        if (i, j) not in movers
    ]
    assert min(float(mean[at]) for at in movers) > max(map(abs, rest)) + 0.1
    assert {layer for layer, _ in movers} == {2, 3, 4}
    for at in movers:
        assert float(mean[at]) > 8 * float(found.standard_errors[at])
        assert float((found.shares[:, *at] > 0).float().mean()) > 0.9


def test_they_look_at_the_givers_second_mention(
    demo: mi.MIModel, found: Movers, asked: tuple[list[str], list[str], list[str]]
):
    second = torch.zeros(COUNT, MOVERS)
    for i, (prompt, _, giver) in enumerate(zip(*asked, strict=True)):
        cache = demo.forward(prompt, mi.HookSpec().capture(P.AttnPattern))
        tokens = demo.to_str_tokens(prompt)
        place = len(tokens) - 1 - tokens[::-1].index(giver) if giver in tokens else 0
        for j, (layer, head) in enumerate(best(found)):
            second[i, j] = cache[P.AttnPattern(layer)][0, head, -1, place]
    there = [i for i, giver in enumerate(asked[2]) if giver in demo.to_str_tokens(asked[0][i])]
    assert len(there) > COUNT / 2, "a name that begins a sentence is another token"
    assert second[there].mean(0).min() > 0.8
    assert max(float(found.to_target.mean(0)[at]) for at in best(found)) < 0.05


def test_the_name_has_been_brought_there_by_layer_0(demo: mi.MIModel):
    old = "When Mary and John went to the store, John gave a drink to"
    new = old.replace("Mary", "Alice")
    metric = mi.logit_diff(" Alice", " Mary")
    grid = mi.patch(demo, new, old, at="resid_pre", metric=metric).normalized().values
    tokens = demo.to_str_tokens(old)
    taker, giver = tokens.index(" Mary"), len(tokens) - 1 - tokens[::-1].index(" John")
    first = tokens.index(" John")
    assert float(grid[0, taker]) == pytest.approx(1, abs=1e-4)
    assert grid[1:, taker].abs().max() < 0.05, "from layer 1 on nothing is read there"
    assert grid[:, first].abs().max() < 0.05
    assert float(grid[1, giver]) > 0.15
    assert float(grid[5, giver]) < 0.05, "by then it has been taken to the end"
    assert float(grid[5, -1]) > 0.8
    assert bool((grid[1:, -1].diff() > 0).all())


@pytest.mark.parametrize("method", ["mean", "zero"])
def test_without_them_the_right_name_leads_no_more(
    demo: mi.MIModel, found: Movers, asked: tuple[list[str], list[str], list[str]], method: str
):
    prompts, takers, givers = asked
    movers, dice = best(found), random.Random(0)
    heads = [(i, j) for i in range(demo.num_layers) for j in range(demo.num_heads)]
    others = [head for head in heads if head not in movers]
    draws = {f"others {i}": dice.sample(others, MOVERS) for i in range(8)}
    lead = mi.logit_diff(takers, givers)
    cut = ablate_together(
        demo,
        prompts,
        {"movers": movers, **draws},
        metric=lead,
        method="zero" if method == "zero" else "mean",
    )
    falls = cut.baseline - cut.values
    assert cut.baseline > 10
    assert float(falls[0]) > 0.8 * cut.baseline
    assert float(falls[0]) > 3 * float(falls[1:].mean())
    assert float(falls[0]) > 1.2 * float(falls[1:].max())


def test_results_are_saved_whole_and_shown(found: Movers, tmp_path: Path):
    back = Movers.load(found.save(tmp_path / "movers.json"))
    assert back.to_dict() == found.to_dict()
    lines = repr(found).splitlines()
    assert max(map(len, lines)) <= 80
    layer, head, share = found.best(1)[0]
    assert [str(layer), str(head), f"{share:+.3f}"] in [line.split()[:3] for line in lines]
    heat = json.loads(str(found.plot().to_json()))["data"][0]
    assert heat["zmin"] == -heat["zmax"]
    assert found.manifest.tokens is not None
    assert len(found.manifest.tokens) == COUNT
    rows = found.to_pandas()
    assert len(rows) == found.shares.numel()
    assert rows["share"].iloc[-1] == pytest.approx(float(found.shares[-1, -1, -1]))


def test_wrong_requests_say_what_is_right(demo: mi.MIModel):
    with pytest.raises(mi.ModelError, match="versus has 1 words for 2 prompts"):
        find_movers(demo, ["a cat", "a dog"], target=" Mary", versus=[" John"])
    with pytest.raises(mi.ModelError, match="position=-9 is out of range"):
        find_movers(demo, "The dog", target=" Mary", versus=" John", position=-9)
