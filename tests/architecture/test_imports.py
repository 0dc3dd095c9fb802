# SPDX-License-Identifier: MIT OR Apache-2.0
"""Floors hold, and nothing is imported before it is used."""

import subprocess
import sys
from pathlib import Path

from tests.architecture import source

HEAVY = (
    "transformers",
    "huggingface_hub",
    "tokenizers",
    "datasets",
    "pandas",
    "plotly",
    "IPython",
    "rich",
    "typer",
    "torch._dynamo",
    "sympy",
)


def loaded_after(program: str) -> set[str]:
    """The modules that a program of its own has imported at its end."""
    ran = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(ran.stdout.split())


def test_the_package_costs_nothing() -> None:
    loaded = loaded_after("import torch_mi")
    assert "torch_mi" in loaded
    assert not loaded & {"torch", "numpy", *HEAVY}


def test_the_model_costs_torch() -> None:
    loaded = loaded_after("import torch_mi.model, torch_mi.generate, torch_mi.loading")
    assert "torch" in loaded
    assert not loaded & set(HEAVY)


def test_running_a_model_costs_nothing_more() -> None:
    """Nor does making one: building on the meta device may import half of torch."""
    loaded = loaded_after(
        "import torch_mi as mi\n"
        "from torch_mi.testing import tiny\n"
        "model = tiny('gemma2')\n"
        "spec = mi.HookSpec().capture('blocks.*.attn.hook_pattern')\n"
        "assert model.forward([1, 2, 3], spec, grad=True).manifest"
    )
    assert not loaded & (set(HEAVY) - {"tokenizers"})


def test_every_floor_stands_on_those_below() -> None:
    tool = Path(sys.executable).with_name("lint-imports")
    ran = subprocess.run(
        [tool, "--no-cache"], cwd=source.ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout
    assert "0 broken" in ran.stdout
