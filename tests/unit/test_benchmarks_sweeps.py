# SPDX-License-Identifier: MIT OR Apache-2.0
"""The benchmark of sweeps runs, and its sides agree; nothing here looks at a time."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import attribution, sweeps
from benchmarks.pairing import BenchmarkError

pytest.importorskip("transformers")


def test_every_side_agrees_and_the_results_are_written(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    path = tmp_path / "rows.json"
    assert sweeps.main(["--quick", "--turns", "1", "--threads", "1", "--json", str(path)]) == 0
    torch.set_num_threads(threads)
    rows = json.loads(path.read_text())["rows"]
    assert {row["case"] for row in rows} == {
        "attribution patching",
        *(f"patching, {case}" for case in sweeps.GRIDS),
    }
    assert {row["peer"] for row in rows} >= {sweeps.BY_HAND, sweeps.NAIVE, attribution.PLAIN}
    assert all(row["value"] > 0 and row["peer_value"] > 0 for row in rows)


def test_disagreement_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = sweeps.contest("z", sweeps.TINY, sweeps.gather(sweeps.TINY, tmp_path))
    right = sweeps.by_hand(one)

    def wrong(_: sweeps.Contest) -> torch.Tensor:
        return right + 0.001

    monkeypatch.setattr(sweeps, "by_hand", wrong)
    with pytest.raises(BenchmarkError, match=r"torch-mi and by hand differ by 0\.001"):
        sweeps.check(one)
