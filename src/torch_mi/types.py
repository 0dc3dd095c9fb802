# SPDX-License-Identifier: MIT OR Apache-2.0
"""The tensors that cross a border, with their shapes (run as checks in the tests only)."""

from typing import cast

from jaxtyping import Bool, Float, Int
from torch import Tensor

Tokens = Int[Tensor, "batch pos"]
Resid = Float[Tensor, "batch pos d_model"]
Enters = Float[Tensor, "batch pos enters"]
"""The residual stream, and what flows beside it."""
Leaves = Float[Tensor, "batch pos leaves"]
"""The same behind a layer, where more may flow, or less."""
Heads = Float[Tensor, "batch pos head d_head"]
Keys = Float[Tensor, "batch key kv_head d_head"]
"""Keys, those of earlier tokens included."""
Values = Float[Tensor, "batch key kv_head d_value"]
"""Values, those of earlier tokens included."""
Mixed = Float[Tensor, "batch pos head d_value"]
"""What each head takes up."""
Logits = Float[Tensor, "batch pos vocab"]
Mask = Bool[Tensor, "batch pos"]

Carry = tuple[Tensor, ...]
"""What a layer hands from earlier tokens to later ones: keys and values, or a recurrent state."""


def numbers(row: Tensor) -> list[int]:
    """The entries of a row of integers (or truths)."""
    return cast("list[int]", row.tolist())  # pyright: ignore[reportUnknownMemberType] - torch's stub


def split(x: Tensor, dim: int, sizes: tuple[int, ...]) -> Tensor:
    """One axis as several; a view, however `x` lies in memory."""
    return cast("Tensor", x.unflatten(dim, sizes))
