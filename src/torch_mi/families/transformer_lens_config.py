# SPDX-License-Identifier: MIT OR Apache-2.0
"""TransformerLens' `HookedTransformerConfig`, folded or not, as what its model computes.

A key that is not known here, or that turns on what is not modelled, is refused.
"""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import TypeVar, cast

from torch_mi.config.activation import Activation
from torch_mi.config.parts import (
    Alibi,
    BlockLayout,
    Embedding,
    Head,
    Learned,
    NormType,
    Over,
    QkNorm,
)
from torch_mi.config.rope import Linear, Llama3, Rope, RopeScaling
from torch_mi.config.transformer import TransformerConfig
from torch_mi.errors import ConfigError, did_you_mean
from torch_mi.families.rules import Reader, brief

T = TypeVar("T")

WHOSE = "HookedTransformer"

NORMS: dict[str | None, NormType] = {
    "LN": NormType.Layer,
    "LNPre": NormType.LayerBare,
    "RMS": NormType.Rms,
    "RMSPre": NormType.RmsBare,
    None: NormType.Absent,
}
FOLDED = {NormType.RmsBare: NormType.Rms, NormType.LayerBare: NormType.Layer}
"""Norms whose gains were multiplied into what reads them -> what they were."""

ACTIVATIONS = {
    "relu": Activation.Relu,
    "relu2": Activation.ReluSquared,
    "gelu": Activation.Gelu,
    "gelu_new": Activation.GeluTanh,
    "gelu_fast": Activation.GeluTanh,
    "gelu_pytorch_tanh": Activation.GeluTanh,
    "silu": Activation.Silu,
    "solu": Activation.Solu,
    "solu_ln": Activation.SoluNorm,
}

INERT = frozenset(
    """
    checkpoint_index checkpoint_label_type checkpoint_value d_mlp decoder_start_token_id
    default_prepend_bos device dtype experts_per_token from_checkpoint init_mode init_weights
    initializer_range layer_norm_folding model_name n_devices n_params norm_topk_prob
    NTK_by_parts_factor NTK_by_parts_high_freq_factor NTK_by_parts_low_freq_factor
    NTK_original_ctx_len rotary_adjacent_pairs rotary_base rotary_base_local rotary_dim
    rotary_scaling_factor seed tie_word_embeddings tokenizer_name tokenizer_prepends_bos
    train_seq_length trust_remote_code ungroup_grouped_query_attention use_attn_in use_attn_result
    use_hook_mlp_in use_hook_tokens use_NTK_by_parts_rope use_split_qkv_input uses_rms_norm
    yarn_attention_factor yarn_beta_fast yarn_beta_slow yarn_factor yarn_global_attn_only
    yarn_original_max_position_embeddings yarn_truncate attn_types window_size act_fn final_rms
    attn_scale gated_mlp
    """.split()  # noqa: SIM905 - a list of words
)
"""Keys that change nothing, or nothing without another key that is read."""

FIXED: dict[str, tuple[object, ...]] = {
    "load_in_4bit": (False,),
    "num_experts": (),
    "quantization_method": (),
    "relative_attention_max_distance": (),
    "relative_attention_num_buckets": (),
    "use_attention_sinks": (False,),
    "use_dynamic_ntk_rope": (False,),
    "use_logn_attn": (False,),
    "use_yarn_rope": (False,),
}
"""Keys that may only have one of these values, or none."""

OTHERWISE = ("OlmoeForCausalLM", "Olmo2ForCausalLM", "Olmo3ForCausalLM", "GptOssForCausalLM")
"""Architectures that TransformerLens computes differently by their name alone."""


def read_lens_config(theirs: object) -> TransformerConfig:
    """What a `HookedTransformer` of this config computes."""
    raw = _raw(theirs)
    c = Reader(raw, "the TransformerLens config")
    heads, width = c.need(int, "n_heads"), c.need(int, "d_model")
    head_dim = c.need(int, "d_head")
    layers, vocab = c.need(int, "n_layers"), c.need(int, "d_vocab")
    heads = width // max(head_dim, 1) if heads == -1 else heads
    attention_only = c.get(bool, "attn_only") or False
    norm = _norm(c)
    cfg = TransformerConfig(
        hidden_size=width,
        num_layers=layers,
        num_attention_heads=heads,
        num_kv_heads=c.get(int, "n_key_value_heads") or heads,
        head_dim=head_dim,
        intermediate_size=0 if attention_only else c.get(int, "d_mlp") or 4 * width,
        vocab_size=vocab,
        max_position_embeddings=c.need(int, "n_ctx"),
        embedding=_embedding(c, norm),
        layout=_layout(c, norm),
        norm_type=FOLDED.get(norm, norm) if _sandwiched(c) else norm,
        norm_eps=_number(c, "eps", 1e-5),
        activation=Activation.Relu if attention_only else _activation(c),
        gated_mlp=_flag(c, "gated_mlp") and not attention_only,
        qkv_bias=True,
        o_proj_bias=True,
        mlp_bias=True,
        causal=_choice(c, "attention_dir", {"causal": True, "bidirectional": False}, "causal"),
        ropes=_ropes(c, layers, head_dim),
        alibi=_alibi(c, heads),
        windows=_windows(c, layers),
        attn_scales=_scales(c, layers, head_dim),
        attn_logit_softcapping=_cap(c, "attn_scores_soft_cap"),
        qk_norm=QkNorm(NormType.Rms, Over.Head) if _flag(c, "use_qk_norm") else None,
        clip_qkv=c.get(float, "clip_qkv"),
        head=_head(c, vocab, norm),
    )
    _refuse_rest(c, raw)
    return cfg


def _raw(theirs: object) -> dict[str, object]:
    """A config's entries as plain values."""
    if not isinstance(theirs, Mapping):
        try:
            theirs = vars(theirs)
        except TypeError as cause:
            raise ConfigError(
                "a TransformerLens config is a HookedTransformerConfig or a dict, "
                f"not a {type(theirs).__name__}"
            ) from cause
    entries = cast("Mapping[str, object]", theirs)
    return {key: _plain(value) for key, value in entries.items()}


def _plain(value: object) -> object:
    """A number of numpy's as Python's."""
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, tuple):
        return list(cast("tuple[object, ...]", value))
    return float(value) if isinstance(value, Real) else value


def _flag(c: Reader, key: str) -> bool:
    return c.get(bool, key) or False


def _number(c: Reader, key: str, default: float) -> float:
    found = c.get(float, key)
    return default if found is None else found


def _cap(c: Reader, key: str) -> float | None:
    """A soft-cap; what is not above zero is none."""
    found = _number(c, key, -1.0)
    return found if found > 0 else None


def _choice(c: Reader, key: str, choices: Mapping[str, T], default: str) -> T:
    name = c.get(str, key) or default
    if name not in choices:
        raise ConfigError(
            f"{c.name} has {key} = {name!r}; modelled are {', '.join(choices)}"
            f"{did_you_mean(name, choices)}"
        )
    return choices[name]


def _norm(c: Reader) -> NormType:
    """What stands before attention and MLP; null is nothing, absence their default."""
    name = c.get(str, "normalization_type")
    if name is None and not c.given("normalization_type"):
        name = "LN"
    if name not in NORMS:
        known = ", ".join(str(key) for key in NORMS)
        raise ConfigError(f"{c.name} has normalization_type = {name!r}; modelled are {known}")
    return NORMS[name]


def _sandwiched(c: Reader) -> bool:
    return _flag(c, "use_normalization_before_and_after")


def _layout(c: Reader, norm: NormType) -> BlockLayout:
    parallel = _flag(c, "parallel_attn_mlp")
    if not _sandwiched(c):
        return BlockLayout.ParallelTwo if parallel else BlockLayout.Pre
    if parallel or norm.centred:
        raise ConfigError(
            f"{c.name} has use_normalization_before_and_after, which is modelled for RMS and "
            "RMSPre without parallel_attn_mlp"
        )
    return BlockLayout.Sandwich


def _head(c: Reader, vocab: int, norm: NormType) -> Head:
    logits = c.get(int, "d_vocab_out")
    return Head(
        bias=True,
        softcap=_cap(c, "output_logits_soft_cap"),
        vocab_size=None if logits in (None, -1, vocab) else logits,
        norm_type=_final_norm(c, norm),
    )


def _final_norm(c: Reader, norm: NormType) -> NormType | None:
    """The final norm, if it is unlike the others."""
    if not _flag(c, "final_rms") or not norm.centred:
        return None
    return NormType.Rms if norm is NormType.Layer else NormType.RmsBare


def _positions(c: Reader) -> str:
    kinds = {kind: kind for kind in ("standard", "rotary", "alibi")}
    return _choice(c, "positional_embedding_type", kinds, "standard")


def _embedding(c: Reader, norm: NormType) -> Embedding:
    learned = _positions(c) == "standard"
    normed = _flag(c, "post_embedding_ln")
    if normed and (learned or norm is not NormType.Layer):
        raise ConfigError(
            f"{c.name} has post_embedding_ln, which is modelled for normalization_type = 'LN' "
            "without learned positions"
        )
    return Embedding(learned=Learned(c.need(int, "n_ctx")) if learned else None, norm=normed)


def _activation(c: Reader) -> Activation:
    found = _choice(c, "act_fn", ACTIVATIONS, "relu")
    if found is Activation.SoluNorm and _flag(c, "gated_mlp"):
        raise ConfigError(f"{c.name} has act_fn = 'solu_ln' in a gated MLP, which is not modelled")
    return found


def _local(c: Reader, layers: int) -> list[bool]:
    """Which layers look through the window."""
    if not _flag(c, "use_local_attn"):
        return [False] * layers
    kinds = cast("list[object]", c.need(list, "attn_types"))
    if len(kinds) < layers or not set(kinds) <= {"global", "local"}:
        raise ConfigError(
            f"{c.name} has attn_types = {brief(kinds)}; "
            f"'global' or 'local' is needed for each of {layers} layers"
        )
    return [kind == "local" for kind in kinds[:layers]]


def _windows(c: Reader, layers: int) -> tuple[int | None, ...]:
    """The windows; a model that looks both ways looks past them."""
    local = _local(c, layers)
    if not any(local) or c.get(str, "attention_dir") == "bidirectional":
        return (None,) * layers
    window = c.need(int, "window_size")
    return tuple(window if here else None for here in local)


def _ropes(c: Reader, layers: int, head_dim: int) -> tuple[Rope | None, ...]:
    if _positions(c) != "rotary":
        return (None,) * layers
    base, near = _number(c, "rotary_base", 10000.0), c.get(float, "rotary_base_local")
    dim = c.get(int, "rotary_dim") or head_dim
    paired, scaling = _flag(c, "rotary_adjacent_pairs"), _scaling(c)
    ropes = list[Rope]()
    for here in _local(c, layers):
        linear = here and isinstance(scaling, Linear)
        theta = near if here and near is not None else base
        ropes.append(Rope(theta, dim, None if linear else scaling, interleaved=paired))
    return tuple(ropes)


def _scaling(c: Reader) -> RopeScaling | None:
    """How rotary embeddings are stretched."""
    factor = _number(c, "rotary_scaling_factor", 1.0)
    if _flag(c, "use_NTK_by_parts_rope"):
        context = c.get(int, "NTK_original_ctx_len")
        return Llama3(
            factor=_number(c, "NTK_by_parts_factor", 8.0),
            low_freq_factor=_number(c, "NTK_by_parts_low_freq_factor", 1.0),
            high_freq_factor=_number(c, "NTK_by_parts_high_freq_factor", 4.0),
            context=8192 if context is None else context,
        )
    return None if factor == 1.0 else Linear(factor)


def _alibi(c: Reader, heads: int) -> Alibi | None:
    """Linear biases; theirs are those of the paper only for a power of two heads that look back."""
    if _positions(c) != "alibi":
        return None
    if heads & (heads - 1) or c.get(str, "attention_dir") == "bidirectional":
        raise ConfigError(
            f"{c.name} has positional_embedding_type = 'alibi', which is modelled for a power of "
            f"two heads (not {heads}) in a causal model"
        )
    return Alibi()


def _scales(c: Reader, layers: int, head_dim: int) -> tuple[float, ...]:
    """What each layer's scores are multiplied by; theirs is what they are divided by."""
    divisor = _number(c, "attn_scale", -1.0)
    divisor = max(head_dim, 1) ** 0.5 if divisor == -1.0 else divisor
    wanted = c.get(bool, "use_attn_scale")
    divisor = 1.0 if wanted is False else divisor
    if divisor <= 0:
        raise ConfigError(f"{c.name} has attn_scale = {divisor}, which is not positive")
    inverse = _flag(c, "scale_attn_by_inverse_layer_idx")
    return tuple(1 / (divisor * (layer + 1 if inverse else 1)) for layer in range(layers))


def _refuse_rest(c: Reader, raw: Mapping[str, object]) -> None:
    """What is set and neither read nor harmless."""
    for key, values in FIXED.items():
        value = raw.get(key)
        if value is not None and not any(value is each for each in values):
            raise ConfigError(f"{c.name} has {key} = {brief(value)}, which is not modelled")
    named = raw.get("original_architecture")
    if named in OTHERWISE:
        raise ConfigError(
            f"{c.name} has original_architecture = {named!r}, which TransformerLens computes in a "
            "way of its own; load the original checkpoint with MIModel.from_pretrained"
        )
    c.refuse_unread(INERT | set(FIXED) | {"original_architecture"}, WHOSE)
