# SPDX-License-Identifier: MIT OR Apache-2.0
"""The benchmark of recurrences runs, and its sides agree; nothing here looks at a time."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import recurrences
from benchmarks.pairing import BenchmarkError


def test_every_side_agrees_and_the_results_are_written(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    path = tmp_path / "rows.json"
    assert recurrences.main(["--quick", "--turns", "1", "--threads", "1", "--json", str(path)]) == 0
    torch.set_num_threads(threads)
    rows = json.loads(path.read_text())["rows"]
    assert {row["case"] for row in rows} == {f"recurrence, {c}" for c in recurrences.CASES}
    assert recurrences.STEPS in {row["peer"] for row in rows}
    assert all(row["bound"] is None for row in rows)


def test_disagreement_is_an_error() -> None:
    one = recurrences.contest("rwkv6", recurrences.TINY, 9)

    def right() -> Tensor:
        return recurrences.ours(one)

    def wrong() -> Tensor:
        return 1.001 * right()

    with pytest.raises(BenchmarkError, match=r"token by token and torch-mi differ by 0\.001"):
        recurrences.check(one, {recurrences.STEPS: right, recurrences.OURS: wrong})
