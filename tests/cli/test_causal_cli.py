# SPDX-License-Identifier: MIT OR Apache-2.0
"""`knockout`, `steer` and `trace`: what they print and write, and what they refuse."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from torch_mi.analysis.dose import DoseResponseCurve
from torch_mi.analysis.knockout import AblationResult
from torch_mi.analysis.steering import SteeringResult
from torch_mi.analysis.tracing import CausalTrace
from torch_mi.cli import main as door
from torch_mi.cli.places import numbered
from torch_mi.errors import InterventionError
from torch_mi.sweeps.grid import Grid

Run = Callable[..., tuple[int, str, str]]
TEXT = "The capital of France is"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # put back afterwards
    monkeypatch.setenv("TERMINAL_WIDTH", "80")

    def go(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["torch-mi", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            door.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return go


def test_knockout(run: Run, tmp_path: Path):
    file, page = tmp_path / "k.json", tmp_path / "k.html"
    code, out, _ = run(
        "knockout", TEXT, "--edge=-1:France", "--target", " Paris", "--json", file, "--html", page
    )
    assert code == 0
    assert "-1 → 4 in every layer, every head removed" in out
    assert "·Paris" in out
    assert "layer × head" in out
    found = AblationResult.load(file)
    assert found.kl_divergence() > 1
    data = json.loads(file.read_text())
    assert Grid.from_dict(data["grid"]).values.shape == (6, 8)
    assert data["kl_divergence"] == pytest.approx(found.kl_divergence())
    assert "Attention knockout" in page.read_text()


def test_layers_and_heads_are_chosen(run: Run, tmp_path: Path):
    file = tmp_path / "k.json"
    code, out, _ = run(
        "knockout",
        TEXT,
        "--from",
        -1,
        "--to",
        "of",
        "--layer",
        "1,3-4",
        "--head",
        2,
        "--json",
        file,
    )
    assert code == 0
    assert "-1 → all, all → 3 in layers 1, 3, 4, head 2 removed" in out
    assert AblationResult.load(file).spec.layers == (1, 3, 4)


def test_steer(run: Run, tmp_path: Path):
    file, page = tmp_path / "s.json", tmp_path / "s.html"
    code, out, _ = run(
        "steer", TEXT, "--edge=-1:France", "--set", 0.01, "--doses", "0.1,1,4", "--layer", 0,
        "--json", file, "--html", page,
    )  # fmt: skip
    assert code == 0
    assert "-1 → 4 in layer 0, every head set to 0.01" in out
    assert "→ 0.010" in out
    found = SteeringResult.load(file)
    assert found.steered_attention_mean == pytest.approx(0.01)
    curve = DoseResponseCurve.from_dict(json.loads(file.read_text())["doses"])
    assert [p.scale_factor for p in curve.points] == [0.1, 1, 4]
    assert "Dose and response" in page.read_text()


def test_doses_alone_take_the_middle_layer(run: Run, tmp_path: Path):
    file = tmp_path / "d.json"
    code, out, _ = run("steer", TEXT, "--edge=-1:0", "--doses", "1,2", "--json", file)
    assert code == 0
    assert "in layer 3" in out
    assert DoseResponseCurve.load(file).layer == 3


def test_trace(run: Run, tmp_path: Path):
    file, page = tmp_path / "t.json", tmp_path / "t.html"
    code, out, _ = run(
        "trace", TEXT, "France", "--samples", 2, "--seed", 3, "--json", file, "--html", page
    )
    assert code == 0
    assert "·France*" in out
    assert "the MLPs' output, 2 layers" in out
    found = CausalTrace.load(file)
    assert (found.samples, found.seed, found.subject) == (2, 3, (4,))
    assert found.grid.metric == "probability of ' Paris'"
    assert "Causal tracing" in page.read_text()


def test_lens_reads_several_prompts(run: Run, tmp_path: Path):
    file, page = tmp_path / "l.json", tmp_path / "l.html"
    code, out, _ = run("lens", TEXT, "The dog says", "--json", file, "--html", page)
    assert code == 0
    assert TEXT in out
    assert "·woof" in out
    assert len(json.loads(file.read_text())["results"]) == 2
    assert page.read_text().count('class="plot"') == 2


def test_answers_are_words(run: Run):
    code, out, _ = run("patch", TEXT, "The capital of Italy is", "--at", "every_block")
    assert code == 0
    assert "probability of ·Paris" in out
    assert "mlp_out: layer × pos" in out
    assert max(map(len, out.splitlines())) <= 81


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("knockout", TEXT), "say --edge QUERY:KEY, --from QUERY or --to KEY"),
        (("knockout", TEXT, "--edge", "4"), "'4' is not QUERY:KEY"),
        (("knockout", TEXT, "--edge=-1:Spain"), "no token of"),
        (("knockout", TEXT, "--edge=-1:0", "--layer", "9"), "layer 9 is out of range"),
        (("steer", TEXT, "--edge=-1:0"), "say --scale, --set or --doses"),
        (("steer", TEXT, "--edge=-1:0", "--scale", "1", "--set", "1"), "not both"),
        (("steer", TEXT, "--edge=-1:0", "--doses", "a"), "'a' is not like 0.5,1,2,4"),
        (("steer", TEXT, "--edge=-1:0", "--set", "2"), "something in 0 … 1"),
        (("trace", TEXT, "Spain"), "'Spain' does not occur"),
    ],
)
def test_wrong_use_is_one_line(run: Run, args: tuple[str, ...], said: str):
    code, _, err = run(*args)
    assert code == 2
    assert said in err


def test_numbers():
    assert numbered("layer", "1, 4-6") == (1, 4, 5, 6)
    assert numbered("head", None) is None
    for text in ("x", "3-1", "-1"):
        with pytest.raises(InterventionError, match="--head"):
            numbered("head", text)
