# SPDX-License-Identifier: MIT OR Apache-2.0
"""A GGUF file: weights under Hugging Face names, a config and a vocabulary, all in one.

The `gguf` package undoes its block quantisations. A tensor is read, dequantised and
put into the layout that transformers uses only when someone asks for it.
"""

import re
from collections.abc import Mapping
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
from torch_mi.files.gguf_header import Stored, read_header
from torch_mi.files.weights import Weights

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
"""What the parts of a model in several files are called."""

PLAIN = {"F32": torch.float32, "F16": torch.float16, "F64": torch.float64, "BF16": torch.bfloat16}
"""Storage types that are kept as they are; all others become float32."""


class GgufFile(Weights):
    """The model in a `.gguf` file, or in the several files that it was split into."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        headers = [read_header(part) for part in _files(self.path)]
        self.metadata: Mapping[str, object] = headers[0].values
        self._stored = {name: t for header in headers for name, t in header.tensors.items()}
        _check_types(self.path, self._stored)
        shapes = {name: tensor.shape for name, tensor in self._stored.items()}
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

    def __enter__(self) -> "GgufFile":  # noqa: PYI034 - beartype cannot check Self here
        return self

    def _dtype(self, part: Part) -> torch.dtype:
        kinds = {PLAIN.get(self._stored[name].kind.name) for name in part.stored}
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


def _check_types(path: Path, tensors: Mapping[str, Stored]) -> None:
    """Whether every quantisation in the file can be undone."""
    first = {tensor.kind: name for name, tensor in tensors.items()}
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


def _values(tensor: Stored, item: int | None) -> Tensor:
    """A stored tensor's numbers, or those of one item along its first dimension."""
    from gguf import dequantize  # noqa: PLC0415 - an extra

    data, shape = tensor.data, tensor.shape
    if item is not None:
        data, shape = data[item], shape[1:]
    plain = PLAIN.get(tensor.kind.name)
    if plain is not None:
        return torch.as_tensor(np.array(data)).view(plain).reshape(shape)
    return torch.as_tensor(np.array(dequantize(data, tensor.kind))).reshape(shape)


def _numbers(tensor: Stored) -> list[float]:
    return cast("list[float]", _values(tensor, None).tolist())  # pyright: ignore[reportUnknownMemberType] - torch's stub
