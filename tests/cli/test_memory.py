# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the verbs say about memory."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from torch_mi import forecasting, loading, rehearsal
from torch_mi.cli import main as door
from torch_mi.forecasting import LoadForecast
from torch_mi.model import MIModel

TINY = "tiny:llama"
CONFIG = Path(loading.__file__).parent / "demo" / "config.json"


@pytest.fixture(autouse=True)
def excepthook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # put back afterwards
    monkeypatch.setenv("TERMINAL_WIDTH", "80")


def go(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["torch-mi", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        door.main()
    return int(ended.value.code or 0)


def test_inspect_says_what_a_model_would_take_without_loading_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder, file = tmp_path / "model", tmp_path / "f.json"
    folder.mkdir()
    shutil.copy(CONFIG, folder)  # and no weights
    words = ("inspect", folder, "--memory", "--json", file, "--device", "cpu")
    assert go(monkeypatch, *words, "--dtype", "bfloat16") == 0
    out = capsys.readouterr().out
    assert "would take" in out
    assert "it fits" in out
    said = LoadForecast.load(file)
    found = MIModel.from_pretrained("demo", device="cpu").memory_footprint()
    assert said.total == found.total // 2
    assert json.loads(file.read_text())["fits"] is True
    assert go(monkeypatch, *words, "--html", tmp_path / "f.html") == 2
    assert "--memory writes no page" in capsys.readouterr().err


RUNS = {
    "logit-lens": ("logit-lens", "a text"),
    "attribute": ("attribute", "a text"),
    "patch": ("patch", "a text", "b text"),
    "heads": ("heads",),
    "generate": ("generate", "a text", "-n", "3"),
}


def little(_device: object) -> int:
    return 1000


@pytest.mark.parametrize("words", RUNS.values(), ids=RUNS.keys())
def test_a_run_that_would_not_fit_is_warned_of_and_tried(
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    named = (TINY,) if words == ("heads",) else ("--model", TINY)
    model = (*named, "--device", "cpu")
    assert go(monkeypatch, *words, *model) == 0
    assert "warning" not in capsys.readouterr().err
    for module in (forecasting, rehearsal):
        monkeypatch.setattr(module, "available_bytes", little)
    assert go(monkeypatch, *words, *model) == 0
    said = capsys.readouterr()
    assert "warning: " in said.err
    assert "1000 B are free" in said.err
    assert "use --dtype bfloat16" in said.err
    assert "warning" not in said.out
    assert go(monkeypatch, *words, *model, "--quiet") == 0
    assert not capsys.readouterr().err
