# SPDX-License-Identifier: MIT OR Apache-2.0
"""The header of a GGUF file: its metadata, and where each tensor lies.

The gguf package has a reader too, which makes several arrays for every token of a vocabulary: ten
seconds and some hundred megabytes where this takes less than one.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from torch_mi.errors import FileError

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

INSTALL = "pip install 'torch-mi[gguf]'"
MAGIC = b"GGUF"
VERSIONS = (2, 3)
FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""How `struct` spells each kind of number."""

FLOAT32, STRING, ARRAY = 6, 8, 9
MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class Stored:
    """One tensor as it lies in the file."""

    kind: "GGMLQuantizationType"
    shape: tuple[int, ...]
    """Of its values, the slowest dimension first."""
    data: NDArray[np.uint8]
    """Its bytes [... bytes], mapped and not read."""


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself."""

    values: dict[str, object]
    tensors: dict[str, Stored]


class Cursor:
    """A place in a file; reading past its end is a `ValueError`."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def numbers(self, forms: str) -> tuple[int | float | bool, ...]:
        """Numbers, one for each letter of `forms`."""
        form = f"<{forms}"
        try:
            found = struct.unpack_from(form, self.data, self.at)
        except struct.error as cause:
            raise ValueError(f"it ends within its header, at byte {self.at}") from cause
        self.at += struct.calcsize(form)
        return found

    def count(self, form: str = "Q") -> int:
        """A whole number, no larger than the file."""
        found = int(self.numbers(form)[0])
        if found > len(self.data):
            raise ValueError(f"it counts {found} of something at byte {self.at}")
        return found

    def text(self) -> str:
        """A string, after its length."""
        stop = self.count() + self.at
        if stop > len(self.data):
            raise ValueError(f"it ends within a string, at byte {self.at}")
        found = self.data[self.at : stop].decode()
        self.at = stop
        return found

    def value(self, kind: int) -> object:
        """A value of any kind."""
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            inner, count = self.count("I"), self.count()
            if inner in FORMS:
                return list(self.numbers(f"{count}{FORMS[inner]}"))
            return [self.value(inner) for _ in range(count)]
        if kind not in FORMS:
            raise ValueError(f"it has a value of kind {kind}, which is none")
        found = self.numbers(FORMS[kind])[0]
        # a float32 is the number that someone wrote with few digits
        return float(str(np.float32(found))) if kind == FLOAT32 else found


def read_header(path: Path) -> Header:
    """The header of a file, checked against its size."""
    try:
        from gguf import GGMLQuantizationType  # noqa: PLC0415 - an extra
    except ImportError as cause:
        raise FileError(f"{path} is GGUF, which needs the gguf package: {INSTALL}") from cause
    size = path.stat().st_size
    with path.open("rb") as file:
        magic = file.read(len(MAGIC))
        if magic != MAGIC:
            raise FileError(f"{path} is not a GGUF file: it begins with {magic!r}, not {MAGIC!r}")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    cursor = Cursor(data)
    try:
        values, places = _parse(cursor, path)
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0:
            raise ValueError(f"its alignment is {alignment!r}")  # noqa: TRY301 - a wrong file
        start = -(-cursor.at // alignment) * alignment
        tensors = {
            name: _tensor(data, start + offset, GGMLQuantizationType(kind), shape)
            for name, (kind, shape, offset) in places.items()
        }
    except (ValueError, UnicodeDecodeError, RecursionError) as cause:
        raise FileError(
            f"{path} is truncated or damaged ({size} bytes): {cause}; fetch it again"
        ) from cause
    return Header(values, tensors)


Place = tuple[int, tuple[int, ...], int]
"""Kind, shape and offset of a tensor."""


def _parse(cursor: Cursor, path: Path) -> tuple[dict[str, object], dict[str, Place]]:
    """Metadata and places, as they come in the file."""
    cursor.at = len(MAGIC)
    version = int(cursor.numbers("I")[0])
    if version not in VERSIONS:
        swapped = " (or is for big-endian machines)" if version & 0xFFFF == 0 else ""
        raise FileError(
            f"{path} is GGUF version {version}{swapped}; versions {VERSIONS} are read: convert it "
            "again"
        )
    tensors, count = cursor.count(), cursor.count()
    values = dict[str, object]()
    for _ in range(count):
        key, kind = cursor.text(), cursor.count("I")
        values[key] = cursor.value(kind)
    places = dict[str, Place]()
    for _ in range(tensors):
        name, dimensions = cursor.text(), cursor.count("I")
        if name in places or dimensions > MOST_DIMENSIONS:
            raise ValueError(f"tensor {name!r} is there twice, or has {dimensions} dimensions")
        shape = tuple(int(each) for each in reversed(cursor.numbers(f"{dimensions}Q")))
        kind, offset = cursor.numbers("IQ")
        places[name] = int(kind), shape, int(offset)
    return values, places


def _tensor(
    data: mmap.mmap, start: int, kind: "GGMLQuantizationType", shape: tuple[int, ...]
) -> Stored:
    """A tensor's bytes, if the file has them."""
    from gguf import GGML_QUANT_SIZES  # noqa: PLC0415 - an extra

    block, size = GGML_QUANT_SIZES[kind]
    width = shape[-1] if shape else 1
    if width % block:
        raise ValueError(f"rows of {width} are not whole blocks of {kind.name}")
    rows = (*shape[:-1], width // block * size)
    count = math.prod(rows)
    if start + count > len(data):
        raise ValueError(f"it ends at byte {len(data)} of {start + count} or more")
    return Stored(kind, shape, np.frombuffer(data, np.uint8, count, start).reshape(rows))
