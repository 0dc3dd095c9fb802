# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a decoder-only transformer is, as data: every field is a choice of arithmetic."""

from dataclasses import dataclass

from torch_mi.config.activation import Activation
from torch_mi.config.parts import (
    Alibi,
    BlockLayout,
    Embedding,
    Experts,
    Head,
    Latent,
    NormType,
    QkNorm,
)
from torch_mi.config.rope import Rope
from torch_mi.errors import ConfigError

COUNTS = (
    "hidden_size",
    "num_layers",
    "num_attention_heads",
    "num_kv_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)
"""Fields of a `TransformerConfig` that count things of which there must be some."""

PLAIN_EMBEDDING, PLAIN_HEAD = Embedding(), Head()

PER_LAYER = ("ropes", "windows", "attn_scales")
"""Fields with an entry for each layer."""


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """One decoder-only transformer. No field names a model family; each names arithmetic."""

    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    """Neurons of an MLP; 0 for a model of attention alone."""
    vocab_size: int
    max_position_embeddings: int
    """Told to the user; no run is refused for being longer, unless positions are learned."""
    embedding: Embedding = PLAIN_EMBEDDING
    layout: BlockLayout = BlockLayout.Pre
    norm_type: NormType
    norm_eps: float
    activation: Activation
    gated_mlp: bool = True
    qkv_bias: bool = False
    o_proj_bias: bool = False
    mlp_bias: bool = False
    causal: bool = True
    """Whether a query sees no key that comes after it."""
    ropes: tuple[Rope | None, ...]
    """How each layer's queries and keys turn with position; `None` is not at all."""
    alibi: Alibi | None = None
    windows: tuple[int | None, ...]
    """How many keys each layer's queries see, themselves included; `None` is all of them."""
    attn_scales: tuple[float, ...]
    """What each layer's scores are multiplied by."""
    attn_logit_softcapping: float | None = None
    qk_norm: QkNorm | None = None
    clip_qkv: float | None = None
    """Queries, keys and values are clipped to ± this."""
    latent: Latent | None = None
    """How keys and values are squeezed, if they are."""
    experts: Experts | None = None
    residual_scale: float | None = None
    """Multiplies what attention and MLP add to the residual stream."""
    head: Head = PLAIN_HEAD
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        for name in COUNTS:
            if self.__dict__[name] <= 0:
                raise ConfigError(f"{name} = {self.__dict__[name]} is not positive")
        if self.intermediate_size < 0:
            raise ConfigError(f"intermediate_size = {self.intermediate_size} is negative")
        if self.num_attention_heads % self.num_kv_heads:
            raise ConfigError(
                f"{self.num_attention_heads} attention heads cannot share "
                f"{self.num_kv_heads} key/value heads evenly"
            )
        self._check_layers()
        if self.tie_word_embeddings and self.output_vocab_size != self.vocab_size:
            raise ConfigError(
                f"a tied unembedding has {self.vocab_size} logits, not {self.output_vocab_size}"
            )

    def _check_layers(self) -> None:
        for name in PER_LAYER:
            if len(self.__dict__[name]) != self.num_layers:
                count = len(self.__dict__[name])
                raise ConfigError(f"{count} {name} for {self.num_layers} layers")
        if any(window is not None and window <= 0 for window in self.windows):
            raise ConfigError("a window without keys: a query sees at least itself")
        turning = self.head_dim if self.latent is None else self.latent.rope_dim
        for rope in self.ropes:
            if rope is not None and rope.dim > turning:
                raise ConfigError(
                    f"{rope.dim} rotary dimensions do not fit heads of {turning}; "
                    "an even number up to that is needed"
                )

    @property
    def embedding_scale(self) -> float | None:
        """What token embeddings are multiplied by."""
        return self.embedding.scale

    @property
    def final_logit_softcapping(self) -> float | None:
        """The bound that logits are squashed to."""
        return self.head.softcap

    @property
    def output_vocab_size(self) -> int:
        """How many logits there are."""
        return self.vocab_size if self.head.vocab_size is None else self.head.vocab_size

    @property
    def attention_only(self) -> bool:
        """Whether no layer has an MLP."""
        return self.intermediate_size == 0 and self.experts is None

    def has_experts(self, layer: int) -> bool:
        """Whether a layer has a mixture of experts in place of one MLP."""
        return self.experts is not None and self.experts.layers[layer]
