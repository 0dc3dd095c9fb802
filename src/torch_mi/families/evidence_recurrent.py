# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a recurrent checkpoint's tensors tell of its sizes, where a config is silent or wrong."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch_mi.errors import ConfigError
from torch_mi.families.rules import Reader
from torch_mi.families.sources import Shape


@dataclass(frozen=True)
class Evidence:
    """The shapes of a checkpoint's tensors; none, if only its config is known."""

    shapes: Mapping[str, Shape] = field(default_factory=dict[str, Shape])

    def shape(self, *endings: str) -> Shape | None:
        """The shape of the first tensor whose name ends so."""
        for ending in endings:
            for name, shape in self.shapes.items():
                if name.endswith(ending):
                    return tuple(shape)
        return None

    def rows(self, *endings: str) -> int | None:
        """How many rows the first such matrix has."""
        shape = self.shape(*endings)
        return None if shape is None else shape[0]

    def columns(self, *endings: str) -> int | None:
        """How many columns the first such matrix has."""
        shape = self.shape(*endings)
        return None if shape is None else shape[-1]

    def numbers(self, *endings: str) -> int | None:
        """How many numbers the first such tensor has."""
        shape = self.shape(*endings)
        return None if shape is None else math.prod(shape)

    @property
    def layers(self) -> int | None:
        """How many layers the tensors are of."""
        found = [re.search(r"\.(\d+)\.", name) for name in self.shapes]
        return max((int(m.group(1)) + 1 for m in found if m is not None), default=None)


def agreed(c: Reader, key: str, found: int | None, default: int | None = None) -> int:
    """A size by the tensors, or the config, or as a rule; the first two may not disagree."""
    said = c.get(int, key)
    if said is not None and found is not None and said != found:
        raise ConfigError(
            f"{c.name} has {c.called(key)} = {said}, but the checkpoint's tensors make it {found}"
        )
    value = found if said is None else said
    value = default if value is None else value
    if value is None:
        raise ConfigError(f"{c.name} lacks {c.called(key)!r}, a whole number")
    if value <= 0:
        raise ConfigError(f"{c.name} has {c.called(key)} = {value}; there must be at least one")
    return value


def shared_out(c: Reader, width: int, size: int, what: str) -> int:
    """How many heads of a size a width has."""
    if size <= 0 or width % size:
        raise ConfigError(f"{c.name}: a {what} of {width} has no whole number of heads of {size}")
    return width // size
