# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a recurrent language model is, as data: every field is a choice of arithmetic."""

from dataclasses import dataclass
from enum import Enum

from torch_mi.config.linear import Linear
from torch_mi.config.parts import NormType
from torch_mi.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Rwkv4:
    """Means of all earlier values, weighted by key and distance, channel by channel."""

    width: int
    """Channels."""

    @property
    def heads(self) -> int:
        return self.width

    @property
    def key_size(self) -> int:
        return 1

    @property
    def value_size(self) -> int:
        return 1


@dataclass(frozen=True, kw_only=True)
class Rwkv5:
    """A matrix of keys and values for each head, with a fixed decay (Eagle)."""

    heads: int
    key_size: int
    value_size: int
    gated: bool
    by_channel: bool
    """Whether each channel has its decay and bonus, or a head one for all."""
    norm_eps: float


@dataclass(frozen=True, kw_only=True)
class Rwkv6:
    """The same, with a decay and a mixing of tokens that depend on the text (Finch)."""

    heads: int
    key_size: int
    value_size: int
    mix_rank: int
    decay_rank: int
    norm_eps: float


@dataclass(frozen=True, kw_only=True)
class Rwkv7:
    """A state that erases what a key finds before it writes: the delta rule (Goose)."""

    heads: int
    key_size: int
    value_size: int
    decay_rank: int
    rate_rank: int
    value_rank: int
    gate_rank: int
    norm_eps: float


Rwkv = Rwkv4 | Rwkv5 | Rwkv6 | Rwkv7
Mixer = Rwkv | Linear
"""How a layer mixes what earlier tokens left with what this one brings."""


class ChannelMix(Enum):
    """What stands in the place of the MLP."""

    Gated = "gated"
    """Squared ReLU behind a gate, both of this token and the one before (RWKV-4 to 6)."""
    Plain = "plain"
    """Squared ReLU of this token and the one before (RWKV-7)."""
    Swiglu = "swiglu"
    """A gated MLP of this token alone."""
    Absent = "absent"
    """Nothing: a layer is its time mixing (Mamba)."""

    @property
    def shifts(self) -> bool:
        """Whether it reads the token before."""
        return self in (ChannelMix.Gated, ChannelMix.Plain)


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """One recurrent language model. No field names a model family; each names arithmetic."""

    hidden_size: int
    num_layers: int
    intermediate_size: int
    """Neurons of the channel mixing; 0 where there is none."""
    vocab_size: int
    max_position_embeddings: int
    """The length it was trained on, told to the user; no run is refused for being longer."""
    mixer: Mixer
    channel_mix: ChannelMix
    previous_first: bool
    """Whether mixing coefficients say how much of the token before is taken, not of this one; it
    says nothing where no token before is mixed in."""
    norm_type: NormType
    norm_eps: float
    embedding_norm: bool
    """Whether embeddings are normed before the first layer."""
    tie_word_embeddings: bool = False
    tuned_state: bool = False
    """Whether texts begin with a state that was trained, not with an empty one."""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_layers", "vocab_size"):
            if int(self.__dict__[name]) <= 0:
                raise ConfigError(f"{name} is {self.__dict__[name]}; there must be at least one")
        if (self.intermediate_size > 0) is (self.channel_mix is ChannelMix.Absent):
            raise ConfigError(
                f"intermediate_size is {self.intermediate_size} in a model whose channel mixing is "
                f"{self.channel_mix.value}"
            )
        if min(self.mixer.heads, self.mixer.key_size, self.mixer.value_size) <= 0:
            raise ConfigError(f"a model without heads, keys or values: {self.mixer}")

    @property
    def head_dim(self) -> int:
        """The larger of a head's key and value sizes."""
        return max(self.mixer.key_size, self.mixer.value_size)
