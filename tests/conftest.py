# SPDX-License-Identifier: MIT OR Apache-2.0
"""What all tests share: one thread, the same examples every time, annotations checked."""

import gc

import checking
import jaxtyping
import torch
from hypothesis import settings

torch.set_num_threads(1)
jaxtyping.jaxtyped = checking.checked

settings.register_profile("torch-mi", derandomize=True, deadline=None, database=None)
settings.load_profile("torch-mi")


def pytest_collection_finish() -> None:
    """What is imported and collected by now stays; searching it for garbage takes a while."""
    gc.collect()
    gc.freeze()
