# SPDX-License-Identifier: MIT OR Apache-2.0
"""From the tensors of a GGUF file to those of a Hugging Face checkpoint, by one table for each.

A table maps GGUF modules to Hugging Face ones; `*` is the layer, `#` an item of a stacked tensor
(an expert, a head). Where the layout differs too, a maker turns the stored tensors into theirs.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from torch_mi.errors import ConfigError, FileError, ModelError, did_you_mean

Numeric = int | float | bool


@dataclass(frozen=True)
class Facts:
    """What the header of a GGUF file tells: its metadata, and the shape of each tensor."""

    path: Path
    values: Mapping[str, object]
    shapes: Mapping[str, tuple[int, ...]]
    factors: Mapping[str, list[float]]
    """The tensors that divide rotary frequencies."""

    @property
    def architecture(self) -> str:
        found = self.values.get("general.architecture")
        if not isinstance(found, str):
            raise FileError(f"{self.path} does not say its general.architecture")
        return found

    @property
    def heads(self) -> int:
        return int(self.need("attention.head_count"))

    @property
    def kv_heads(self) -> int:
        return int(self.get("attention.head_count_kv") or self.heads)

    @property
    def head_dim(self) -> int:
        return int(self.get("attention.key_length") or self.need("embedding_length") // self.heads)

    def get(self, key: str) -> Numeric | None:
        """A number under the architecture's prefix; a list with one value everywhere is one."""
        value = self.values.get(f"{self.architecture}.{key}")
        if isinstance(value, list):
            several = set(cast("list[object]", value))
            if len(several) != 1:
                raise ConfigError(
                    f"{self.path}: {self.architecture}.{key} differs from layer to layer, "
                    "which is not modelled"
                )
            value = several.pop()
        if value is not None and not isinstance(value, int | float):
            raise ConfigError(f"{self.path}: {self.architecture}.{key} is not a number")
        return value

    def need(self, key: str) -> Numeric:
        """A number that must be there."""
        value = self.get(key)
        if value is None:
            raise ConfigError(f"{self.path} lacks {self.architecture}.{key}")
        return value

    def has(self, name: str) -> bool:
        """Whether a tensor is there; `blk.0` stands for every layer."""
        return name in self.shapes


Maker = Callable[[list[Tensor], Facts], Tensor]


def same(stored: list[Tensor], facts: Facts) -> Tensor:  # noqa: ARG001 - all makers take both
    """The tensor as it is."""
    return stored[0]


def unpaired(x: Tensor, heads: int) -> Tensor:
    """Rows of each head from llama.cpp's order, where a rotating pair is adjacent, to halves."""
    split = x.reshape(heads, -1, 2, *x.shape[1:])
    return split.transpose(1, 2).reshape(x.shape)


def queries(stored: list[Tensor], facts: Facts) -> Tensor:
    """Query rows, pairs apart."""
    return unpaired(stored[0], facts.heads)


def keys(stored: list[Tensor], facts: Facts) -> Tensor:
    """Key rows, pairs apart."""
    return unpaired(stored[0], facts.kv_heads)


def less_one(stored: list[Tensor], facts: Facts) -> Tensor:  # noqa: ARG001 - all makers take both
    """A gain stored as one more than transformers has it."""
    return stored[0].float() - 1


def transposed(stored: list[Tensor], facts: Facts) -> Tensor:  # noqa: ARG001 - all makers take both
    """A Conv1D weight; a bias has nothing to transpose."""
    return stored[0].T if stored[0].ndim > 1 else stored[0]


def by_head(stored: list[Tensor], facts: Facts) -> Tensor:
    """All queries, keys, values -> the query, key and value of one head after another."""
    x = stored[0]
    return x.reshape(3, facts.heads, -1, *x.shape[1:]).transpose(0, 1).reshape(x.shape)


def by_group(stored: list[Tensor], facts: Facts) -> Tensor:
    """All queries, keys, values -> those of one group of query heads after another."""
    x, groups = stored[0], facts.kv_heads
    dim = x.shape[0] // (facts.heads + 2 * groups)
    q, k, v = x.tensor_split([facts.heads * dim, (facts.heads + groups) * dim])
    return _grouped(q, k, v, groups).reshape(x.shape)


def internlm_fused(stored: list[Tensor], facts: Facts) -> Tensor:
    """Separate queries, keys and values -> `wqkv`, by group."""
    q, k = unpaired(stored[0], facts.heads), unpaired(stored[1], facts.kv_heads)
    grouped = _grouped(q, k, stored[2], facts.kv_heads)
    return grouped.reshape(-1, *stored[0].shape[1:])


def _grouped(q: Tensor, k: Tensor, v: Tensor, groups: int) -> Tensor:
    return torch.cat([part.reshape(groups, -1, *part.shape[1:]) for part in (q, k, v)], 1)


def latent(stored: list[Tensor], facts: Facts) -> Tensor:  # noqa: ARG001 - all makers take both
    """The absorbed halves of `kv_b_proj`, or the whole where it was not cut."""
    if len(stored) == 1:
        return stored[0]
    k, v = stored
    return torch.cat([k.transpose(1, 2), v], 1).flatten(0, 1)


def row(stored: list[Tensor], facts: Facts) -> Tensor:  # noqa: ARG001 - all makers take both
    """A vector as a matrix of one row."""
    return stored[0].reshape(1, -1)


@dataclass(frozen=True)
class Part:
    """What one Hugging Face tensor is made of."""

    stored: tuple[str, ...]
    make: Maker = same
    item: int | None = None
    """Which item along the first dimension, where several are stacked."""

    @property
    def exact(self) -> bool:
        """Whether it is computed in float32, whatever it was stored in."""
        return self.make is less_one


@dataclass(frozen=True)
class Layout:
    """One architecture as llama.cpp stores it."""

    model_type: str
    names: Mapping[str, str]
    """GGUF module -> Hugging Face module."""
    makers: Mapping[str, Maker] = field(default_factory=dict[str, Maker])
    """GGUF module -> how it becomes theirs, where it is not the same."""


FACTORS = ("rope_freqs", "rope_factors_long", "rope_factors_short")
COMPUTED = (*FACTORS, "blk.*.attn_rot_embd")
"""Tensors that are read as part of the config, or were never parameters."""


def parts_of(layout: Layout, facts: Facts) -> dict[str, Part]:
    """Every Hugging Face tensor of a file, and what it is made of."""
    parts = dict[str, Part]()
    for stored, shape in facts.shapes.items():
        module, _, leaf = stored.rpartition(".")
        layer = re.match(r"blk\.(\d+)\.", module)
        general = module if layer is None else f"blk.*.{module[layer.end() :]}"
        if general in COMPUTED:
            continue
        if general not in layout.names:
            raise ModelError(
                f"{facts.path} has a tensor {stored!r} {list(shape)}, which {facts.architecture} "
                f"models do not have here{did_you_mean(general, layout.names)}"
            )
        number = layer.group(1) if layer else ""
        theirs = f"{layout.names[general]}.{leaf}".replace("*", number)
        theirs = theirs.replace("e_score_correction.bias", "e_score_correction_bias")
        make = layout.makers.get(general, same)
        if "#" in theirs:
            each = range(shape[0] if shape else 0)
            parts |= {theirs.replace("#", str(i)): Part((stored,), make, i) for i in each}
        elif theirs in parts:
            parts[theirs] = joined(parts[theirs], stored, general, layout)
        else:
            parts[theirs] = Part((stored,), make)
    return parts


def joined(part: Part, stored: str, general: str, layout: Layout) -> Part:
    """A tensor made of several, in the order of the table."""
    order = list(layout.names)

    def place(name: str) -> int:
        return order.index(re.sub(r"^blk\.\d+", "blk.*", name).rpartition(".")[0])

    make = part.make if part.make is not same else layout.makers.get(general, same)
    return Part(tuple(sorted((*part.stored, stored), key=place)), make)
