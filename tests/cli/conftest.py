# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the tests of the command line need."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("TORCH_MI_SHARED", ROOT / "../shared"))


@pytest.fixture(scope="session")
def stories() -> Path:
    """A small model that writes children's stories."""
    folder = SHARED / "data" / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"there is no model in {folder}")
    return folder
