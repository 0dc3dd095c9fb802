# SPDX-License-Identifier: MIT OR Apache-2.0
"""Probes find what is planted, score by chance where there is nothing, and have their controls."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import torch_mi as mi
from torch_mi.analysis.geometry import activations
from torch_mi.analysis.probing import Probes, Probing, control_task, probe
from torch_mi.testing import tiny

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
P = mi.HookPoint
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def texts(count: int, seed: int = 0) -> list[str]:
    dice = torch.Generator().manual_seed(seed)
    picked = torch.randint(26, (count, 5), generator=dice)
    return ["".join(LETTERS[int(i)] for i in row) for row in picked]


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_a_planted_feature_is_found_where_it_is_planted(family: str) -> None:
    """A direction is added for half of the letters in layer 1's input, and read after it."""
    model = tiny(family)
    prompts = texts(60)
    plain = activations(model, prompts, at=[P.ResidPost(0)])
    direction = torch.randn(model.hidden_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for i, letter in enumerate(LETTERS):
            sign = 1 if i % 2 else -1
            model.backend.embedding[model.token_id(letter)] += 3 * sign * direction
    labels = ["odd" if LETTERS.index(p[-1]) % 2 else "even" for p in prompts]
    found = probe(model, prompts, labels, at=P.ResidPost(0), how=Probing(control="none"))
    assert found.accuracy[0] > 0.95
    assert found.classes == ("even", "odd")
    planted = activations(model, prompts, at=[P.ResidPost(0)]).rows[P.ResidPost(0)]
    assert not torch.allclose(planted, plain.rows[P.ResidPost(0)])
    sides = torch.tensor([label == "odd" for label in labels])
    along = planted @ found.directions[0, 0]
    assert along[sides].mean() > along[~sides].mean()


def test_a_direction_is_the_planted_one() -> None:
    """Numbers written along one direction of the stream are read off along it."""
    model = tiny("llama")
    direction = torch.nn.functional.normalize(torch.arange(24.0) - 11, dim=0)
    with torch.no_grad():
        table = model.backend.embedding
        table[:] = 0.1 * table
        for i, letter in enumerate(LETTERS):
            table[model.token_id(letter)] += i * direction
    prompts = [letter + other for letter in LETTERS[:6] for other in LETTERS]
    numbers = [float(LETTERS.index(p[-1])) for p in prompts]
    how = Probing("ridge", control="none", penalty=0.1)
    found = probe(model, prompts, numbers, at=P.Embed, how=how)
    assert found.accuracy[0] > 0.99
    read = found.directions[0, 0]
    assert float(read @ direction) == pytest.approx(1, abs=0.05)
    assert found.chance == 0


def test_the_demo_model_knows_kinds_of_words() -> None:
    """What follows a fact's subject differs by kind from the first layers on; noise does not."""
    model = mi.MIModel.from_pretrained("demo")
    countries = [
        " France",
        " Italy",
        " Poland",
        " Spain",
        " Germany",
        " Greece",
        " Norway",
        " Egypt",
    ]
    animals = [" dog", " cat", " cow", " horse", " sheep", " duck", " lion", " wolf"]
    prompts = [f"The opposite{word} is{word}" for word in countries + animals]
    labels = ["country"] * 8 + ["animal"] * 8
    found = probe(model, prompts, labels, how=Probing(folds=4, control="token"))
    assert found.accuracy.max() > 0.9
    assert found.selectivity.max() > 0.2


def test_a_control_task_gives_every_token_one_label() -> None:
    model = tiny("llama")
    prompts = texts(40)
    samples = activations(model, prompts, at=[P.Embed], position="all").samples
    labels = ["x", "y", "y", "y"] * 60
    task = control_task(labels, samples, Probing())
    given: dict[int, set[object]] = {}
    for sample, label in zip(samples, task, strict=True):
        given.setdefault(sample.token_id, set()).add(label)
    assert all(len(each) == 1 for each in given.values())
    assert {label for each in given.values() for label in each} == {"x", "y"}
    assert task == control_task(labels, samples, Probing())
    assert task != control_task(labels, samples, Probing(seed=1))


def test_an_easy_control_shows_no_selectivity() -> None:
    """Read off the embedding itself, every token's identity is there, and with it any labelling."""
    model = tiny("llama")
    prompts = texts(60)
    each = [["vowel" if c in "aeiou" else "other" for c in f" {p}"] for p in prompts]
    found = probe(model, prompts, each, at=P.Embed, position="all", how=Probing(folds=3))
    assert found.samples == 60 * 6
    assert found.controls is not None
    assert found.accuracy[0] > 0.9
    assert abs(float(found.selectivity[0])) < 0.15


def test_noise_is_read_at_chance_and_results_are_saved(tmp_path: Path) -> None:
    model = tiny("llama")
    prompts = texts(80)
    dice = torch.Generator().manual_seed(5)
    labels = ["heads" if int(i) else "tails" for i in torch.randint(2, (80,), generator=dice)]
    found = probe(model, prompts, labels, how=Probing(control="prompt", penalty=10.0))
    assert found.hooks == tuple(P.ResidPost(i) for i in range(3))
    assert float((found.accuracy - 0.5).abs().max()) < 0.25
    loaded = Probes.load(found.save(tmp_path / "p.json"))
    assert loaded.to_dict() == found.to_dict()
    assert "selectivity" in repr(found)
    assert len(found.to_pandas()) == 3
    figure: Any = found.plot()
    assert len(figure.data) == 2
    assert found.best()[0] in found.hooks


def test_wrong_requests_say_what_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    prompts = [f"{p}!" for p in texts(10)]
    labels = ["a", "b"] * 5
    with pytest.raises(mi.ModelError, match="control task needs different tokens"):
        probe(model, prompts, labels)
    with pytest.raises(mi.ModelError, match="did you mean 'ridge'"):
        probe(model, prompts, labels, how=Probing("rigde"))
    with pytest.raises(mi.ModelError, match="3 labels for 10 samples"):
        probe(model, prompts, labels[:3])
    with pytest.raises(mi.ModelError, match="nothing to tell apart"):
        probe(model, prompts, ["a"] * 10)
    with pytest.raises(mi.ModelError, match="there are 1 of 'b'"):
        probe(model, prompts, ["a"] * 9 + ["b"], how=Probing(control="none"))
    with pytest.raises(mi.ModelError, match="selectivity needs a control task"):
        _ = probe(model, prompts, labels, how=Probing(control="none")).selectivity
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(mi.MIError, match=r"pip install torch-mi\[probing\]"):
        probe(model, prompts, labels, how=Probing(control="none"))
