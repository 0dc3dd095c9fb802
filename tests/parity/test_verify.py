# SPDX-License-Identifier: MIT OR Apache-2.0
"""`mi.verify`: it passes on a faithful checkpoint and says where an unfaithful one departs."""

from pathlib import Path

import pytest
import torch
import transformers

import torch_mi as mi


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = transformers.LlamaConfig(
        vocab_size=61,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_faithful_model_passes(folder: Path, tmp_path: Path) -> None:
    found = mi.verify(mi.MIModel.from_pretrained(folder))
    assert found.passed
    assert len(found.checks) == 5
    assert len(found.checks[0].prompt.split()) == 5, "token ids, where there is no text"
    assert all(check.max_logit_difference < 1e-5 for check in found.checks)
    assert all(check.top10_agreement == 1 and check.first_layer is None for check in found.checks)
    assert mi.Verification.load(found.save(tmp_path / "v.json")).to_dict() == found.to_dict()


def test_an_unfaithful_one_fails_at_its_layer(folder: Path) -> None:
    model = mi.MIModel.from_pretrained(folder)
    with torch.no_grad():
        dict(model.backend.named_parameters())["blocks.1.mlp.down.weight"].mul_(2)
    found = mi.verify(model)
    assert not found.passed
    assert all(check.first_layer == 1 for check in found.checks)


def test_it_says_what_it_needs(folder: Path) -> None:
    with pytest.raises(mi.ModelError, match="transformers loads alike from its folder"):
        mi.verify(mi.MIModel.from_pretrained("tiny:llama"))
    with pytest.raises(mi.ModelError, match="float32"):
        mi.verify(mi.MIModel.from_pretrained(folder, dtype=torch.bfloat16))
