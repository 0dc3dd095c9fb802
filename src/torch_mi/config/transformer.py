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
    Learned,
    NormType,
    QkNorm,
    member,
)
from torch_mi.config.rope import Rope
from torch_mi.errors import ConfigError, did_you_mean

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

LARGEST = 2**28
"""What no size of a model exceeds; a larger one is a mistake, and would be slow to find out."""

PLAIN_EMBEDDING, PLAIN_HEAD = Embedding(), Head()

PER_LAYER = ("ropes", "windows", "attn_scales")
"""Fields with an entry for each layer."""

POSITIONS = ("learned", "rotary", "alibi", "none")
"""How a model written by hand knows where a token stands."""

MLP_WIDTH = 4
"""Neurons of its MLPs for each dimension of the residual stream."""


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

    @classmethod
    def toy(  # noqa: PLR0913 - a config is made of choices
        cls,
        *,
        vocab_size: int,
        num_layers: int = 1,
        hidden_size: int = 64,
        num_attention_heads: int = 4,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        intermediate_size: int | None = None,
        max_position_embeddings: int = 64,
        positions: str = "learned",
        norm_type: NormType | str = NormType.Layer,
        layout: BlockLayout | str = BlockLayout.Pre,
        activation: Activation | str = Activation.Gelu,
        gated_mlp: bool = False,
        biases: bool = True,
        causal: bool = True,
        output_vocab_size: int | None = None,
        tie_word_embeddings: bool = False,
    ) -> "TransformerConfig":
        """A small model in a few words; what is not said is as in GPT-2.

        Heads share the width evenly, each with keys and values of its own; an MLP has four neurons
        for each dimension (`intermediate_size=0` is a model of attention alone); scores are divided
        by the root of `head_dim`; there are as many logits as tokens. `norm_type`, `layout` and
        `activation` are given by value ("layer", "rms", "absent"; "pre", "parallel"; "gelu",
        "relu", "solu_norm"). For everything else: `dataclasses.replace(cfg, ...)`.
        """
        if positions not in POSITIONS:
            near = did_you_mean(positions, POSITIONS)
            raise ConfigError(f"positions={positions!r} is none of {', '.join(POSITIONS)}{near}")
        width = _share(hidden_size, num_attention_heads) if head_dim is None else head_dim
        learned = Learned(max_position_embeddings) if positions == "learned" else None
        layers = max(num_layers, 0)
        return cls(
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_attention_heads=num_attention_heads,
            num_kv_heads=num_attention_heads if num_kv_heads is None else num_kv_heads,
            head_dim=width,
            intermediate_size=(
                MLP_WIDTH * hidden_size if intermediate_size is None else intermediate_size
            ),
            vocab_size=vocab_size,
            max_position_embeddings=max_position_embeddings,
            embedding=Embedding(learned=learned),
            layout=member(BlockLayout, layout),
            norm_type=member(NormType, norm_type),
            norm_eps=1e-5,
            activation=member(Activation, activation),
            gated_mlp=gated_mlp,
            qkv_bias=biases,
            o_proj_bias=biases,
            mlp_bias=biases,
            causal=causal,
            ropes=(Rope(10000.0, width) if positions == "rotary" else None,) * layers,
            alibi=Alibi() if positions == "alibi" else None,
            windows=(None,) * layers,
            attn_scales=(max(width, 1) ** -0.5,) * layers,
            head=Head(bias=biases, vocab_size=output_vocab_size),
            tie_word_embeddings=tie_word_embeddings,
        )

    def __post_init__(self) -> None:
        for name in COUNTS:
            if self.__dict__[name] <= 0:
                raise ConfigError(f"{name} = {self.__dict__[name]} is not positive")
        for name in (*COUNTS[:-1], "intermediate_size"):
            if self.__dict__[name] > LARGEST:
                raise ConfigError(f"{name} = {self.__dict__[name]} is beyond any model")
        if self.intermediate_size < 0:
            raise ConfigError(f"intermediate_size = {self.intermediate_size} is negative")
        if self.num_attention_heads % self.num_kv_heads:
            raise ConfigError(
                f"{self.num_attention_heads} attention heads cannot share "
                f"{self.num_kv_heads} key/value heads evenly"
            )
        self._check_layers()
        self._check_parts()
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

    def _check_parts(self) -> None:
        experts, latent = self.experts, self.latent
        if experts is not None and len(experts.layers) != self.num_layers:
            raise ConfigError(f"{len(experts.layers)} experts.layers for {self.num_layers} layers")
        if experts is not None and not all(experts.layers) and self.intermediate_size == 0:
            raise ConfigError("intermediate_size = 0, but some layers have no experts")
        if latent is None:
            return
        if (self.num_kv_heads, self.head_dim) != (self.num_attention_heads, latent.head_dim):
            raise ConfigError(
                f"latent attention has a key and value for each of {self.num_attention_heads} "
                f"heads, {latent.nope_dim} + {latent.rope_dim} wide; the config says "
                f"{self.num_kv_heads} heads, {self.head_dim} wide"
            )
        if self.qk_norm is not None or self.clip_qkv is not None:
            raise ConfigError("latent attention neither norms nor clips queries and keys")

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
    def final_norm_type(self) -> NormType:
        """The norm before the unembedding."""
        return self.norm_type if self.head.norm_type is None else self.head.norm_type

    @property
    def attention_only(self) -> bool:
        """Whether no layer has an MLP."""
        return self.intermediate_size == 0 and self.experts is None

    def has_experts(self, layer: int) -> bool:
        """Whether a layer has a mixture of experts in place of one MLP."""
        return self.experts is not None and self.experts.layers[layer]


def _share(width: int, heads: int) -> int:
    """An even share of the width for each head."""
    if heads <= 0 or width % heads:
        raise ConfigError(
            f"{heads} attention heads cannot share a width of {width} evenly; give head_dim"
        )
    return width // heads
