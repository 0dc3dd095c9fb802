# SPDX-License-Identifier: MIT OR Apache-2.0
"""`pytorch_model.bin`, the older weight format: read as tensors only, never as code."""

import zipfile
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 - only the name of what torch.load raises
from typing import cast

import torch
from torch import Tensor

from torch_mi.errors import FileError


def read_bin(path: Path) -> dict[str, Tensor]:
    """The named tensors in a `.bin` file, memory-mapped where the format allows it."""
    try:
        mapped = zipfile.is_zipfile(path)  # files older than torch 1.6 cannot be mapped
        loaded: object = torch.load(  # noqa: TID251 - the one place, and tensors only
            path, map_location="cpu", weights_only=True, mmap=mapped
        )
    except UnpicklingError as cause:
        raise FileError(
            f"{path} is damaged, or holds more than tensors; nothing else is ever run from a "
            "weight file: convert it to safetensors where you trust it"
        ) from cause
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as cause:
        raise FileError(f"{path} is not a readable PyTorch weight file: {cause}") from cause
    return _tensors(path, loaded)


def _tensors(path: Path, loaded: object) -> dict[str, Tensor]:
    """What was loaded, if it is a plain mapping from names to tensors."""
    if not isinstance(loaded, dict):
        raise FileError(f"{path} holds a {type(loaded).__name__}, not named tensors")
    tensors: dict[str, Tensor] = {}
    for name, value in cast("dict[object, object]", loaded).items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise FileError(
                f"{path} holds a {type(value).__name__} under {name!r}, not only named tensors; "
                "save the model's own state_dict()"
            )
        tensors[name] = value
    return tensors
