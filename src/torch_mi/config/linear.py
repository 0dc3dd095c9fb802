# SPDX-License-Identifier: MIT OR Apache-2.0
"""Layers with a linear recurrence other than RWKV's, as data: state spaces, gates, the delta rule.

In all of them a token reads the state that it leaves behind, S_t = fade_t S_{t-1} + k_t v_t^T.
"""

from dataclasses import dataclass
from enum import Enum

from torch_mi.config.activation import Activation
from torch_mi.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Conv:
    """A short convolution over the last tokens, channel by channel."""

    size: int
    """How many tokens it sees, itself included."""
    bias: bool

    def __post_init__(self) -> None:
        if self.size <= 0:
            raise ConfigError(f"a convolution over {self.size} tokens: it needs one at least")


@dataclass(frozen=True, kw_only=True)
class Mamba:
    """A selective state space (Gu and Dao 2023): every channel is a head with one value."""

    heads: int
    key_size: int
    """Numbers in the state of a channel."""
    step_rank: int
    conv: Conv
    bias: bool
    """Whether what enters and what leaves the layer has one."""

    @property
    def value_size(self) -> int:
        return 1

    @property
    def convolved(self) -> int:
        """How many channels the convolution has."""
        return self.heads


@dataclass(frozen=True, kw_only=True)
class Mamba2:
    """Its successor (Dao and Gu 2024): one decay for a head; keys and queries shared by groups."""

    heads: int
    key_size: int
    value_size: int
    groups: int
    conv: Conv
    bias: bool
    norm_eps: float
    least_step: float = 0.0
    most_step: float | None = None

    def __post_init__(self) -> None:
        shared(self.heads, self.groups)

    @property
    def convolved(self) -> int:
        return self.heads * self.value_size + 2 * self.groups * self.key_size


@dataclass(frozen=True, kw_only=True)
class Gla:
    """Gated linear attention (Yang et al. 2024): a decay that depends on the text."""

    heads: int
    kv_heads: int
    key_size: int
    value_size: int
    decay_rank: int
    decay_divisor: float
    """Logarithms of decays are divided by it."""
    least_decay: float | None
    """The least logarithm of a decay."""
    activation: Activation | None
    """What queries and keys go through."""
    conv: Conv | None
    gated: bool
    norm_eps: float

    def __post_init__(self) -> None:
        shared(self.heads, self.kv_heads)

    @property
    def convolved(self) -> int:
        one = self.key_size + self.value_size
        return self.heads * self.key_size + self.kv_heads * one if self.conv else 0


@dataclass(frozen=True, kw_only=True)
class RetNet:
    """Retention (Sun et al. 2023): queries and keys that turn, and a fixed decay for each head."""

    heads: int
    kv_heads: int
    key_size: int
    value_size: int
    theta: float
    """The base of the rotary embedding."""
    activation: Activation | None
    gated: bool
    norm_eps: float

    def __post_init__(self) -> None:
        shared(self.heads, self.kv_heads)

    @property
    def convolved(self) -> int:
        return 0


@dataclass(frozen=True, kw_only=True)
class Hgrn2:
    """Keys that are what the decay leaves free (Qin et al. 2024), the longer the deeper."""

    heads: int
    key_size: int
    value_size: int
    conv: Conv | None
    bounded: bool
    """Whether decays have a learned lower bound, which rises from layer to layer."""
    norm_eps: float

    @property
    def convolved(self) -> int:
        return self.heads * (2 * self.key_size + self.value_size) if self.conv else 0


class KeyActivation(Enum):
    """What the delta rule's queries and keys go through before their norm."""

    Silu = "silu"
    Relu = "relu"
    EluPlusOne = "elu"
    Identity = "identity"


class KeyNorm(Enum):
    """What the delta rule's queries and keys are divided by."""

    Length = "l2"
    Sum = "sum"


@dataclass(frozen=True, kw_only=True)
class DeltaNet:
    """The delta rule (Yang et al. 2024): a write replaces what its key finds."""

    heads: int
    key_size: int
    value_size: int
    conv: Conv | None
    gated: bool
    activation: KeyActivation
    norm: KeyNorm
    rated: bool
    """Whether a token learns how much it replaces; all, if not."""
    most_rate: float
    """How much it replaces at most: 2 turns what the key finds around."""
    norm_eps: float

    @property
    def convolved(self) -> int:
        return self.heads * (2 * self.key_size + self.value_size) if self.conv else 0


Linear = Mamba | Mamba2 | Gla | RetNet | Hgrn2 | DeltaNet
"""Layers whose state is read after it is written to, without a mixing with the token before."""


def shared(heads: int, groups: int) -> None:
    """An error unless heads can share keys evenly."""
    if groups <= 0 or heads % groups:
        raise ConfigError(f"{heads} heads cannot share the keys of {groups} groups evenly")
