# SPDX-License-Identifier: MIT OR Apache-2.0
"""The choices a transformer is made of, where each is more than a number."""

from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from torch_mi.errors import ConfigError, did_you_mean

E = TypeVar("E", bound=Enum)


def member(kind: type[E], value: object) -> E:
    """The member of an enum that is meant by itself or by its value."""
    try:
        return kind(value)
    except ValueError as cause:
        values = [str(each.value) for each in kind]
        raise ConfigError(
            f"{value!r} is no {kind.__name__}; there are {', '.join(values)}"
            f"{did_you_mean(str(value), values)}"
        ) from cause


class NormType(Enum):
    """How a norm divides and multiplies, and where it rounds in low precision."""

    Rms = "rms"
    """x / rms(x), rounded to the model's dtype, times the gain (LLaMA)."""
    RmsFloat = "rms_float"
    """x / rms(x) times the gain, all in float32, then rounded (OLMo 2)."""
    RmsPlusOne = "rms_plus_one"
    """x / rms(x) times (1 + gain), all in float32, then rounded (Gemma)."""
    RmsBare = "rms_bare"
    """x / rms(x) and no parameters."""
    Layer = "layer"
    """(x - mean) / std times gain plus bias."""
    LayerGain = "layer_gain"
    """(x - mean) / std times gain, without a bias."""
    LayerBare = "layer_bare"
    """(x - mean) / std and no parameters."""
    Absent = "absent"
    """No norm at all."""

    @property
    def centred(self) -> bool:
        """Whether the mean is taken off first."""
        return self in (NormType.Layer, NormType.LayerGain, NormType.LayerBare)

    @property
    def has_gain(self) -> bool:
        return self not in (NormType.RmsBare, NormType.LayerBare, NormType.Absent)

    @property
    def has_bias(self) -> bool:
        return self is NormType.Layer


class BlockLayout(Enum):
    """Where a layer's norms stand, and whether its two halves follow each other."""

    Pre = "pre"
    """A norm before attention, one before the MLP."""
    Sandwich = "sandwich"
    """Norms on the outputs of both halves as well as on their inputs (Gemma 2)."""
    Post = "post"
    """Norms on the outputs alone: both halves read the residual stream itself (OLMo 2)."""
    Parallel = "parallel"
    """Attention and MLP read one norm of the same residual stream (GPT-J)."""
    ParallelTwo = "parallel_two"
    """Attention and MLP read the same residual stream, each through its own norm (GPT-NeoX)."""

    @property
    def norms_inputs(self) -> bool:
        return self is not BlockLayout.Post

    @property
    def norms_outputs(self) -> bool:
        return self in (BlockLayout.Sandwich, BlockLayout.Post)

    @property
    def parallel(self) -> bool:
        return self in (BlockLayout.Parallel, BlockLayout.ParallelTwo)


class Over(Enum):
    """What a norm of queries and keys runs over."""

    Head = "head"
    """Each head, with one gain that all share."""
    EachHead = "each_head"
    """Each head, with a gain of its own."""
    Whole = "whole"
    """All heads together."""


@dataclass(frozen=True)
class QkNorm:
    """A norm of queries and of keys, before they turn."""

    norm_type: NormType
    over: Over


@dataclass(frozen=True)
class Learned:
    """A learned vector for each absolute position; position p is row p + offset."""

    rows: int
    offset: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.offset < self.rows:
            raise ConfigError(
                f"a table of {self.rows} learned positions that begin at row {self.offset}"
            )


@dataclass(frozen=True)
class Embedding:
    """How tokens become the first residual stream."""

    scale: float | None = None
    """Multiplies token embeddings."""
    learned: Learned | None = None
    """Learned positions, added to the tokens."""
    norm: bool = False
    """Whether a norm follows (BLOOM)."""


@dataclass(frozen=True)
class Alibi:
    """Attention with linear biases (Press et al. 2022): scores fall with distance, head by head."""

    max_bias: float = 8.0
    """The steepest slope is 2 ** (-max_bias / heads), rounded up to a power of two heads."""
    scaled: bool = False
    """Whether the biases are multiplied by the scale of the scores too (Falcon)."""
    rounded: bool = False
    """Whether the biases are rounded to bfloat16, at their absolute positions (Falcon)."""


@dataclass(frozen=True)
class Head:
    """How the last residual stream becomes logits, after the final norm."""

    bias: bool = False
    scale: float | None = None
    """Multiplies the logits."""
    softcap: float | None = None
    """Squashes them to (-softcap, softcap), after the scale."""
    vocab_size: int | None = None
    """How many logits there are, if not one for each token of the input."""
    norm_type: NormType | None = None
    """The final norm, if it is not like the others."""

    def __post_init__(self) -> None:
        if self.vocab_size is not None and self.vocab_size <= 0:
            raise ConfigError(f"{self.vocab_size} logits: there must be some")


class Scoring(Enum):
    """How a router's logits become weights."""

    Softmax = "softmax"
    Sigmoid = "sigmoid"


class GroupScore(Enum):
    """How a group of experts is judged by those in it."""

    Best = "best"
    """The highest score (DeepSeek-V2)."""
    TwoBest = "two_best"
    """The sum of the two highest scores (DeepSeek-V3)."""


@dataclass(frozen=True, kw_only=True)
class Experts:
    """A mixture of experts in place of one MLP."""

    layers: tuple[bool, ...]
    """Which layers have one; the others have the plain MLP."""
    count: int
    chosen: int
    """How many experts each token goes to."""
    width: int
    """Neurons in each expert."""
    scoring: Scoring = Scoring.Softmax
    exact: bool = False
    """Whether the router's logits are computed in float32 in a model of any dtype (DeepSeek-V2)."""
    normalised: bool = False
    """Whether the chosen experts' weights are divided by their sum."""
    scale: float = 1.0
    """What the weights are multiplied by in the end."""
    correction: bool = False
    """Whether a learned bias is added to the scores for the choice alone (DeepSeek-V3)."""
    groups: int = 1
    chosen_groups: int = 1
    """Experts are chosen from the best groups only."""
    group_score: GroupScore = GroupScore.Best
    shared_width: int = 0
    """Neurons of the expert that every token goes to; 0 for none."""
    shared_gate: bool = False
    """Whether a sigmoid of its own weighs the shared expert (Qwen2-MoE)."""

    def __post_init__(self) -> None:
        for name in ("count", "chosen", "width", "groups", "chosen_groups"):
            if self.__dict__[name] <= 0:
                raise ConfigError(f"experts: {name} = {self.__dict__[name]} is not positive")
        if self.shared_width < 0:
            raise ConfigError(f"experts: shared_width = {self.shared_width} is negative")
        if self.count % self.groups or self.chosen_groups > self.groups:
            raise ConfigError(
                f"{self.count} experts cannot be chosen from {self.chosen_groups} "
                f"of {self.groups} groups of one size"
            )
        if self.groups > 1 and self.group_score is GroupScore.TwoBest and self.group_size == 1:
            raise ConfigError(f"{self.groups} groups of one expert have no two best ones")
        if self.chosen > self.chosen_groups * self.group_size:
            raise ConfigError(
                f"{self.chosen} experts for each token, but there are "
                f"{self.chosen_groups * self.group_size} to choose from"
            )

    @property
    def group_size(self) -> int:
        return self.count // self.groups


@dataclass(frozen=True, kw_only=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2): keys and values unfold from one narrow vector.

    A head's queries and keys are `nope_dim` dimensions that stay and `rope_dim` that turn; the
    turning part of the key is shared by all heads.
    """

    query_rank: int | None
    """Width through which queries are squeezed, or `None` if they are not."""
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    norm_eps: float = 1e-6
    """Of the norms of the narrow vectors."""

    def __post_init__(self) -> None:
        for name in ("query_rank", "kv_rank", "nope_dim", "rope_dim", "value_dim"):
            size = self.__dict__[name]
            if size is not None and size <= 0:
                raise ConfigError(f"latent attention: {name} = {size} is not positive")

    @property
    def head_dim(self) -> int:
        """The width of queries and keys."""
        return self.nope_dim + self.rope_dim
