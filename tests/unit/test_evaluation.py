# SPDX-License-Identifier: MIT OR Apache-2.0
"""Losses against their definitions; the demo model passes where a random one fails."""

from pathlib import Path

import pytest
import torch

import torch_mi as mi
from torch_mi.analysis.evaluation import InductionLoss, Sanity, induction_loss, sanity_check
from torch_mi.analysis.heads import repeated
from torch_mi.testing import tiny


@pytest.fixture(scope="module")
def demo() -> mi.MIModel:
    return mi.MIModel.from_pretrained("demo")


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "mixtral", "gemma2"])
def test_the_induction_loss_is_its_definition(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    found = induction_loss(model, length=5, repeats=3, seed=4)
    tokens, start = repeated(model, 5, 3, 4)
    every: list[list[float]] = []
    for row in tokens:
        logits = model.forward(row).output[0]
        every.append(
            [
                float(torch.nn.functional.cross_entropy(logits[at - 1], row[at]))
                for at in range(1, len(row))
            ]
        )
    expected = torch.tensor(every).mean(0)
    assert start == 1
    assert torch.allclose(found.losses, expected, atol=1e-5)
    assert found.first == pytest.approx(float(expected[:5].mean()))
    assert found.second == pytest.approx(float(expected[6:].mean()))
    loaded = InductionLoss.load(found.save(tmp_path / "i.json"))
    assert loaded.to_dict() == found.to_dict()
    table = found.to_pandas()
    assert list(table["showing"]) == [1] * 5 + [2] * 5
    assert list(table["token"]) == list(range(5)) * 2


def test_the_demo_model_foretells_what_it_has_seen(demo: mi.MIModel) -> None:
    found = induction_loss(demo)
    assert found.gain > 5
    assert found.second < 1
    assert "second time" in repr(found)
    assert found.plot().data


def test_a_trained_model_is_sane_and_a_random_one_is_not(demo: mi.MIModel, tmp_path: Path) -> None:
    found = sanity_check(demo)
    assert found.passed
    assert Sanity.load(found.save(tmp_path / "s.json")).to_dict() == found.to_dict()
    assert "failed" not in repr(found)
    random = sanity_check(tiny("llama"))
    assert not random.passed
    failed = [item.name for item in random.items if not item.passed]
    assert all(name.startswith(("loss on", "the same")) for name in failed), "it is only untrained"
    assert "failed" in repr(random)
    assert len(random.to_pandas()) == len(random.items)
    assert random.plot().data


def test_a_broken_model_is_found(demo: mi.MIModel) -> None:
    model = mi.MIModel.from_pretrained("demo")
    dict(model.backend.named_parameters())["norm.weight"].data.fill_(float("nan"))
    failed = {item.name for item in sanity_check(model).items if not item.passed}
    assert "logits that are not finite" in failed
    assert "last layer read again" in failed


def test_wrong_requests_say_what_is_right(demo: mi.MIModel) -> None:
    with pytest.raises(mi.ModelError, match="at least 2"):
        induction_loss(demo, length=1)
    with pytest.raises(mi.ModelError, match="says too little"):
        sanity_check(demo, "the")
