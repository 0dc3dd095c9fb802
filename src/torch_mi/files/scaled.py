# SPDX-License-Identifier: MIT OR Apache-2.0
"""Weights of eight bits or fewer with scales beside them: fp8, compressed-tensors, bitsandbytes."""

import json
from collections.abc import Mapping
from functools import partial
from typing import cast

import torch
from torch import Tensor

from torch_mi.errors import ConfigError, ModelError
from torch_mi.families.rules import Reader
from torch_mi.files.packed import WORD, modules, parts, unpack
from torch_mi.files.weights import Piece, Weights
from torch_mi.types import numbers

STATE = ".weight.quant_state.bitsandbytes__"
"""What the name of a 4-bit weight's description begins with, after its module."""

LARGEST = 127.0
"""What the largest of a row is stored as, in bitsandbytes' eight bits."""

PACKED_BITS = (4, 8)
SCALED_FORMATS = ("float-quantized", "int-quantized", "naive-quantized")


def fp8(weights: Weights, c: Reader) -> dict[str, Piece]:
    """`weight` in float8 and `weight_scale_inv`, by blocks or for the whole."""
    sizes = None
    if c.get(list, "weight_block_size") is not None:
        sizes = tuple(int(size) for size in c.numbers("weight_block_size"))
        if len(sizes) != 2 or min(sizes) < 1:  # noqa: PLR2004 - rows and columns
            raise ConfigError(f"{c.name}: weight_block_size = {list(sizes)} is not two sizes")
    return with_scales(weights, "weight_scale_inv", sizes)


def with_scales(
    weights: Weights, leaf: str, block: tuple[int, ...] | None = None
) -> dict[str, Piece]:
    """Every weight that has a scale beside it."""
    pieces, shapes = dict[str, Piece](), weights.shapes()
    for module in modules(weights, leaf):
        names = parts(module, (leaf, "weight"), weights)
        shape, scales = shapes[names[1]], shapes[names[0]]
        blocks = None
        if block is not None and len(scales) == len(shape) and len(scales) == len(block):
            blocks = block
            needed = tuple(-(-size // each) for size, each in zip(shape, block, strict=True))
            if scales != needed:
                raise ModelError(f"{names[0]} has shape {list(scales)}, not {list(needed)}")
        elif scales not in {(), (1,), (shape[0], 1)}:
            raise ModelError(f"{names[0]} of shape {list(scales)} does not scale {list(shape)}")
        pieces[names[1]] = Piece(names, shape, partial(scaled, block=blocks))
    return pieces


def scaled(stored: list[Tensor], *, block: tuple[int, ...] | None) -> Tensor:
    """A weight times its scales, each spread over its block."""
    scales, weight = (x.float() for x in stored)
    if block is not None:
        scales = scales.repeat_interleave(block[0], 0)[: weight.shape[0]]
        scales = scales.repeat_interleave(block[1], 1)[:, : weight.shape[1]]
    return weight * scales


def compressed(weights: Weights, c: Reader) -> dict[str, Piece]:
    """compressed-tensors: packed whole numbers, or eight bits with a scale."""
    kind = c.get(str, "format") or "unnamed"
    if kind in SCALED_FORMATS:
        return with_scales(weights, "weight_scale")
    if kind != "pack-quantized":
        raise ConfigError(
            f"{c.name}: compressed-tensors in {kind!r} format is not read here; "
            f"pack-quantized, {', '.join(SCALED_FORMATS)} are"
        )
    pieces = dict[str, Piece]()
    for module in modules(weights, "weight_packed"):
        names = parts(module, ("weight_packed", "weight_scale", "weight_shape"), weights)
        shape = tuple(numbers(weights.tensor(names[2])))
        rows, words = weights.shapes()[names[0]]
        widths = [bits for bits in PACKED_BITS if words == -(-shape[-1] * bits // WORD)]
        if len(shape) != 2 or shape[0] != rows or not widths:  # noqa: PLR2004 - a matrix
            raise ModelError(f"{names[0]} [{rows}, {words}] does not hold {list(shape)}")
        extra = (f"{module}.weight_zero_point", f"{module}.weight_g_idx")
        here = [name for name in extra if name in weights.shapes()]
        make = partial(from_packed, bits=widths[0], shape=shape, extra=tuple(here))
        pieces[f"{module}.weight"] = Piece((*names[:2], *here), shape, make)
    return pieces


def from_packed(
    stored: list[Tensor], *, bits: int, shape: tuple[int, ...], extra: tuple[str, ...]
) -> Tensor:
    """A weight [out in] of numbers packed along its rows."""
    rows, width = shape
    middle = 2 ** (bits - 1)
    q = unpack(stored[0], bits, 1)[:, :width] - middle
    scales, found = stored[1].float(), dict(zip(extra, stored[2:], strict=True))
    group = torch.arange(width) // -(-width // scales.shape[1])
    zeros = torch.zeros(scales.shape, dtype=torch.int32)
    for name, value in found.items():
        if name.endswith("g_idx"):
            group = value.long()
        else:
            zeros = unpack(value, bits, 0)[:rows] - middle
    return (q - zeros[:, group]).float() * scales[:, group]


def eight_bits(weights: Weights) -> dict[str, Piece]:
    """Bitsandbytes' LLM.int8: `weight` in int8 and `SCB`, the largest of each row."""
    pieces = dict[str, Piece]()
    for module in modules(weights, "SCB"):
        names = parts(module, ("SCB", "weight"), weights)
        pieces[names[1]] = Piece(names, weights.shapes()[names[1]], from_eight_bits)
    return pieces


def from_eight_bits(stored: list[Tensor]) -> Tensor:
    """A weight [out in]."""
    largest, weight = stored
    return weight.float() * (largest.float() / LARGEST).unsqueeze(-1)


def four_bits(weights: Weights) -> dict[str, Piece]:
    """Bitsandbytes' nf4 and fp4: two numbers to a byte, by a table, with a scale for each block."""
    pieces = dict[str, Piece]()
    for name in [name for name in weights.shapes() if STATE in name]:
        module = name[: name.index(STATE)]
        state = _state(weights.tensor(name), name)
        leaves = ("weight", "weight.absmax", "weight.quant_map")
        names = parts(module, leaves, weights)
        if "nested_blocksize" in state:
            nested = ("weight.nested_absmax", "weight.nested_quant_map")
            names = (*names, *parts(module, nested, weights))
        shape = tuple(cast("list[int]", state["shape"]))
        make = partial(from_four_bits, state=state, shape=shape)
        pieces[f"{module}.weight"] = Piece((*names,), shape, make)
    return pieces


def _state(packed: Tensor, name: str) -> dict[str, object]:
    """The description of a 4-bit weight: JSON in a tensor of bytes."""
    try:
        state = cast("dict[str, object]", json.loads(bytes(numbers(packed))))
        blocks, shape = state["blocksize"], state["shape"]
    except (ValueError, KeyError, TypeError) as cause:
        raise ModelError(f"{name} does not describe a 4-bit weight: {cause}") from cause
    if not isinstance(blocks, int) or not isinstance(shape, list):
        raise ModelError(f"{name} does not describe a 4-bit weight: {state}")
    return state


def from_four_bits(
    stored: list[Tensor], *, state: Mapping[str, object], shape: tuple[int, ...]
) -> Tensor:
    """A weight; the scales may be quantised themselves, around a common offset."""
    packed, scales, table = stored[:3]
    if len(stored) > len(("packed", "scales", "table")):
        large, values = stored[3:]
        nested = cast("int", state["nested_blocksize"])
        spread = large.float().repeat_interleave(nested)[: scales.numel()]
        offset = cast("float", state["nested_offset"])
        scales = values.float()[scales.flatten().long()] * spread + offset
    flat = packed.flatten().view(torch.uint8)
    q = torch.stack([flat >> 4, flat & 15], 1).flatten()[: torch.Size(shape).numel()]
    spread = scales.float().repeat_interleave(cast("int", state["blocksize"]))[: q.numel()]
    return (table.float()[q.long()] * spread).reshape(shape)
