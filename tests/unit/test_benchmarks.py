# SPDX-License-Identifier: MIT OR Apache-2.0
"""The benchmarks run, and both sides of each agree; nothing here looks at a time."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import run, running
from benchmarks.pairing import SMOKE, BenchmarkError, Pair, Ratio, Times, race, rows
from benchmarks.peers import TINY, Peers, agree, gather

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Peers:
    return gather(TINY, tmp_path_factory.mktemp("peers"))


@pytest.mark.parametrize("case", ["forward", "capture", "residual", "generate"])
def test_case_runs_and_its_sides_agree(case: str, peers: Peers) -> None:
    threads = torch.get_num_threads()
    found = run.RUNNING[case](peers, running.Setting(16, 1, SMOKE))
    assert found[0].peer in {"torch-mi", "transformers"}
    assert all(row.value > 0 and row.peer_value > 0 and row.ratio.low > 0 for row in found)
    assert torch.get_num_threads() == threads


def test_disagreement_is_an_error(peers: Peers) -> None:
    logits = peers.ours(peers.tokens(8)).output
    agree("the same", logits, logits + 5e-5)
    with pytest.raises(BenchmarkError, match=r"differ by 0\.001"):
        agree("logits", logits, logits + 1e-3)
    with pytest.raises(BenchmarkError, match="different shapes"):
        agree("logits", logits, logits[:, 1:])
    with pytest.raises(BenchmarkError, match="differ by nan"):
        agree("logits", logits, logits * torch.nan)


def test_turns_are_interleaved_and_start_with_each_in_turn() -> None:
    order: list[str] = []
    works = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    times = race(works, SMOKE)
    assert order == ["a", "b", "a", "b", "b", "a"]
    assert [len(t.wall) for t in times.values()] == [2, 2]


def test_ratio_is_the_median_of_the_turns() -> None:
    times = {"a": Times([1.0, 4.0, 9.0], [1.0] * 3), "b": Times([1.0, 2.0, 3.0], [2.0] * 3)}
    (row,) = rows("case", "setting", times, [Pair("a", "b", 1.5), Pair("a", "absent")])
    assert row.ratio == Ratio(2.0, 1.0, 3.0)
    assert row.cpu_ratio == Ratio(0.5, 0.5, 0.5)
    assert (row.value, row.peer_value, row.verdict) == (4e3, 2e3, "above")


def test_command_line_writes_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(options: run.Options, scratch: Path) -> list[Any]:
        assert options.cases == ("forward",)
        assert scratch.is_dir()
        times = {"torch-mi": Times([1.0], [1.0]), "transformers": Times([2.0], [2.0])}
        return rows("forward", "16 tokens", times, [Pair("torch-mi", "transformers", 1.0)])

    monkeypatch.setattr(run, "measure", measured)
    path = tmp_path / "results.json"
    assert run.main(["--only", "forward", "--json", str(path)]) == 0
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["rows"][0]["ratio"]["median"] == 0.5
    assert written["rows"][0]["verdict"] == "within"
    assert written["machine"]["versions"]["torch"]
    assert "forward" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "forwards"], "no benchmark is named 'forwards'; did you mean"),
        (["--threads", "0"], "at least 1"),
    ],
)
def test_wrong_command_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(arguments) == 1
    assert message in capsys.readouterr().err
