# SPDX-License-Identifier: MIT OR Apache-2.0
"""Strategies for hypothesis: tiny models, prompts, padding, coordinates, edits."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from hypothesis import strategies as st
from torch import Tensor

from torch_mi.families import FAMILIES
from torch_mi.hooks.coordinates import AXIS, At
from torch_mi.hooks.point import HookPoint
from torch_mi.model import MIModel
from torch_mi.testing import random_tokens, tiny

NAME = {axis: name for name, axes in AXIS.items() for axis in axes}
POSITIONS = ("pos", "query", "key")


@cache
def model_of(family: str, seed: int = 0, layers: int = 2) -> MIModel:
    return tiny(family, seed, {"num_hidden_layers": layers})


@st.composite
def models(draw: st.DrawFn, family: str | None = None) -> MIModel:
    """A model of one or two layers with a random window, if its family has one."""
    family = family or draw(st.sampled_from(sorted(FAMILIES)))
    changes: dict[str, object] = {"num_hidden_layers": draw(st.integers(1, 2))}
    if "sliding_window" in FAMILIES[family].tiny:
        changes["sliding_window"] = draw(st.integers(2, 6))
    return tiny(family, draw(st.integers(0, 9)), changes)


@st.composite
def prompts(draw: st.DrawFn, model: MIModel, longest: int = 8) -> Tensor:
    batch, pos = draw(st.integers(1, 2)), draw(st.integers(3, longest))
    return random_tokens(model, batch, pos, draw(st.integers(0, 9)))


@dataclass(frozen=True)
class Padded:
    """Token ids [batch pos], and which of them are real."""

    tokens: Tensor
    mask: Tensor

    @property
    def columns(self) -> list[list[int]]:
        """Where each row has its tokens."""
        return [row.nonzero().flatten().tolist() for row in self.mask]


@st.composite
def padded(draw: st.DrawFn, model: MIModel) -> Padded:
    """A batch, padded on the left, on the right, or not at all."""
    batch, pos = draw(st.integers(1, 3)), draw(st.integers(3, 7))
    lengths = [draw(st.integers(2, pos)) for _ in range(batch)]
    side = draw(st.sampled_from(["left", "right", "none"]))
    rows = [[i < n for i in range(pos)] for n in ([pos] * batch if side == "none" else lengths)]
    mask = torch.tensor(rows if side == "right" else [row[::-1] for row in rows])
    return Padded(random_tokens(model, batch, pos, draw(st.integers(0, 9))), mask)


def indices(size: int) -> st.SearchStrategy[int | list[int] | slice]:
    """Some of an axis: one, several in ascending order, or a stretch."""
    some = st.lists(st.integers(0, size - 1), min_size=1, unique=True).map(sorted)
    stretch = st.tuples(st.integers(0, size - 1), st.integers(1, size)).map(
        lambda ends: slice(ends[0], ends[0] + ends[1])
    )
    return st.one_of(st.integers(-size, size - 1), some, stretch)


@st.composite
def coordinates(
    draw: st.DrawFn, point: HookPoint, shape: Sequence[int], columns: list[list[int]]
) -> At:
    """Coordinates that fit an activation; positions are those that every row has."""
    shortest = min(map(len, columns))
    chosen: dict[str, object] = {}
    for axis, size in zip(point.axes, shape, strict=True):
        if axis in NAME and draw(st.booleans()):
            place = draw(indices(shortest if axis in POSITIONS else size))
            if isinstance(place, slice) and axis in POSITIONS:
                place = list(range(shortest))[place]
            chosen[NAME[axis]] = place
    return At(**cast("dict[str, Any]", chosen))


def selected(at: At, point: HookPoint, shape: Sequence[int], columns: list[list[int]]) -> Tensor:
    """Which entries of an activation `at` means, found the slow and plain way."""
    mask = torch.ones(tuple(shape), dtype=torch.bool)
    for dim, axis in enumerate(point.axes):
        place = at.named().get(NAME.get(axis, ""))
        for row in range(shape[0]) if place is not None else ():
            size = len(columns[row]) if axis in POSITIONS else shape[dim]
            every = list(range(size))
            found = (
                every[place]
                if isinstance(place, slice)
                else [every[i] for i in ([place] if isinstance(place, int) else cast("Any", place))]
            )
            if axis in POSITIONS:
                found = [columns[row][i] for i in found]
            keep = torch.zeros(shape[dim], dtype=torch.bool)
            keep[found] = True
            if dim == 0:
                mask[row] &= keep[row]
            else:
                mask[row] &= keep.view([-1 if d == dim else 1 for d in range(1, len(shape))])
    return mask
