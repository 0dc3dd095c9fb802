# SPDX-License-Identifier: MIT OR Apache-2.0
"""Where one of our modules lies in a checkpoint: a name, and how its tensors are laid out there.

In names, `*` is the layer. What a source takes is a view of the stored tensor wherever the layout
allows one, so that a model in memory can be shared.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, stack

from torch_mi.config.transformer import TransformerConfig

Shape = tuple[int, ...]
Sizes = Callable[[TransformerConfig], tuple[int, ...]]
"""How many rows each of the parts that share a tensor has."""


@dataclass(frozen=True)
class Whole:
    """A tensor that is one of ours, as it is."""

    theirs: str

    def names(self, leaf: str, cfg: Any) -> tuple[str, ...]:  # noqa: ARG002
        """Their tensors that make up our `leaf` ("weight" or "bias")."""
        return (f"{self.theirs}.{leaf}",)

    def stored(self, shape: Shape, cfg: Any) -> Shape:  # noqa: ARG002
        """The shape of each of their tensors, given that of ours."""
        return shape

    def take(self, tensors: Sequence[Tensor], cfg: Any) -> Tensor:  # noqa: ARG002
        """Ours, from theirs."""
        return tensors[0]

    def moved(self, tensor: Tensor, move: Callable[[Tensor], Tensor]) -> Tensor:
        """Ours, where `move` takes it: to a device, and to the model's dtype."""
        return move(tensor)

    def fits(self, found: Shape, stored: Shape) -> bool:
        """Whether a tensor of a shape is what it is to be."""
        return found == stored

    def shaped(self, tensor: Tensor, shape: Shape) -> Tensor:  # noqa: ARG002
        """What was taken, in the shape of ours."""
        return tensor


@dataclass(frozen=True)
class Named(Whole):
    """The same where the tensor has a name of its own, which does not end in weight or bias."""

    def names(self, leaf: str, cfg: Any) -> tuple[str, ...]:  # noqa: ARG002
        return (self.theirs,)


@dataclass(frozen=True)
class Flat(Named):
    """A named tensor whose numbers are ours in order, whatever its axes."""

    def fits(self, found: Shape, stored: Shape) -> bool:
        return math.prod(found) == math.prod(stored)

    def shaped(self, tensor: Tensor, shape: Shape) -> Tensor:
        return tensor.reshape(shape)


@dataclass(frozen=True)
class Exponential(Flat):
    """The same, stored as a logarithm."""

    def take(self, tensors: Sequence[Tensor], cfg: Any) -> Tensor:  # noqa: ARG002
        return tensors[0].exp()


@dataclass(frozen=True)
class NamedTransposed(Named):
    """A named matrix stored the other way round."""

    def stored(self, shape: Shape, cfg: Any) -> Shape:  # noqa: ARG002
        return shape[::-1]

    def take(self, tensors: Sequence[Tensor], cfg: Any) -> Tensor:  # noqa: ARG002
        return tensors[0].mT


@dataclass(frozen=True)
class ValueMajor(Named):
    """A named state [head d_value d_key]; ours are [head d_key d_value]."""

    def stored(self, shape: Shape, cfg: Any) -> Shape:  # noqa: ARG002
        return (shape[0], shape[2], shape[1])

    def take(self, tensors: Sequence[Tensor], cfg: Any) -> Tensor:  # noqa: ARG002
        return tensors[0].mT


@dataclass(frozen=True)
class RowOf(Named):
    """One row of a named matrix that has a row for each of several of ours."""

    row: int
    rows: int

    def stored(self, shape: Shape, cfg: Any) -> Shape:  # noqa: ARG002
        return (self.rows, *shape)

    def take(self, tensors: Sequence[Tensor], cfg: Any) -> Tensor:  # noqa: ARG002
        return tensors[0][self.row]


@dataclass(frozen=True)
class Kept(Named):
    """A named tensor that keeps its dtype in a model of any other."""

    def moved(self, tensor: Tensor, move: Callable[[Tensor], Tensor]) -> Tensor:
        return tensor.to(move(tensor).device)


@dataclass(frozen=True)
class Transposed(Whole):
    """A matrix stored as [in, out] (GPT-2's Conv1D)."""

    def stored(self, shape: Shape, cfg: Any) -> Shape:  # noqa: ARG002
        return shape[::-1]

    def take(self, tensors: Sequence[Tensor], cfg: Any) -> Tensor:  # noqa: ARG002
        return tensors[0].mT if tensors[0].ndim > 1 else tensors[0]


@dataclass(frozen=True)
class Rows(Whole):
    """Part of a tensor that stacks several of ours along its first dimension."""

    sizes: Sizes
    part: int

    def within(self, cfg: Any) -> tuple[int, int, int]:
        """First row, row after the last, and how many rows the whole tensor has."""
        sizes = self.sizes(cfg)
        start = sum(sizes[: self.part])
        return start, start + sizes[self.part], sum(sizes)

    def stored(self, shape: Shape, cfg: Any) -> Shape:
        return (self.within(cfg)[2], *shape[1:])

    def take(self, tensors: Sequence[Tensor], cfg: Any) -> Tensor:
        start, stop, _ = self.within(cfg)
        return tensors[0][start:stop]


@dataclass(frozen=True)
class Columns(Rows):
    """Part of a matrix stored as [in, out], in which several of ours lie side by side."""

    def stored(self, shape: Shape, cfg: Any) -> Shape:
        return (*shape[1:], self.within(cfg)[2])

    def take(self, tensors: Sequence[Tensor], cfg: Any) -> Tensor:
        start, stop, _ = self.within(cfg)
        part = tensors[0][..., start:stop]
        return part.mT if part.ndim > 1 else part


@dataclass(frozen=True)
class Grouped(Rows):
    """Part of a tensor in which several of ours take turns, group of rows by group of rows.

    `sizes` are the rows of each part within one group; `groups` says how many groups there are.
    """

    groups: Callable[[TransformerConfig], int]

    def stored(self, shape: Shape, cfg: Any) -> Shape:
        return (self.groups(cfg) * self.within(cfg)[2], *shape[1:])

    def take(self, tensors: Sequence[Tensor], cfg: Any) -> Tensor:
        start, stop, rows = self.within(cfg)
        (tensor,) = tensors
        grouped = tensor.reshape(self.groups(cfg), rows, *tensor.shape[1:])
        return grouped[:, start:stop].flatten(0, 1)


def each_expert(cfg: Any) -> int:
    """How many experts there are."""
    return 0 if cfg.experts is None else cfg.experts.count


@dataclass(frozen=True)
class Stack(Whole):
    """One of ours, of which each row is a tensor of its own; `#` in the name counts them."""

    count: Callable[[TransformerConfig], int] = each_expert

    def names(self, leaf: str, cfg: Any) -> tuple[str, ...]:
        name = f"{self.theirs}.{leaf}"
        return tuple(name.replace("#", str(i)) for i in range(self.count(cfg)))

    def stored(self, shape: Shape, cfg: Any) -> Shape:  # noqa: ARG002
        return shape[1:]

    def take(self, tensors: Sequence[Tensor], cfg: Any) -> Tensor:  # noqa: ARG002
        return stack(tuple(tensors))


@dataclass(frozen=True)
class Slabs(Rows):
    """Part of a tensor [expert, out, in] that stacks several of ours along `out`; named in full."""

    def names(self, leaf: str, cfg: Any) -> tuple[str, ...]:  # noqa: ARG002
        return (self.theirs,)

    def stored(self, shape: Shape, cfg: Any) -> Shape:
        return (shape[0], self.within(cfg)[2], *shape[2:])

    def take(self, tensors: Sequence[Tensor], cfg: Any) -> Tensor:
        start, stop, _ = self.within(cfg)
        return tensors[0][:, start:stop]


Source = str | Whole
"""A module's name there, or a name with a layout."""


def source_of(source: Source) -> Whole:
    """A source with its layout."""
    return Whole(source) if isinstance(source, str) else source


def source_name(source: Source) -> str:
    """Their module."""
    return source_of(source).theirs
