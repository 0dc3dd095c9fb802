# SPDX-License-Identifier: MIT OR Apache-2.0
"""`torch-mi stoicheia`: what its verbs print and write, and what they refuse."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from torch_mi.analysis.stoicheia.answers import Anatomy, Answers
from torch_mi.analysis.stoicheia.report import Report
from torch_mi.analysis.stoicheia.training import Training
from torch_mi.cli import main as door

Run = Callable[..., tuple[int, str, str]]
VERBS = ("inference", "analysis", "train", "download")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # put back afterwards
    monkeypatch.setenv("TERMINAL_WIDTH", "80")

    def go(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["torch-mi", "stoicheia", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            door.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return go


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_an_example(run: Run, verb: str) -> None:
    code, out, _ = run(verb, "--help")
    assert code == 0
    assert out.count(f"torch-mi stoicheia {verb}") >= 2
    assert max(map(len, out.splitlines())) <= 80


def test_inference(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    code, out, _ = run("inference", "-w", "handcrafted:3", "--samples", 200, "--json", file)
    assert code == 0
    assert "2nd_argmax · hidden size 4, 3 inputs, 32 parameters" in out
    assert "accuracy 1 (0.98115 … 1) on 200" in out
    assert Answers.load(file).samples == 200


def test_train_then_analyse(run: Run, tmp_path: Path) -> None:
    weights, file, page = tmp_path / "m.safetensors", tmp_path / "r.json", tmp_path / "r.html"
    sized = ("--hidden-size", 2, "--seq-len", 2)
    told = ("-t", "2nd_argmax", *sized)
    code, out, err = run(
        "train", *told, "-o", weights, "--steps", 20, "--batch", 64, "--json", file
    )
    assert code == 0, err
    assert "1,280 sequences" in out
    assert Training.load(file).network.hidden_size == 2
    code, out, err = run(
        "analysis", "-w", weights, *told, "--samples", 500, "--probes", 100, "--json", file,
        "--html", page,
    )  # fmt: skip
    assert code == 0, err
    for title in ("standard form", "regions", "without neurons", "what neurons say", "surprise"):
        assert title in out
    assert Report.load(file).samples == 500
    assert "Regions, exactly" in page.read_text()


def test_a_transformer_is_analysed(run: Run, tmp_path: Path) -> None:
    weights, file = tmp_path / "t.safetensors", tmp_path / "t.json"
    told = ("-t", "longest_cycle", "--hidden-size", 2, "--seq-len", 3)
    assert run("train", *told, "-o", weights, "--steps", 2, "--batch", 4)[0] == 0
    code, out, err = run("analysis", "-w", weights, "--json", file)
    assert code == 0, err
    assert "all 27 inputs" in out
    assert len(Anatomy.load(file).tables) == 2


def test_what_is_wrong_is_said_in_one_line(run: Run, tmp_path: Path) -> None:
    for args, said in (
        (("inference", "-w", tmp_path / "no.pth"), "there is no file"),
        (("inference", "-w", "handcrafted:3", "--seq-len", 4), "says inputs 4; the weights have 3"),
        (("inference", "-w", "handcrafted:1"), "n is at least 2"),
        (("download", "cat_2_2"), "no name of the zoo"),
        (
            ("train", "-t", "argmax", "--hidden-size", 2, "--seq-len", 2, "-o", "m.pth"),
            "written as .safetensors",
        ),
    ):
        code, out, err = run(*args)
        assert (code, out) == (2, "")
        assert said in err
        assert err.count("\n") == 1


def test_a_download_in_the_cache_is_not_fetched(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_MI_CACHE", str(tmp_path))
    kept = tmp_path / "algzoo" / f"2nd_argmax_2_2_{1 << 30}_2.pth"
    kept.parent.mkdir()
    kept.write_bytes(b"kept")
    file = tmp_path / "d.json"
    code, out, _ = run("download", "2nd_argmax_2_2", "--json", file)
    assert (code, out.strip()) == (0, str(kept))
    assert json.loads(file.read_text())["path"] == str(kept)
