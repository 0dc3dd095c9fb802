# SPDX-License-Identifier: MIT OR Apache-2.0
"""The annotations of the package are checks while tests run."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from checking import check, checked
from jaxtyping import Float
from torch import Tensor

from torch_mi.nn.recurrence_meet import Met
from torch_mi.show.sweeps import decimals


@checked(typechecker=check)
def product(a: Float[Tensor, "row inner"], b: Float[Tensor, "inner column"]) -> Any:
    return a @ b


@checked(typechecker=check)
def turned(a: Float[Tensor, "row column"]) -> Float[Tensor, "row column"]:
    return a.T


def test_dimensions_of_one_call_agree() -> None:
    product(torch.zeros(2, 3), torch.zeros(3, 4))
    product(torch.zeros(5, 6), torch.zeros(6, 5))  # another call, other sizes
    with pytest.raises(BeartypeCallHintViolation):
        product(torch.zeros(2, 3), torch.zeros(4, 3))


def test_what_is_returned_has_the_dimensions_that_came_in() -> None:
    turned(torch.zeros(2, 2))
    with pytest.raises(BeartypeCallHintViolation):
        turned(torch.zeros(2, 3))


def test_functions_of_the_package_are_checked() -> None:
    wrong: Any = "far"
    with pytest.raises(BeartypeCallHintViolation):
        decimals(wrong)


@checked(typechecker=check)
@dataclass(frozen=True)
class Both:
    left: Float[Tensor, "row"]
    right: Float[Tensor, "row"]
    names: list[str] = field(default_factory=list[str])


def test_fields_are_checked_with_their_dimensions() -> None:
    assert Both(torch.zeros(2), torch.zeros(2)).names == []
    with pytest.raises(BeartypeCallHintViolation):
        Both(torch.zeros(2), torch.zeros(3))


def test_dataclasses_of_the_package_are_checked() -> None:
    """One without dimensions, at every call."""
    wrong: Any = "far"
    Met([], [], [], torch.zeros(1))
    with pytest.raises(BeartypeCallHintViolation):
        Met([], [], [], wrong)
