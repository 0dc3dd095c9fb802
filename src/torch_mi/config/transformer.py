# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a decoder-only transformer is, as data: every field is a choice of arithmetic."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from torch import Tensor
from torch.nn.functional import gelu, relu, silu

from torch_mi.errors import ConfigError


class Activation(Enum):
    """The nonlinearity of the MLP."""

    Silu = "silu"
    Gelu = "gelu"
    """Exact, with the error function."""
    GeluTanh = "gelu_tanh"
    """The tanh approximation."""
    Relu = "relu"

    @property
    def function(self) -> Callable[[Tensor], Tensor]:
        match self:
            case Activation.Silu:
                return silu
            case Activation.Gelu:
                return gelu
            case Activation.GeluTanh:
                return gelu_tanh
            case Activation.Relu:
                return relu


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GELU."""
    return gelu(x, approximate="tanh")


class NormType(Enum):
    """How a norm divides and multiplies, and where it rounds in low precision."""

    Rms = "rms"
    """x / rms(x), rounded to the model's dtype, times the gain (LLaMA)."""
    RmsPlusOne = "rms_plus_one"
    """x / rms(x) times (1 + gain), all in float32, then rounded (Gemma)."""
    Layer = "layer"
    """(x - mean) / std times gain plus bias."""


@dataclass(frozen=True)
class Linear:
    """Positions divided by `factor`."""

    factor: float


@dataclass(frozen=True)
class DynamicNtk:
    """The base grows once a sequence is longer than `context`."""

    factor: float
    context: int


@dataclass(frozen=True)
class Yarn:
    """YaRN (Peng et al. 2023): interpolate long wavelengths, keep short ones, sharpen scores."""

    factor: float
    context: int
    attention_factor: float
    beta_fast: float
    beta_slow: float
    truncate: bool


@dataclass(frozen=True)
class Llama3:
    """Llama 3.1: keep short wavelengths, divide long ones, blend in between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    context: int


@dataclass(frozen=True)
class LongRope:
    """LongRoPE (Ding et al. 2024): one divisor per frequency, by whether the run is long."""

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    context: int
    attention_factor: float


RopeScaling = Linear | DynamicNtk | Yarn | Llama3 | LongRope


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: base, how many of a head's dimensions turn, and the scaling."""

    theta: float
    dim: int
    scaling: RopeScaling | None = None


COUNTS = (
    "hidden_size",
    "num_layers",
    "num_attention_heads",
    "num_kv_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
)
"""Fields of a `TransformerConfig` that count things."""


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """One decoder-only transformer. No field names a model family; each names arithmetic."""

    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    """Told to the user; no run is refused for being longer."""
    norm_type: NormType
    norm_eps: float
    activation: Activation
    gated_mlp: bool = True
    qkv_bias: bool = False
    o_proj_bias: bool = False
    mlp_bias: bool = False
    rope: Rope
    windows: tuple[int | None, ...]
    """How many keys each layer's queries see, themselves included; `None` is all of them."""
    attn_scale: float
    """What scores are multiplied by."""
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    use_post_norms: bool = False
    """Norms on the outputs of attention and MLP as well as on their inputs."""
    embedding_scale: float | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        for name in COUNTS:
            if self.__dict__[name] <= 0:
                raise ConfigError(f"{name} = {self.__dict__[name]} is not positive")
        if self.num_attention_heads % self.num_kv_heads:
            raise ConfigError(
                f"{self.num_attention_heads} attention heads cannot share "
                f"{self.num_kv_heads} key/value heads evenly"
            )
        if self.rope.dim % 2 or not 0 < self.rope.dim <= self.head_dim:
            raise ConfigError(
                f"{self.rope.dim} rotary dimensions do not fit heads of {self.head_dim}; "
                "an even number up to that is needed"
            )
        if len(self.windows) != self.num_layers:
            raise ConfigError(f"{len(self.windows)} windows for {self.num_layers} layers")
        if any(window is not None and window <= 0 for window in self.windows):
            raise ConfigError("a window without keys: a query sees at least itself")
        if isinstance(self.rope.scaling, DynamicNtk) and self.rope.dim <= 2:  # noqa: PLR2004
            raise ConfigError("a base that grows with the run needs more than 2 rotary dimensions")
