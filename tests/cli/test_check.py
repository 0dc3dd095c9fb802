# SPDX-License-Identifier: MIT OR Apache-2.0
"""`torch-mi check`: a verdict, its reasons, and an exit code."""

import json
import sys
from pathlib import Path

import pytest

from torch_mi.cli import main


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["torch-mi", *words])
    with pytest.raises(SystemExit) as stopped:
        main.main()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def test_a_model_that_can_be_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "report.json"
    assert run(monkeypatch, "check", "demo", "--json", str(out)) == 0
    said = capsys.readouterr().out
    assert "demo ✓ can be loaded" in said
    assert "model_type llama · read like llama · 1,270,912 parameters" in said
    report = json.loads(out.read_text())
    assert (report["compatible"], report["issues"]) == (True, [])


def test_a_model_that_cannot(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert run(monkeypatch, "check", str(tmp_path)) == 1
    said = capsys.readouterr().out
    assert "✗ cannot be loaded" in said
    assert "in the way" in said
    assert "'bert' is an encoder" in said
    assert run(monkeypatch, "check", str(tmp_path / "absent")) == 2
