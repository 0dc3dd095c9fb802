# SPDX-License-Identifier: MIT OR Apache-2.0
"""The examples run, and print what their README says they print."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

import torch_mi as mi
from examples import indirect_object, tour
from torch_mi.analysis.movers import Movers
from torch_mi.sweeps.grid import Grid

README = Path(__file__).parents[2] / "examples" / "README.md"
STORED = re.compile(r"^## (\S+)\n\n```text\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"([+-]?\d+\.\d+(?:e-?\d+)?)")
MAINS: dict[str, Callable[[mi.MIModel], object]] = {
    "tour.py": tour.main,
    "indirect_object.py": indirect_object.main,
}


def same(ours: str, stored: str) -> bool:
    """Whether two outputs are the same, but for the last places of numbers."""
    here, there = (NUMBER.split(" ".join(text.split())) for text in (ours, stored))
    if here[::2] != there[::2]:
        return False
    pairs = zip(here[1::2], there[1::2], strict=True)
    return all(float(a) == pytest.approx(float(b), rel=0.02, abs=0.02) for a, b in pairs)


def test_every_example_has_its_output_in_the_readme():
    files = {path.name for path in README.parent.glob("*.py")}
    assert files == set(MAINS) == set(dict(STORED.findall(README.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("name", MAINS)
def test_examples_print_what_the_readme_says(name: str, capsys: pytest.CaptureFixture[str]):
    made = MAINS[name](mi.MIModel.from_pretrained("demo", device="cpu"))
    if name == "indirect_object.py":
        check_movers(*cast("tuple[Movers, Grid, Grid]", made))
    stored = dict(STORED.findall(README.read_text(encoding="utf-8")))[name]
    ours = capsys.readouterr().out
    assert same(ours, stored), ours
    assert not same(ours, stored.replace("0", "7"))


def check_movers(found: Movers, carried: Grid, cut: Grid) -> None:
    """The heads known as the demo model's name movers are found, and are worth the lead."""
    best = {(layer, head) for layer, head, _ in found.best(indirect_object.MOVERS)}
    assert best == {(2, 2), (2, 3), (3, 2), (3, 3), (4, 0), (4, 2), (4, 3)}
    assert float(cut.values[0]) < 0.2 * cut.baseline < float(cut.values[1:].min())
    assert carried.reference is not None
    assert carried.reference > 0 > carried.baseline
