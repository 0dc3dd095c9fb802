# SPDX-License-Identifier: MIT OR Apache-2.0
"""What this machine has: versions, devices, memory, models in the cache."""

import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch

from torch_mi.errors import MIError
from torch_mi.files.hub import cached_models
from torch_mi.memory import available_bytes, resident_bytes

NEEDED = ("torch-mi", "torch", "numpy", "safetensors", "tokenizers", "huggingface_hub", "typer")
OPTIONAL = {
    "plotly": "pictures and pages",
    "kaleido": "pictures as PNG and SVG",
    "pandas": "results as DataFrames",
    "transformers": "verify() and from_hf()",
}


def examine() -> dict[str, object]:
    """Versions, devices, memory, and models, as JSON values."""
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": platform.platform(),
        "packages": {name: _version(name) for name in NEEDED},
        "optional": {name: _version(name) for name in OPTIONAL},
        "devices": list(_devices()),
        "memory": {"available": available_bytes(), "held": resident_bytes()},
        "cache": _cache(),
        "demo": _demo(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> Iterator[dict[str, object]]:
    yield {"device": "cpu", "name": platform.machine(), "threads": torch.get_num_threads()}
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        yield {"device": f"cuda:{index}", "name": name, "free": free, "total": total}
    if torch.backends.mps.is_available():
        yield {"device": "mps", "name": "Metal"}


def _cache() -> dict[str, object]:
    """The Hub's cache on this machine."""
    from huggingface_hub import constants  # noqa: PLC0415 - loads late

    found = cached_models()
    return {
        "folder": str(Path(constants.HF_HUB_CACHE).expanduser()),
        "models": [
            {
                "model_id": model.model_id,
                "revision": model.revision,
                "bytes": sum(f.stat().st_size for f in model.folder.rglob("*") if f.is_file()),
            }
            for model in found
        ],
    }


def _demo() -> dict[str, object]:
    """Whether the packaged model answers."""
    from torch_mi.model import MIModel  # noqa: PLC0415 - loading builds models

    try:
        model = MIModel.from_pretrained("demo", device="cpu")
        answer = model.generate("The capital of France is", max_new_tokens=1).text
    except MIError as problem:
        return {"works": False, "problem": str(problem)}
    return {"works": True, "parameters": model.num_parameters, "answer": answer}
