# SPDX-License-Identifier: MIT OR Apache-2.0
"""A model folder's weights as lazy tensors, and its JSON files.

Nothing is read but the headers until a tensor is asked for, and then it is mapped into memory, not
copied: a page is read when someone looks at it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Protocol, cast, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from torch_mi.errors import FileError, ModelError, did_you_mean
from torch_mi.files.legacy import read_bin
from torch_mi.files.weights import Weights
from torch_mi.memory import human_bytes
from torch_mi.storage import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
BIN_INDEX = "pytorch_model.bin.index.json"
BIN_SINGLE = "pytorch_model.bin"

LENGTH_BYTES = 8
"""What a safetensors file begins with: the length of its header."""

MAX_HEADER = 100_000_000
"""The longest header that safetensors accepts."""

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
}
"""What safetensors headers call each dtype."""

OTHER_FORMATS = {
    "adapter_model.safetensors": "an adapter (LoRA): load its base model with adapter=this folder",
    "adapter_model.bin": "an adapter (LoRA): load its base model with adapter=this folder",
    ".gguf": "GGUF: give the path of the file itself",
    ".npz": "NumPy arrays: save them as safetensors",
    ".pth": "a PyTorch pickle, one of several: give the path of the file itself",
    ".pt": "a PyTorch pickle, one of several: give the path of the file itself",
    ".ckpt": "a training checkpoint: save its state_dict as safetensors",
    ".msgpack": "Flax weights: load them with transformers (from_flax=True) and save_pretrained()",
    ".h5": "TensorFlow weights: load them with transformers (from_tf=True) and save_pretrained()",
    ".onnx": "an ONNX graph: get the weights it was exported from",
}
"""Weights people have that are not read here, and what to do about it."""


NO_MODELS = {
    "adapter_config.json": ": an adapter; load the model it was trained on with adapter= this",
    "model_index.json": ": a diffusers pipeline, which makes images and not text",
    "params.json": ": weights as their makers keep them; get those converted for transformers",
}
"""Files that give away a folder of another kind."""


@dataclass(frozen=True)
class WeightFiles:
    """Which files hold a folder's weights, and which file the index gives each tensor."""

    folder: Path
    names: tuple[str, ...]
    placed: Mapping[str, str]
    legacy: bool


@runtime_checkable
class _Shard(Protocol):
    """One open weight file."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]

    def tensor(self, name: str) -> Tensor: ...


@runtime_checkable
class _Header(Protocol):
    """What a safetensors header says of one tensor."""

    def get_shape(self) -> list[int]: ...
    def get_dtype(self) -> str: ...


@runtime_checkable
class _SafeFile(Protocol):
    """The part of `safetensors.safe_open` used here, typed."""

    def keys(self) -> list[str]: ...
    def get_slice(self, name: str) -> _Header: ...
    def get_tensor(self, name: str) -> Tensor: ...


class _SafetensorsShard:
    """One open `.safetensors` file."""

    def __init__(self, path: Path) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        try:
            self._file = cast("_SafeFile", safe_open(path, framework="pt", device="cpu"))
        except (SafetensorError, OSError) as cause:
            raise FileError(f"cannot read {path}: {_what_is_wrong(path, cause)}") from cause
        for name in self._file.keys():  # noqa: SIM118 - not a mapping
            header = self._file.get_slice(name)
            kind = header.get_dtype()
            if kind not in DTYPES:
                raise FileError(
                    f"{path} stores {name!r} as {kind}, which cannot be read here; "
                    f"readable: {', '.join(DTYPES)}"
                )
            self.dtypes[name] = DTYPES[kind]
            self.shapes[name] = tuple(header.get_shape())

    def tensor(self, name: str) -> Tensor:
        return self._file.get_tensor(name)


class _BinShard:
    """One open `.bin` file."""

    def __init__(self, path: Path) -> None:
        self._tensors = read_bin(path)
        self.shapes = {name: tuple(t.shape) for name, t in self._tensors.items()}
        self.dtypes = {name: t.dtype for name, t in self._tensors.items()}

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name]


class Checkpoint(Weights):
    """The weights in a model folder: shapes from the headers, tensors when asked for.

    `with Checkpoint(folder) as weights: weights.tensor("lm_head.weight")`. Tensors stay good after
    `close()`. They share memory with each other but never with the file: writing into one is safe.
    """

    def __init__(self, folder: str | Path, file: Path | None = None) -> None:
        """The weights of `folder`, or of one `file` in it."""
        self.files = find_weights(folder) if file is None else _alone(file)
        self.folder = self.files.folder
        self._open: dict[str, _Shard] = {}
        self._home: dict[str, str] = {}
        for name in self.files.names:
            path = self.folder / name
            shard = _BinShard(path) if self.files.legacy else _SafetensorsShard(path)
            self._open[name] = shard
            self._enter(name, shard)
        for tensor, name in self.files.placed.items():
            if tensor not in self._open[name].shapes:
                raise FileError(
                    f"the index of {self.folder} says that {tensor!r} is in {name}, and it is not"
                    f"{did_you_mean(tensor, self._open[name].shapes)}"
                )

    def _enter(self, name: str, shard: _Shard) -> None:
        """Note where each tensor lies; two files may not both have it."""
        for tensor in shard.shapes:
            if tensor in self._home:
                raise FileError(
                    f"{self.folder} has {tensor!r} twice, in {self._home[tensor]} and in {name}"
                )
            self._home[tensor] = name

    def _shard(self, name: str) -> _Shard:
        if not self._open:
            raise FileError(f"the weights of {self.folder} have been closed")
        if name not in self._home:
            raise ModelError(
                f"{self.folder} has no tensor {name!r}{did_you_mean(name, self._home)}"
            )
        return self._open[self._home[name]]

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape, from the headers."""
        return MappingProxyType({n: self._shard(n).shapes[n] for n in self._home})

    def dtypes(self) -> Mapping[str, torch.dtype]:
        """Every tensor's dtype as stored, from the headers."""
        return MappingProxyType({n: self._shard(n).dtypes[n] for n in self._home})

    def tensor(self, name: str) -> Tensor:
        """One tensor, mapped and not copied."""
        return self._shard(name).tensor(name)

    def close(self) -> None:
        """Let the files go."""
        self._open.clear()


PICKLES = (".pth", ".pt")
"""Endings of weights as their makers saved them; read as tensors only."""


def _alone(file: Path) -> WeightFiles:
    """One file that holds all weights."""
    return WeightFiles(file.parent, (file.name,), {}, file.suffix in PICKLES)


def find_weights(folder: str | Path) -> WeightFiles:
    """The weight files of a folder, all present: safetensors before `.bin` before one `.pth`."""
    folder = _existing(folder)
    for index, single in ((INDEX, SINGLE), (BIN_INDEX, BIN_SINGLE)):
        legacy = single == BIN_SINGLE
        if (folder / index).is_file():
            placed = _read_index(folder, index)
            return WeightFiles(folder, tuple(sorted(set(placed.values()))), placed, legacy)
        if (folder / single).is_file():
            return WeightFiles(folder, (single,), {}, legacy)
    if (alone := _only_pickle(folder)) is not None:
        return _alone(alone)
    raise FileError(
        f"{folder} has no weights: looked for {SINGLE}, {INDEX}, {BIN_SINGLE} and {BIN_INDEX}; "
        f"{_contents(folder)}{_advice(folder)}"
    )


def _only_pickle(folder: Path) -> Path | None:
    """The one `.pth` of a folder, if it has just one."""
    found = [path for path in folder.iterdir() if path.suffix in PICKLES]
    return found[0] if len(found) == 1 else None


def has_weights(folder: Path, file: Path | None = None) -> bool:
    """Whether a folder has weights in a format that `Checkpoint` reads."""
    known = (INDEX, SINGLE, BIN_INDEX, BIN_SINGLE)
    named = file is not None or any((folder / name).is_file() for name in known)
    return named or (folder.is_dir() and _only_pickle(folder) is not None)


def read_config(folder: str | Path) -> dict[str, object]:
    """The folder's `config.json`."""
    folder = _existing(folder)
    if not (folder / "config.json").is_file():
        kind = next((what for name, what in NO_MODELS.items() if (folder / name).is_file()), "")
        raise FileError(f"{folder} has no config.json; {_contents(folder)}{kind}")
    return read_json(folder / "config.json")


def read_generation_config(folder: str | Path) -> dict[str, object] | None:
    """The folder's `generation_config.json`, or None if it has none."""
    path = _existing(folder) / "generation_config.json"
    return read_json(path) if path.is_file() else None


def _existing(folder: str | Path) -> Path:
    folder = Path(folder).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise FileError(f"{folder} is a file; give the folder that holds it")
    raise FileError(f"there is no folder {folder}")


def _contents(folder: Path) -> str:
    """What a folder holds, for an error."""
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())
    return f"it holds {_first(names)}" if names else "it is empty"


def _first(names: list[str], most: int = 12) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def _advice(folder: Path) -> str:
    """What to do with weights in a format that is not read here."""
    for path in sorted(folder.iterdir()):
        for ending, advice in OTHER_FORMATS.items():
            if path.name.endswith(ending):
                return f"; {path.name} is {advice}"
        if path.suffix == ".safetensors":
            return f"; if {path.name} holds the model's weights, name it {SINGLE}"
    return ""


def _read_index(folder: Path, index: str) -> dict[str, str]:
    """The index's file for each tensor, with every file inside the folder and present."""
    table = read_json(folder / index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise FileError(f"{folder / index} has no weight_map from tensors to files")
    placed: dict[str, str] = {}
    for tensor, name in cast("dict[str, object]", table).items():
        if not isinstance(name, str) or not _stays_inside(name):
            raise FileError(
                f"{folder / index} places {tensor!r} in {name!r}, which is not a file in its folder"
            )
        placed[tensor] = name
    shards = sorted(set(placed.values()))
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise FileError(
            f"{folder} lacks {_first(missing)}: "
            f"{len(shards) - len(missing)} of the {len(shards)} weight files that {index} names "
            "are present"
        )
    return placed


def _stays_inside(name: str) -> bool:
    """Whether a file name from an index cannot lead out of the folder."""
    windows = PureWindowsPath(name)
    rooted = PurePosixPath(name).is_absolute() or windows.drive or windows.root
    return bool(name) and not rooted and ".." not in windows.parts


def _what_is_wrong(path: Path, cause: Exception) -> str:
    """Why a safetensors file cannot be opened, from its first bytes and its size."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            head = file.read(length) if length <= size - LENGTH_BYTES else b""
    except OSError:
        return str(cause)
    if not head:
        if size > LENGTH_BYTES and 0 < length < MAX_HEADER:
            return f"it is truncated: {size} bytes, less than its header of {length} bytes"
        return f"it is not a safetensors file, or is damaged ({size} bytes)"
    try:
        header = cast("dict[str, dict[str, list[int]]]", json.loads(head))
        ends = [entry["data_offsets"][1] for n, entry in header.items() if n != "__metadata__"]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return f"it is not a safetensors file, or is damaged ({size} bytes): {cause}"
    expected = LENGTH_BYTES + length + max(ends, default=0)
    if size < expected:
        return (
            f"it is truncated: {size} bytes ({human_bytes(size)}) of {expected} "
            f"({human_bytes(expected)}); fetch it again"
        )
    return f"it is damaged ({size} bytes): {cause}"
