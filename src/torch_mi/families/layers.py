# SPDX-License-Identifier: MIT OR Apache-2.0
"""Rules for models whose layers differ: which look through a window, and which do not turn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from torch_mi.errors import ConfigError
from torch_mi.families.rules import Reader, Rule, integer, read_window, windowed_layers, windows_in

PATTERN = "sliding_window_pattern"


@dataclass(frozen=True)
class ButEvery:
    """A window in all layers but every `nth`, unless `layer_types` is there."""

    nth: int
    key: str | None = PATTERN
    """What the config calls `nth`, if it can say."""

    def __call__(self, c: Reader) -> tuple[int | None, ...]:
        return windows_in(self.layers(c), read_window(c, 4096), c)

    def layers(self, c: Reader) -> list[bool]:
        """Which layers look through the window."""
        layers = windowed_layers(c)
        if layers is not None:
            return layers
        nth = self.nth if self.key is None else cast("int", integer(self.key, self.nth)(c))
        if nth <= 0:
            raise ConfigError(f"{c.name}: {self.key} = {nth} is not positive")
        return [i % nth != nth - 1 for i in range(c.need(int, "num_hidden_layers"))]


def turning(rope: Rule, layers: Callable[[Reader], Sequence[bool]]) -> Rule:
    """A rotary embedding in some layers, none in the others."""

    def rule(c: Reader) -> tuple[object, ...]:
        found = rope(c)
        return tuple(found if turns else None for turns in layers(c))

    return rule


def interval_layers(c: Reader) -> list[bool]:
    """Which layers turn: what `no_rope_layers` says, or all but every fourth (SmolLM3).

    The key is called after the layers that do not, but says 1 for those that do.
    """
    count = c.need(int, "num_hidden_layers")
    listed = cast("list[object] | None", c.get(list, "no_rope_layers"))
    nth = cast("int", integer("no_rope_layer_interval", 4)(c))
    if listed is None:
        if nth <= 0:
            raise ConfigError(f"{c.name}: no_rope_layer_interval = {nth} is not positive")
        return [i % nth != nth - 1 for i in range(count)]
    if len(listed) < count:
        raise ConfigError(f"{c.name}: {len(listed)} no_rope_layers for {count} layers")
    for value in listed:
        if value not in (0, 1):
            raise ConfigError(f"{c.name}: no_rope_layers has {value!r} where 0 or 1 is needed")
    return [bool(value) for value in listed[:count]]
