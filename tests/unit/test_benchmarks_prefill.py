# SPDX-License-Identifier: MIT OR Apache-2.0
"""The benchmark of whole recurrent models runs, and its sides agree; nothing looks at a time."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import prefill
from benchmarks.pairing import BenchmarkError


@pytest.mark.parametrize("version", ["6", "7"])
def test_every_side_agrees_and_the_results_are_written(version: str, tmp_path: Path) -> None:
    threads, path = torch.get_num_threads(), tmp_path / "rows.json"
    told = ["--quick", "--turns", "1", "--threads", "1", "--version", version, "--json", str(path)]
    assert prefill.main(told) == 0
    torch.set_num_threads(threads)
    rows = json.loads(path.read_text())["rows"]
    assert {(prefill.EVERYTHING, prefill.ALL), (prefill.ALL, prefill.STEPS)} <= {
        (row["ours"], row["peer"]) for row in rows
    }
    assert all(row["bound"] is None for row in rows)


def test_disagreement_is_an_error() -> None:
    right = torch.tensor([1.0, -2.0])
    with pytest.raises(BenchmarkError, match=r"rwkv, last row: logits differ by 0\.0005"):
        prefill.check(prefill.THEIRS_LAST, right * 1.0005, right)
