# SPDX-License-Identifier: MIT OR Apache-2.0
"""Weights packed several to an int32 with a scale and a zero for each group: GPTQ, AWQ and alike.

A weight is `(q - zero) * scale`, in float32.
"""

from functools import partial

import torch
from torch import Tensor

from torch_mi.errors import ConfigError, ModelError
from torch_mi.families.rules import Reader
from torch_mi.files.weights import Piece, Weights

WORD = 32
GPTQ_BITS = (2, 4, 8)
AWQ_BITS = 4
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which nibble of an AWQ word holds each of its eight columns."""


def gptq(weights: Weights, c: Reader) -> dict[str, Piece]:
    """`qweight` [in/per out], `qzeros` [group out/per], `scales` [group out], `g_idx` [in]."""
    bits, version = c.need(int, "bits"), c.get(str, "checkpoint_format") or "gptq"
    if bits not in GPTQ_BITS:
        raise ConfigError(f"{c.name}: GPTQ of {bits} bits is not read here; {GPTQ_BITS} are")
    if version not in {"gptq", "gptq_v2"}:
        raise ConfigError(f"{c.name}: checkpoint_format {version!r} is not 'gptq' or 'gptq_v2'")
    offset = 1 if version == "gptq" else 0
    per, shapes = WORD // bits, weights.shapes()
    pieces = dict[str, Piece]()
    for module in modules(weights, "qweight"):
        rows, out = shapes[f"{module}.qweight"]
        width = rows * per
        size = group_size(c, width)
        names = parts(module, ("qweight", "qzeros", "scales"), weights)
        if f"{module}.g_idx" in shapes:
            names = (*names, f"{module}.g_idx")
        elif c.get(bool, "desc_act"):
            raise ModelError(f"the checkpoint lacks {module}.g_idx, which desc_act needs")
        groups = -(-width // size)
        fits(weights, f"{module}.scales", (groups, out))
        fits(weights, f"{module}.qzeros", (groups, -(-out // per)))
        make = partial(from_gptq, module=module, bits=bits, offset=offset, size=size)
        pieces[f"{module}.weight"] = Piece(names, (out, width), make)
    return pieces


def from_gptq(stored: list[Tensor], *, module: str, bits: int, offset: int, size: int) -> Tensor:
    """A weight [out in]; version 1 stores one less than each zero."""
    packed, zeros, scales = stored[:3]
    q = unpack(packed, bits, 0)
    zero = (unpack(zeros, bits, 1)[:, : q.shape[1]] + offset) & (2**bits - 1)
    group = (
        torch.arange(len(q)) // size if len(stored) == len(("q", "z", "s")) else stored[3].long()
    )
    if group.shape != q.shape[:1] or int(group.min()) < 0 or int(group.max()) >= len(scales):
        raise ModelError(f"{module}.g_idx does not give each of {len(q)} inputs a group")
    return ((q - zero[group]).float() * scales.float()[group]).T.contiguous()


def awq(weights: Weights, c: Reader) -> dict[str, Piece]:
    """`qweight` [in out/8], `qzeros` [group out/8], `scales` [group out]: its GEMM layout."""
    bits = c.need(int, "bits")
    version = (c.get(str, "version") or c.get(str, "format") or "gemm").lower()
    if bits != AWQ_BITS or version != "gemm":
        raise ConfigError(
            f"{c.name}: AWQ of {bits} bits in {version!r} layout is not read; 4 in 'gemm' is"
        )
    per, shapes = WORD // bits, weights.shapes()
    pieces = dict[str, Piece]()
    for module in modules(weights, "qweight"):
        width, columns = shapes[f"{module}.qweight"]
        size, out = group_size(c, width), columns * per
        names = parts(module, ("qweight", "qzeros", "scales"), weights)
        fits(weights, f"{module}.scales", (width // size, out))
        fits(weights, f"{module}.qzeros", (width // size, columns))
        pieces[f"{module}.weight"] = Piece(names, (out, width), partial(from_awq, size=size))
    return pieces


def from_awq(stored: list[Tensor], *, size: int) -> Tensor:
    """A weight [out in]."""
    q, zero = in_order(stored[0]), in_order(stored[1])
    group = torch.arange(len(q)) // size
    return ((q - zero[group]).float() * stored[2].float()[group]).T.contiguous()


def in_order(words: Tensor) -> Tensor:
    """The numbers of AWQ words [row word], by column."""
    apart = unpack(words, AWQ_BITS, 1).reshape(len(words), -1, len(AWQ_ORDER))
    return apart[..., AWQ_ORDER].flatten(1)


def group_size(c: Reader, width: int) -> int:
    """How many inputs share a scale; -1 is all of them."""
    size = c.need(int, "group_size")
    if size < -1 or size == 0:
        raise ConfigError(f"{c.name}: group_size = {size} is neither positive nor -1")
    return width if size == -1 else size


def unpack(words: Tensor, bits: int, dim: int) -> Tensor:
    """The unsigned numbers in int32 words, lowest bits first, along `dim`."""
    shifts = torch.arange(0, WORD, bits, dtype=torch.int32)
    shifts = shifts.view(1, -1, *[1] * (words.ndim - dim - 1))
    return ((words.unsqueeze(dim + 1) >> shifts) & (2**bits - 1)).flatten(dim, dim + 1)


def modules(weights: Weights, leaf: str) -> list[str]:
    """The modules that have a tensor of this name."""
    ending = f".{leaf}"
    return [name.removesuffix(ending) for name in weights.shapes() if name.endswith(ending)]


def parts(module: str, leaves: tuple[str, ...], weights: Weights) -> tuple[str, ...]:
    """A module's tensors, which must all be there."""
    names = tuple(f"{module}.{leaf}" for leaf in leaves)
    missing = [name for name in names if name not in weights.shapes()]
    if missing:
        raise ModelError(f"the checkpoint has {names[0]} but lacks {missing[0]}")
    return names


def fits(weights: Weights, name: str, shape: tuple[int, ...]) -> None:
    """Whether a tensor has the shape that its module's other tensors make it."""
    found = tuple(weights.shapes()[name])
    if found != shape:
        raise ModelError(f"{name} has shape {list(found)} where {list(shape)} is needed")
