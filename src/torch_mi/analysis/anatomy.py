# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a model is made of: its configuration, and the shape and size of every weight."""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass
from enum import Enum
from typing import Any, Self, cast

from torch import Tensor

from torch_mi.manifest import versions
from torch_mi.model import MIModel
from torch_mi.results import Result, data_frame

FORM = "torch-mi anatomy 1"


@dataclass(frozen=True)
class Weight:
    """One tensor of a model."""

    name: str
    kind: str
    """Its name with a star for the layer."""
    layer: int | None
    shape: tuple[int, ...]
    norm: float
    """The square root of the sum of squares."""
    rms: float
    """The square root of the mean square: how large a typical entry is."""


@dataclass(frozen=True, repr=False)
class Anatomy(Result):
    """A model's configuration and weights."""

    form = FORM

    model_id: str
    family: str
    fingerprint: str
    n_parameters: int
    dtype: str
    config: dict[str, object]
    weights: tuple[Weight, ...]
    versions: dict[str, str]

    def kinds(self) -> dict[str, list[Weight]]:
        """The weights of each kind, in the order of the layers."""
        found: dict[str, list[Weight]] = {}
        for weight in self.weights:
            found.setdefault(weight.kind, []).append(weight)
        return found

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each weight (needs pandas)."""
        return data_frame([asdict(weight) for weight in self.weights])

    def to_dict(self) -> dict[str, object]:
        return {
            "format": FORM,
            "model_id": self.model_id,
            "family": self.family,
            "fingerprint": self.fingerprint,
            "n_parameters": self.n_parameters,
            "dtype": self.dtype,
            "config": self.config,
            "weights": [asdict(weight) | {"shape": list(weight.shape)} for weight in self.weights],
            "versions": self.versions,
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        weights = [Weight(**(w | {"shape": tuple(w["shape"])})) for w in data["weights"]]
        return cls(
            data["model_id"],
            data["family"],
            data["fingerprint"],
            data["n_parameters"],
            data["dtype"],
            data["config"],
            tuple(weights),
            data["versions"],
        )


def anatomy(model: MIModel) -> Anatomy:
    """Every weight of a model by name, shape and size, and its configuration."""
    return Anatomy(
        model_id=model.origin.model_id,
        family=model.origin.family,
        fingerprint=model.fingerprint,
        n_parameters=model.num_parameters,
        dtype=str(model.dtype).removeprefix("torch."),
        config=cast("dict[str, object]", _plain(model.config)),
        weights=tuple(_weights(model)),
        versions=versions(),
    )


def _weights(model: MIModel) -> Iterator[Weight]:
    for name, tensor in model.backend.named_parameters():
        inside = re.search(r"(?<=\.)\d+(?=\.)", name)
        layer = None if inside is None else int(inside[0])
        kind = name if inside is None else f"{name[: inside.start()]}*{name[inside.end() :]}"
        norm = _norm(tensor)
        yield Weight(name, kind, layer, tuple(tensor.shape), norm, norm / tensor.numel() ** 0.5)


def _norm(tensor: Tensor) -> float:
    return float(tensor.detach().float().square().sum().sqrt())


def _plain(value: object) -> object:
    """A configuration as JSON values."""
    if is_dataclass(value) and not isinstance(value, type):
        inside = {f.name: _plain(value.__dict__[f.name]) for f in fields(value)}
        return inside if "hidden_size" in inside else {"kind": type(value).__name__} | inside
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [_plain(item) for item in cast("tuple[object, ...]", value)]
    return value
