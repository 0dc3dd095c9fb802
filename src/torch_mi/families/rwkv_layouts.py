# SPDX-License-Identifier: MIT OR Apache-2.0
"""How fla lays out what makes RWKV-6's mixing depend on the text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, cat

from torch_mi.families.sources import Named, Shape

OURS, THEIRS = "wkvrg", "rwkvg"
"""The order of the five in which each is kept."""
ORDER = [THEIRS.index(letter) for letter in OURS]


@dataclass(frozen=True)
class MixDown(Named):
    """Ours [in, 5 × rank], theirs [5 × rank, in], the five in another order."""

    def stored(self, shape: Shape, cfg: Any) -> Shape:  # noqa: ARG002
        return shape[::-1]

    def take(self, tensors: Sequence[Tensor], cfg: Any) -> Tensor:  # noqa: ARG002
        parts = tensors[0].chunk(len(OURS))
        return cat([parts[i] for i in ORDER]).mT


@dataclass(frozen=True)
class MixUp(Named):
    """Ours [5, rank, out], theirs [out, 5 × rank], the five in another order."""

    def stored(self, shape: Shape, cfg: Any) -> Shape:  # noqa: ARG002
        return (shape[2], shape[0] * shape[1])

    def take(self, tensors: Sequence[Tensor], cfg: Any) -> Tensor:  # noqa: ARG002
        out = tensors[0].shape[0]
        return tensors[0].reshape(out, len(OURS), -1).permute(1, 2, 0)[ORDER]
