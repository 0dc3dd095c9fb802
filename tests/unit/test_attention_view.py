# SPDX-License-Identifier: MIT OR Apache-2.0
"""Attention patterns of prompts of any length are those of each prompt alone."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import torch_mi as mi
from torch_mi.analysis.attention import AttentionPatterns, attention, attentions
from torch_mi.testing import tiny

P = mi.HookPoint


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "mixtral", "gemma2", "olmo2"])
def test_patterns_are_those_of_each_prompt_alone(family: str) -> None:
    model = tiny(family)
    prompts = ["the quick fox", "abc", "z"]
    found = attentions(model, prompts, layers=[2, 0], heads=[0, 2])
    for each, prompt in zip(found, prompts, strict=True):
        cache = model.forward(prompt, mi.HookSpec().capture(P.AttnPattern))
        wanted = torch.stack([cache[P.AttnPattern(i)][0, [0, 2]] for i in (2, 0)])
        assert torch.allclose(each.patterns, wanted, atol=1e-5)
        assert torch.allclose(each.patterns.sum(-1), torch.ones(2, 2, len(each.tokens)), atol=1e-5)
        assert each.tokens == tuple(model.to_str_tokens(prompt))
    whole = attention(model, "abc")
    assert whole.patterns.shape == (3, model.num_heads, 4, 4)


def test_questions_about_a_pattern() -> None:
    """Two heads: one looks everywhere alike, one mostly at itself."""
    found = attention(tiny("llama"), "abc", layers=1, heads=[0, 1])
    patterns = torch.stack([torch.full((4, 4), 0.25), torch.eye(4) * 0.6 + 0.1])[None]
    made = AttentionPatterns(
        found.model_id, found.prompt, found.token_ids, found.tokens, found.special,
        (1,), (0, 1), patterns, found.manifest,
    )  # fmt: skip
    assert made.from_position(1, 0) == pytest.approx([0.475, 0.175, 0.175, 0.175])
    assert made.to_position(1, 0) == pytest.approx([0.475, 0.175, 0.175, 0.175])
    assert made.top(1, 0, 2)[0] == (0, pytest.approx(0.475))
    assert [place for place, _ in made.top(1, 0, 100)] == [0, 1, 2, 3]
    assert made.from_position(1, -1, head=0) == [0.25] * 4
    with pytest.raises(mi.ModelError, match="out of range"):
        made.from_position(1, 4)
    with pytest.raises(mi.ModelError, match=r"layer 0 was not looked at: layers \[1\]"):
        made.of(0)


def test_results_are_saved_whole_and_shown(tmp_path: Path) -> None:
    model = mi.MIModel.from_pretrained("demo")
    found = attention(model, "The capital of France is")
    loaded = AttentionPatterns.load(found.save(tmp_path / "a.json"))
    assert loaded.to_dict() == found.to_dict()
    assert torch.equal(loaded.patterns, found.patterns)
    assert "looks most at" in repr(found)
    figure: Any = found.plot()
    assert len(figure.layout.updatemenus[0].buttons) == 48
    assert len(attention(model, "The cat", layers=0, heads=3).to_pandas()) == 9


def test_wrong_requests_say_what_is_right() -> None:
    model = tiny("llama")
    with pytest.raises(mi.ModelError, match=r"layers=3 is out of range: layers are 0 … 2"):
        attention(model, "abc", layers=3)
    with pytest.raises(mi.ModelError, match="heads=\\[-1\\] is out of range"):
        attention(model, "abc", heads=[-1])
    with pytest.raises(mi.ModelError, match="one prompt, got 2"):
        attention(model, ["abc", "de"])


def test_the_verb_says_and_writes_what_the_function_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torch_mi.cli.main import main  # noqa: PLC0415

    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    file, page = tmp_path / "a.json", tmp_path / "a.html"
    said = ["The cat", "A dog is", "--layer", "2", "--head", "1", "--head", "3"]
    monkeypatch.setattr(
        sys, "argv", ["torch-mi", "attention", *said, "--json", str(file), "--html", str(page)]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "looks most at" in capsys.readouterr().out
    written = json.loads(file.read_text())["results"]
    model = mi.MIModel.from_pretrained("demo")
    for saved, prompt in zip(written, ["The cat", "A dog is"], strict=True):
        found = attention(model, prompt, layers=2, heads=[1, 3])
        assert found.prompt == prompt
        assert torch.allclose(torch.tensor(saved["patterns"]), found.patterns, atol=1e-5)
    assert "A dog is" in page.read_text()
