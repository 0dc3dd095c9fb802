# SPDX-License-Identifier: MIT OR Apache-2.0
"""Which writes to a recurrent state to remove or rescale; only recurrent models have one.

A token's write to the state of layer i is knocked out (factor 0) or scaled. What the token adds to
its own output through a bonus term, and the token shift, are not touched.
"""

from dataclasses import dataclass, replace
from typing import Self

from torch_mi.errors import InterventionError


@dataclass(frozen=True)
class StateKnockoutSpec:
    """State writes to remove: at these positions, in these layers (`None` is every layer)."""

    positions: tuple[int, ...] = ()
    layers: tuple[int, ...] | None = None

    def position(self, *positions: int) -> Self:
        """These positions too."""
        return replace(self, positions=(*self.positions, *positions))

    def layer(self, *layers: int) -> Self:
        """These layers and no others."""
        return replace(self, layers=layers)

    def layer_range(self, first: int, last: int) -> Self:
        """Layers `first` to `last`, both included, and no others."""
        return replace(self, layers=tuple(range(first, last + 1)))

    def applies_to_layer(self, layer: int) -> bool:
        return self.layers is None or layer in self.layers

    def position_set(self) -> frozenset[int]:
        return frozenset(self.positions)

    def validate(self, n_layers: int, seq_len: int) -> None:
        """Raise `InterventionError` unless this fits a run of `seq_len` tokens."""
        if not self.positions:
            raise InterventionError(f"{type(self).__name__} names no positions")
        for layer in self.layers or ():
            if not 0 <= layer < n_layers:
                raise InterventionError(f"layer {layer} is out of range: the model has {n_layers}")
        for position in self.positions:
            if not 0 <= position < seq_len:
                raise InterventionError(
                    f"position {position} is out of range: the run has {seq_len}"
                )


@dataclass(frozen=True)
class StateSteeringSpec(StateKnockoutSpec):
    """State writes to multiply by `scale`: 0 removes, 1 changes nothing."""

    scale: float = 1.0
