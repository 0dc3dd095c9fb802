# SPDX-License-Identifier: MIT OR Apache-2.0
"""Finished cells in a file that is only ever added to, so that a killed sweep can go on.

Each line is complete or is not there: what a kill leaves half-written is cut off when the file is
opened again. A cell's key is a digest of the model, the tokens, the spec and the metric. Scores are
stored as the shortest decimals that read back as the same bits.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import IO, cast

from torch import Tensor

from torch_mi.errors import FileError, InterventionError
from torch_mi.hooks.saving import spec_to_dict
from torch_mi.hooks.spec import HookSpec
from torch_mi.model import MIModel
from torch_mi.sweeps.metrics import Metric, Own

FORMAT = "torch-mi sweep store 1"


class Store:
    """Scores by key, and the sizes that batches were planned with."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.scores: dict[str, float] = {}
        self.rooms: dict[str, list[int]] = {}
        self.halved: set[str] = set()
        self._file = self._open()

    def add(self, keys: Sequence[str], scores: Sequence[float]) -> None:
        """Scores of cells that are finished."""
        self._write({"scores": dict(zip(keys, scores, strict=True))})

    def set_room(self, sweep: str, room: Sequence[int]) -> None:
        """How large the batches of a sweep are: going on, it makes the same ones."""
        self._write({"room": {sweep: list(room)}})

    def halve(self, batch: str) -> None:
        """That a batch ran out of memory."""
        self._write({"halved": [batch]})

    def close(self) -> None:
        self._file.close()

    def _write(self, line: Mapping[str, object]) -> None:
        try:
            self._file.write((json.dumps(line) + "\n").encode())
            self._file.flush()
        except OSError as cause:
            raise FileError(f"cannot write {self.path}: {cause}") from cause
        self._read(line)

    def _read(self, line: Mapping[str, object]) -> None:
        self.scores |= cast("dict[str, float]", line.get("scores", {}))
        self.rooms |= cast("dict[str, list[int]]", line.get("room", {}))
        self.halved |= set(cast("list[str]", line.get("halved", [])))

    def _open(self) -> IO[bytes]:
        """The file, ready to be added to, with all its whole lines read."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a+b")
            file.seek(0)
            data = file.read()
        except OSError as cause:
            raise FileError(f"cannot open the checkpoint {self.path}: {cause}") from cause
        whole = data[: data.rfind(b"\n") + 1]
        lines = whole.splitlines()
        head = json.dumps({"format": FORMAT}).encode()
        if (lines and lines[0] != head) or (not lines and not head.startswith(data)):
            file.close()
            raise FileError(f"{self.path} is not a checkpoint of a sweep ({FORMAT})")
        try:
            for line in lines[1:]:
                self._read(json.loads(line))
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError, ValueError) as cause:
            file.close()
            raise FileError(f"the checkpoint {self.path} is damaged: {cause}") from cause
        file.truncate(len(whole))
        if not lines:
            file.write(head + b"\n")
            file.flush()
        return file


class Keys:
    """The digests that cells are stored under."""

    def __init__(self, model: MIModel, metric: Metric, reads: str) -> None:
        kind = f"{model.dtype} {model.device.type}"
        self._base = hashlib.sha256(
            f"{model.fingerprint} {kind} {describe(metric)} {reads}".encode()
        )

    def of(self, tokens: Tensor, prompts: int, prompt: int, spec: HookSpec) -> str:
        """The key of one spec on one prompt of so many."""
        digest = self._base.copy()
        digest.update(f"{tokens.tolist()} {prompt}/{prompts}".encode())  # pyright: ignore[reportUnknownMemberType] - torch's stub
        digest.update(_spec_digest(spec))
        return digest.hexdigest()[:32]


def joined(keys: Sequence[str]) -> str:
    """One key for several cells."""
    return hashlib.sha256(" ".join(keys).encode()).hexdigest()[:32]


def describe(metric: Metric) -> str:
    """A metric in words that tell it from every other."""
    if isinstance(metric, Own) or not is_dataclass(metric):
        raise InterventionError(
            f"a checkpoint cannot tell {metric!r} from another function; make it a Metric that is "
            "a frozen dataclass"
        )
    parts = [type(metric).__qualname__]
    for item in fields(metric):
        value = cast("object", vars(metric)[item.name])
        parts.append(
            f"{item.name}={tensor_digest(value) if isinstance(value, Tensor) else value!r}"
        )
    return " ".join(parts)


def tensor_digest(value: Tensor) -> str:
    """A digest of every entry of a tensor."""
    plain = value.detach().cpu().double().contiguous()
    head = f"{list(value.shape)} {value.dtype} ".encode()
    return hashlib.sha256(head + plain.numpy().tobytes()).hexdigest()


def _spec_digest(spec: HookSpec) -> bytes:
    data, tensors = spec_to_dict(spec)
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {tensor_digest(value)}".encode())
    return digest.digest()
