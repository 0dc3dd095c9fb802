# SPDX-License-Identifier: MIT OR Apache-2.0
"""A GGUF file: weights under Hugging Face names, a config and a vocabulary, all in one.

The `gguf` package parses it and undoes its block quantisations. A tensor is read, dequantised and
put into the layout that transformers uses only when someone asks for it.
"""

import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from torch_mi.errors import FileError, ModelError, did_you_mean
from torch_mi.families.gguf_config import build_config
from torch_mi.families.gguf_layout import FACTORS, Facts, Part, parts_of
from torch_mi.families.gguf_names import layout_of
from torch_mi.files.weights import Weights

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor

INSTALL = "pip install 'torch-mi[gguf]'"
MAGIC = b"GGUF"
SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
"""What the parts of a model in several files are called."""

PLAIN = {"F32": torch.float32, "F16": torch.float16, "F64": torch.float64, "BF16": torch.bfloat16}
"""Storage types that are kept as they are; all others become float32."""


class Metadata(Mapping[str, object]):
    """What a GGUF file says of itself, each value decoded when it is looked at."""

    def __init__(self, path: Path, reader: "GGUFReader") -> None:
        self._path, self._reader = path, reader
        self._seen = dict[str, object]()

    def __getitem__(self, key: str) -> object:
        if key not in self._seen:
            field = self._reader.fields[key]
            try:
                value: object = field.contents()
            except (UnicodeDecodeError, IndexError, ValueError) as cause:
                raise FileError(f"{self._path} is damaged: {key} cannot be read") from cause
            # a float32 in the file is the number that someone wrote with few digits
            if isinstance(value, float) and field.types[-1].name == "FLOAT32":
                value = float(str(np.float32(value)))
            self._seen[key] = value
        return self._seen[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._reader.fields)

    def __len__(self) -> int:
        return len(self._reader.fields)


class GgufFile(Weights):
    """The model in a `.gguf` file, or in the several files that it was split into."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        readers = [_read(part) for part in _files(self.path)]
        self.metadata: Mapping[str, object] = Metadata(self.path, readers[0])
        self._stored: dict[str, ReaderTensor] = {t.name: t for r in readers for t in r.tensors}
        _check_types(self.path, self._stored)
        shapes = {name: _shape(tensor) for name, tensor in self._stored.items()}
        stretch = [f"{name}.weight" for name in FACTORS if f"{name}.weight" in self._stored]
        factors = {name: _numbers(self._stored[name]) for name in stretch}
        self._facts = Facts(self.path, self.metadata, shapes, factors)
        self._layout = layout_of(self._facts)
        self._parts = parts_of(self._layout, self._facts)
        self._shapes = {name: _made_shape(part, self._facts) for name, part in self._parts.items()}

    def config(self) -> dict[str, object]:
        """What this model's `config.json` would say."""
        return build_config(self._layout, self._facts)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return MappingProxyType(self._shapes)

    def dtypes(self) -> Mapping[str, torch.dtype]:
        return MappingProxyType({name: self._dtype(part) for name, part in self._parts.items()})

    def tensor(self, name: str) -> Tensor:
        if not self._stored:
            raise FileError(f"the weights of {self.path} have been closed")
        if name not in self._parts:
            raise ModelError(f"{self.path} has no tensor {name!r}{did_you_mean(name, self._parts)}")
        part = self._parts[name]
        pieces = [_values(self._stored[stored], part.item) for stored in part.stored]
        return part.make(pieces, self._facts).contiguous()

    def close(self) -> None:
        self._stored.clear()

    def _dtype(self, part: Part) -> torch.dtype:
        kinds = {PLAIN.get(self._stored[name].tensor_type.name) for name in part.stored}
        only = kinds.pop() if len(kinds) == 1 else None
        return torch.float32 if only is None or part.exact else only


def _files(path: Path) -> list[Path]:
    """The file, or all the files that a split model is in."""
    if not path.is_file():
        raise FileError(f"there is no file {path}")
    split = SPLIT.fullmatch(path.name)
    if split is None:
        return [path]
    stem, _, count = split.groups()
    whole = [path.with_name(f"{stem}-{i:05d}-of-{count}.gguf") for i in range(1, int(count) + 1)]
    missing = [part.name for part in whole if not part.is_file()]
    if missing:
        raise FileError(f"{path} is part of a model in {len(whole)} files; {missing[0]} is absent")
    return whole


def _read(path: Path) -> "GGUFReader":
    """The file's header, parsed; nothing else of it is read."""
    try:
        from gguf import GGUFReader  # noqa: PLC0415 - an extra
    except ImportError as cause:
        raise FileError(f"{path} is GGUF, which needs the gguf package: {INSTALL}") from cause
    with path.open("rb") as file:
        magic, version = file.read(4), file.read(4)
    size = path.stat().st_size
    if magic != MAGIC:
        raise FileError(f"{path} is not a GGUF file: it begins with {magic!r}, not {MAGIC!r}")
    if len(version) == len(MAGIC) and struct.unpack("<I", version)[0] == 1:
        raise FileError(f"{path} is GGUF version 1, which is no longer read; convert it again")
    try:
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError, OSError) as cause:
        raise FileError(
            f"{path} is truncated or damaged ({size} bytes): {cause}; fetch it again"
        ) from cause


def _check_types(path: Path, tensors: Mapping[str, "ReaderTensor"]) -> None:
    """Whether every quantisation in the file can be undone."""
    first = {tensor.tensor_type: name for name, tensor in tensors.items()}
    for kind, name in first.items():
        if not _readable(kind):
            known = sorted(each.name for each in type(kind) if _readable(each))
            raise FileError(
                f"{path} stores {name!r} as {kind.name}, which the gguf package cannot "
                f"dequantise; it can {', '.join(known)}"
            )


def _readable(kind: "GGMLQuantizationType") -> bool:
    """Whether the gguf package undoes this quantisation."""
    from gguf import dequantize  # noqa: PLC0415 - an extra
    from gguf.constants import GGML_QUANT_SIZES  # noqa: PLC0415 - an extra

    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8), kind)
    except NotImplementedError:
        return kind.name in PLAIN
    return True


def _shape(tensor: "ReaderTensor") -> tuple[int, ...]:
    """The shape of a stored tensor's values, slowest dimension first."""
    return tuple(reversed([int(size) for size in tensor.shape]))


def _made_shape(part: Part, facts: Facts) -> tuple[int, ...]:
    """The shape of a Hugging Face tensor, computed without reading anything."""
    stored = [facts.shapes[name][0 if part.item is None else 1 :] for name in part.stored]
    try:
        blank = [torch.empty(shape, device="meta") for shape in stored]
        return tuple(part.make(blank, facts).shape)
    except (RuntimeError, ZeroDivisionError) as cause:
        shapes = " and ".join(f"{n} {list(facts.shapes[n])}" for n in part.stored)
        raise ModelError(
            f"{facts.path}: {shapes} does not fit {facts.heads} heads "
            f"({facts.kv_heads} for keys and values): {cause}"
        ) from cause


def _values(tensor: "ReaderTensor", item: int | None) -> Tensor:
    """A stored tensor's numbers, or those of one item along its first dimension."""
    from gguf import dequantize  # noqa: PLC0415 - an extra

    data = cast("np.ndarray[tuple[int, ...], np.dtype[np.generic]]", tensor.data)
    shape = _shape(tensor)
    if item is not None:
        data, shape = data[item], shape[1:]
    kind = tensor.tensor_type.name
    if kind == "BF16":
        return torch.as_tensor(np.array(data)).view(torch.bfloat16).reshape(shape)
    if kind in PLAIN:
        return torch.as_tensor(np.array(data)).reshape(shape)
    return torch.as_tensor(np.array(dequantize(data, tensor.tensor_type))).reshape(shape)


def _numbers(tensor: "ReaderTensor") -> list[float]:
    return cast("list[float]", _values(tensor, None).tolist())  # pyright: ignore[reportUnknownMemberType] - torch's stub
