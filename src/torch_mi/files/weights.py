# SPDX-License-Identifier: MIT OR Apache-2.0
"""What loading asks of weights in any format: names and shapes first, tensors one at a time."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from types import MappingProxyType, TracebackType

import torch
from torch import Tensor

from torch_mi.errors import ModelError, did_you_mean


class Weights(ABC):
    """Named tensors in some file format, under the names that Hugging Face gives them.

    `with ... as weights: weights.tensor("lm_head.weight")`. Tensors stay good after `close()`.
    """

    @abstractmethod
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape, without reading it."""

    @abstractmethod
    def dtypes(self) -> Mapping[str, torch.dtype]:
        """The dtype in which `tensor` gives each tensor."""

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """One tensor, read or computed now."""

    @abstractmethod
    def close(self) -> None:
        """Let the files go."""

    def num_bytes(self) -> int:
        """The bytes of all tensors together."""
        dtypes = self.dtypes()
        return sum(math.prod(shape) * dtypes[n].itemsize for n, shape in self.shapes().items())

    def __enter__(self) -> "Weights":  # noqa: PYI034 - beartype cannot check Self here
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Piece:
    """One float32 tensor that is computed from others."""

    stored: tuple[str, ...]
    shape: tuple[int, ...]
    make: Callable[[list[Tensor]], Tensor]


class Derived(Weights):
    """Weights of which some are computed from what is stored, and the others are as they were."""

    def __init__(
        self, source: Weights, pieces: Mapping[str, Piece], hidden: Set[str] = frozenset()
    ) -> None:
        self._source, self._pieces = source, pieces
        self._plain = [n for n in source.shapes() if n not in hidden and n not in pieces]

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        stored = self._source.shapes()
        plain = {name: stored[name] for name in self._plain}
        return MappingProxyType(plain | {name: p.shape for name, p in self._pieces.items()})

    def dtypes(self) -> Mapping[str, torch.dtype]:
        stored = self._source.dtypes()
        plain = {name: stored[name] for name in self._plain}
        return MappingProxyType(plain | dict.fromkeys(self._pieces, torch.float32))

    def tensor(self, name: str) -> Tensor:
        piece = self._pieces.get(name)
        if piece is not None:
            return piece.make([self._source.tensor(stored) for stored in piece.stored])
        if name not in self._plain:
            raise ModelError(f"there is no tensor {name!r}{did_you_mean(name, self.shapes())}")
        return self._source.tensor(name)

    def close(self) -> None:
        self._source.close()
