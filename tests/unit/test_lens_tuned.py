# SPDX-License-Identifier: MIT OR Apache-2.0
"""Tuned lenses in the published format, against their definition."""

import json
from pathlib import Path

import pytest
import torch

import torch_mi as mi
from torch_mi.analysis.lens import LogitLensResult, logit_lens
from torch_mi.analysis.tuned_lens import TunedLens
from torch_mi.errors import FileError
from torch_mi.storage import write_tensors
from torch_mi.testing import tiny

P = mi.HookPoint


def published(folder: Path, *, scale: float = 0.2, bias: bool = True, width: int = 24) -> Path:
    """A lens of three layers, as the tuned-lens package saves it."""
    dice = torch.Generator().manual_seed(0)
    config = {
        "base_model_name_or_path": "a/b", "d_model": width, "num_hidden_layers": 3,
        "bias": bias, "base_model_revision": None, "unembed_hash": "",
        "lens_type": "linear_tuned_lens",
    }  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    state: dict[str, torch.Tensor] = {}
    for i in range(3):
        state[f"{i}.weight"] = scale * torch.randn(width, width, generator=dice)
        if bias:
            state[f"{i}.bias"] = scale * torch.randn(width, generator=dice)
    torch.save(state, folder / "params.pt")
    return folder


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
@pytest.mark.parametrize("bias", [True, False])
def test_every_layer_is_translated_and_the_last_is_not(
    family: str, bias: bool, tmp_path: Path
) -> None:
    model = tiny(family)
    folder = published(tmp_path / "lens", bias=bias)
    lens, state = TunedLens.load(folder), torch.load(folder / "params.pt", weights_only=True)  # noqa: TID251
    cache = model.forward("a cat", mi.HookSpec().capture(P.ResidPre, P.ResidPost(2)))
    found = logit_lens(model, "a cat", tuned=lens, embedding=True, target="q")
    for reading in found.readings:
        into = reading.layer + 1
        x = cache[P.ResidPost(2) if into == 3 else P.ResidPre(into)][0, -1]
        if into < 3:
            x = x + state[f"{into}.weight"] @ x + (state[f"{into}.bias"] if bias else 0)
        logits = model.project_to_vocab(x).detach()
        assert reading.target is not None
        wanted = float(logits[model.token_id("q")])
        assert reading.target.logit == pytest.approx(wanted, abs=1e-4)
        assert reading.predictions[0].token_id == int(logits.argmax())
    assert found.lens == "tuned lens"
    assert "tuned lens" in repr(found)
    assert LogitLensResult.load(found.save(tmp_path / "r.json")).to_dict() == found.to_dict()


def test_a_lens_that_changes_nothing_is_the_logit_lens(tmp_path: Path) -> None:
    model = tiny("llama")
    lens = TunedLens.load(published(tmp_path / "lens", scale=0.0))
    prompts = ["the quick fox", "abc"]
    plain = logit_lens(model, prompts, position="all")
    tuned = logit_lens(model, prompts, position="all", tuned=lens)
    assert [r.readings for r in plain] == [r.readings for r in tuned]


def test_safetensors_are_read_before_anything_else(tmp_path: Path) -> None:
    folder = published(tmp_path / "lens")
    state = torch.load(folder / "params.pt", weights_only=True)  # noqa: TID251
    write_tensors(folder / "params.safetensors", {n: 2 * x for n, x in state.items()})
    lens = TunedLens.load(folder)
    assert torch.equal(lens.weights[1], 2 * state["1.weight"])
    assert lens.made_for == "a/b"


def test_wrong_lenses_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="holds no tuned lens"):
        TunedLens.load(tmp_path)
    folder = published(tmp_path / "lens")
    state = torch.load(folder / "params.pt", weights_only=True)  # noqa: TID251
    write_tensors(folder / "params.safetensors", {n: x for n, x in state.items() if n != "2.bias"})
    with pytest.raises(FileError, match=r"'2\.bias' is amiss"):
        TunedLens.load(folder)
    write_tensors(folder / "params.safetensors", state | {"0.bias": torch.zeros(3)})
    with pytest.raises(FileError, match=r"0\.bias has shape \[3\]"):
        TunedLens.load(folder)
    wide = TunedLens.load(published(tmp_path / "wide", width=5))
    with pytest.raises(mi.ModelError, match="made for a/b, with 3 layers of width 5"):
        logit_lens(tiny("llama"), "abc", tuned=wide)
