# SPDX-License-Identifier: MIT OR Apache-2.0
"""`state`: what it prints and writes, and what it refuses."""

import json
import sys
from pathlib import Path

import pytest

from torch_mi.analysis.effective import EffectiveAttention
from torch_mi.analysis.state_norms import StateNorms
from torch_mi.analysis.states import StateAblationResult
from torch_mi.cli import main as door
from torch_mi.sweeps.grid import Grid


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: object
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # put back afterwards
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    monkeypatch.setattr(sys, "argv", ["torch-mi", "state", *map(str, args)])
    with pytest.raises(SystemExit) as ended:
        door.main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_state(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    file, page = tmp_path / "s.json", tmp_path / "s.html"
    words = ("a cat.", "-m", "tiny:rwkv7", "--layer", "0,2", "--head", "1-2", "--pos", "c")
    more = ("--target", "a", "--form", "relu_l1", "--json", file, "--html", page)
    code, out, err = run(monkeypatch, capsys, *words, *more)
    assert code == 0, err
    for said in ("norm of the state", "effective attention of .", "layer × pos", "what c (3)"):
        assert said in out
    data = json.loads(file.read_text())
    assert StateNorms.from_dict(data["norms"]).layers == (0, 2)
    weights = EffectiveAttention.from_dict(data["attention"])
    assert weights.patterns.shape == (2, 2, 7, 7)
    assert weights.kind == "relu_l1"
    assert Grid.from_dict(data["knockouts"]).values.shape == (2, 7)
    assert StateAblationResult.from_dict(data["tokens"][0]).spec.positions == (3,)
    assert "Recurrent state" in page.read_text()


def test_transformers_have_no_state(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    code, _, err = run(monkeypatch, capsys, "a cat.", "-m", "tiny:llama")
    assert code == 2
    assert "tiny:llama has no recurrent state" in err
