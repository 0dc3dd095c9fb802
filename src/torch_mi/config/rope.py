# SPDX-License-Identifier: MIT OR Apache-2.0
"""Rotary position embedding as data: base, width, pairing, and how it is stretched."""

from dataclasses import dataclass

from torch_mi.errors import ConfigError


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
    interleaved: bool = False
    """Whether dimension 2j turns with 2j + 1 (GPT-J), not j with j + dim / 2 (GPT-NeoX)."""

    def __post_init__(self) -> None:
        if self.dim % 2 or self.dim <= 0:
            raise ConfigError(f"{self.dim} rotary dimensions: an even number above zero is needed")
        if isinstance(self.scaling, DynamicNtk) and self.dim <= 2:  # noqa: PLR2004
            raise ConfigError("a base that grows with the run needs more than 2 rotary dimensions")
