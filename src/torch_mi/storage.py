# SPDX-License-Identifier: MIT OR Apache-2.0
"""Writing files so that nothing is ever half-written, and reading them so that errors name them."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from torch import Tensor

from torch_mi.errors import FileError


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as cause:
        raise FileError(f"cannot write {path}: {cause}") from cause
    os.close(handle)
    scratch = Path(name)
    try:
        write(scratch)
        scratch.chmod(0o644)
        scratch.replace(path)
    except OSError as cause:
        raise FileError(f"cannot write {path}: {cause}") from cause
    finally:
        scratch.unlink(missing_ok=True)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` as UTF-8, atomically."""
    return write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, value: object) -> Path:
    """Write `value` as indented JSON, atomically; NaN and infinities are refused."""
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as cause:
        raise FileError(f"cannot write {path} as JSON: {cause}") from cause
    return write_text(path, text + "\n")


def read_json(path: str | Path) -> dict[str, object]:
    """The JSON object in `path`."""
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileError(f"there is no file {path}") from None
    except OSError as cause:
        raise FileError(f"cannot read {path}: {cause}") from cause
    except (json.JSONDecodeError, UnicodeDecodeError) as cause:
        raise FileError(f"{path} is not valid JSON: {cause}") from cause
    if not isinstance(value, dict):
        raise FileError(f"{path} holds a JSON {type(value).__name__}, not an object")
    return cast("dict[str, object]", value)


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> Path:
    """Write named tensors as safetensors, atomically."""
    from safetensors.torch import save  # noqa: PLC0415 - only when something is saved

    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    return write_atomically(path, lambda p: p.write_bytes(save(plain)))


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The named tensors in a safetensors file."""
    from safetensors import SafetensorError  # noqa: PLC0415
    from safetensors.torch import load  # noqa: PLC0415

    try:
        return load(Path(path).read_bytes())
    except FileNotFoundError:
        raise FileError(f"there is no file {path}") from None
    except (SafetensorError, OSError) as cause:
        raise FileError(f"{path} is not a readable safetensors file: {cause}") from cause
