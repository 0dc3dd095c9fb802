# SPDX-License-Identifier: MIT OR Apache-2.0
"""BLOOM, Falcon and MPT: scores that fall with distance, or turn (most of Falcon)."""

from torch_mi.config.activation import Activation
from torch_mi.config.parts import Alibi, BlockLayout, NormType
from torch_mi.config.rope import Rope
from torch_mi.errors import ConfigError
from torch_mi.families.compose import embedding, every
from torch_mi.families.decoder import ALWAYS, FIXED, INERT, NEVER, qkv_rows
from torch_mi.families.family import Family
from torch_mi.families.gpt import EVEN_SHARE, GPT2, four_times, in_turn, one_or_all
from torch_mi.families.rope import RopeRule
from torch_mi.families.rules import (
    Reader,
    Rule,
    activation,
    constant,
    even_heads,
    flag,
    integer,
    inverse_root,
)
from torch_mi.families.sources import Rows

BIASED_RULES: dict[str, Rule] = {
    **{name: rule for name, rule in GPT2.rules.items() if name != "embedding"},
    "max_position_embeddings": integer("max_position_embeddings", 2048),
    "attn_scales": every(inverse_root(even_heads)),
}

PRETRAINING = {"attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion"}

BLOOM = Family(
    "bloom",
    rules={
        **BIASED_RULES,
        "intermediate_size": four_times,
        "embedding": embedding(norm=ALWAYS),
        "activation": constant(Activation.GeluTanh),
        "alibi": constant(Alibi()),
    },
    sources={
        "tokens": "transformer.word_embeddings",
        "norm0": "transformer.word_embeddings_layernorm",
        "blocks.*.norm1": "transformer.h.*.input_layernorm",
        **in_turn("transformer.h.*.self_attention.query_key_value"),
        "blocks.*.attn.o": "transformer.h.*.self_attention.dense",
        "blocks.*.norm2": "transformer.h.*.post_attention_layernorm",
        "blocks.*.mlp.up": "transformer.h.*.mlp.dense_h_to_4h",
        "blocks.*.mlp.down": "transformer.h.*.mlp.dense_4h_to_h",
        "norm": "transformer.ln_f",
        "head": "lm_head",
    },
    # the offset moves all biases alike, which a softmax does not see
    inert=INERT | PRETRAINING | {"offset_alibi", "skip_bias_add", "slow_but_exact", "unk_token_id"},
    fixed={
        **FIXED,
        "apply_residual_connection_post_layernorm": (False,),
        "n_inner": (),
        "skip_bias_add_qkv": (False,),
    },
    aliases={
        "n_embed": "hidden_size",
        "n_head": "num_attention_heads",
        "n_layer": "num_hidden_layers",
        "seq_length": "max_position_embeddings",
    },
    tiny={**EVEN_SHARE, "intermediate_size": None},
)


def falcon_layout(c: Reader) -> BlockLayout:
    """Attention before the MLP, beside it behind one norm, or beside it with a norm for each."""
    newer, beside = c.get(bool, "new_decoder_architecture"), flag("parallel_attn", default=True)(c)
    norms = integer("num_ln_in_parallel_attn", 2 if newer else 1)(c)
    if newer and not beside:
        raise ConfigError(
            f"{c.name}: parallel_attn = False does not go with new_decoder_architecture = True"
        )
    if not beside:
        return BlockLayout.Pre
    if norms == 1:
        return BlockLayout.Parallel
    if norms == 2 and newer:  # noqa: PLR2004 - one for attention, one for the MLP
        return BlockLayout.ParallelTwo
    raise ConfigError(
        f"{c.name}: num_ln_in_parallel_attn = {norms} does not go with "
        f"new_decoder_architecture = {bool(newer)}"
    )


def falcon_kv_heads(c: Reader) -> int:
    """Grouped heads in newer models; in older ones `num_kv_heads` means nothing."""
    listed = c.get(int, "num_kv_heads")
    older = one_or_all(c)
    if not c.get(bool, "new_decoder_architecture"):
        return older
    return c.need(int, "num_attention_heads") if listed is None else listed


def falcon_rope(c: Reader) -> Rope | None:
    """Heads turn unless there are biases."""
    if not c.get(bool, "alibi"):
        return RopeRule(2048, even_heads)(c)
    c.get(float, "rope_theta")
    c.objects("rope_scaling", "rope_parameters")
    return None


def falcon_alibi(c: Reader) -> Alibi | None:
    """Biases, rounded and scaled as the model was trained."""
    return Alibi(scaled=True, rounded=True) if c.get(bool, "alibi") else None


FALCON_BIASED = flag("bias", default=False)

FALCON = Family(
    "falcon",
    rules={
        **BIASED_RULES,
        "num_kv_heads": falcon_kv_heads,
        "layout": falcon_layout,
        "activation": activation("activation", "gelu"),
        "qkv_bias": FALCON_BIASED,
        "o_proj_bias": FALCON_BIASED,
        "mlp_bias": FALCON_BIASED,
        "ropes": every(falcon_rope),
        "alibi": falcon_alibi,
    },
    sources={
        "tokens": "transformer.word_embeddings",
        "blocks.*.norm1": "transformer.h.*.input_layernorm",
        **in_turn("transformer.h.*.self_attention.query_key_value"),
        "blocks.*.attn.o": "transformer.h.*.self_attention.dense",
        "blocks.*.norm2": "transformer.h.*.post_attention_layernorm",
        "blocks.*.mlp.up": "transformer.h.*.mlp.dense_h_to_4h",
        "blocks.*.mlp.down": "transformer.h.*.mlp.dense_4h_to_h",
        "norm": "transformer.ln_f",
        "head": "lm_head",
    },
    inert=INERT | {"ff_factor"},
    fixed={**FIXED, "apply_residual_connection_post_layernorm": (False,)},
    buffers=("transformer.h.*.self_attention.rotary_emb.inv_freq",),
    variants=(
        {"blocks.*.norm1": "transformer.h.*.ln_attn", "blocks.*.norm2": "transformer.h.*.ln_mlp"},
    ),
    aliases={"ffn_hidden_size": "intermediate_size", "n_embed": "hidden_size"},
    tiny={
        **EVEN_SHARE,
        "bias": True,
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
        "rope_theta": 100.0,
    },
)


def mpt_attention(c: Reader) -> Reader:
    """What MPT says of attention, in an object of its own."""
    return Reader(c.objects("attn_config").get("attn_config", {}), "attn_config")


MPT_FIXED: dict[str, object] = {
    "alibi": True,
    "attn_type": "multihead_attention",
    "attn_uses_sequence_id": False,
    "prefix_lm": False,
    "qk_ln": False,
    "rope": False,
}
"""What of `attn_config` changes nothing as long as it has this value."""


def mpt_alibi(c: Reader) -> Alibi:
    """Biases with slopes of their own; of other kinds of attention there are none."""
    r = mpt_attention(c)
    for key, value in MPT_FIXED.items():
        found = r.get(type(value), key)
        if found not in (None, value):
            raise ConfigError(f"{r.name} has {key} = {found!r}; in mpt only {value!r} is modelled")
    steepest = r.get(float, "alibi_bias_max")
    for key in ("clip_qkv", "softmax_scale"):
        r.get(float, key)
    r.refuse_unread(INERT | set(FIXED) | {"attn_impl", "attn_pdrop"}, "mpt")
    # transformers reads how steep the slopes are and then takes them for 8
    return Alibi() if steepest is None else Alibi(max_bias=steepest)


def mpt_scale(c: Reader) -> float:
    """What scores are multiplied by."""
    given = mpt_attention(c).get(float, "softmax_scale")
    return even_heads(c) ** -0.5 if given is None else given


def mpt_clip(c: Reader) -> float | None:
    """The bound of queries, keys and values; zero is none."""
    return mpt_attention(c).get(float, "clip_qkv") or None


MPT = Family(
    "mpt",
    rules={
        **BIASED_RULES,
        "intermediate_size": four_times,
        "norm_type": constant(NormType.LayerGain),
        "activation": constant(Activation.Gelu),
        "qkv_bias": NEVER,
        "o_proj_bias": NEVER,
        "mlp_bias": NEVER,
        "alibi": mpt_alibi,
        "attn_scales": every(mpt_scale),
        "clip_qkv": mpt_clip,
    },
    sources={
        "tokens": "transformer.wte",
        "blocks.*.norm1": "transformer.blocks.*.norm_1",
        "blocks.*.attn.q": Rows("transformer.blocks.*.attn.Wqkv", qkv_rows, 0),
        "blocks.*.attn.k": Rows("transformer.blocks.*.attn.Wqkv", qkv_rows, 1),
        "blocks.*.attn.v": Rows("transformer.blocks.*.attn.Wqkv", qkv_rows, 2),
        "blocks.*.attn.o": "transformer.blocks.*.attn.out_proj",
        "blocks.*.norm2": "transformer.blocks.*.norm_2",
        "blocks.*.mlp.up": "transformer.blocks.*.ffn.up_proj",
        "blocks.*.mlp.down": "transformer.blocks.*.ffn.down_proj",
        "norm": "transformer.norm_f",
        "head": "lm_head",
    },
    # biases take the place of learned positions, whatever the config says of those
    inert=INERT
    | {"emb_pdrop", "embedding_fraction", "init_config", "init_device", "learned_pos_emb"}
    | {"resid_pdrop", "tokenizer_name", "verbose"},
    fixed={
        **FIXED,
        "expansion_ratio": (4,),
        "logit_scale": (),
        "no_bias": (True,),
        "norm_type": ("layernorm", "low_precision_layernorm"),
    },
    aliases={
        "d_model": "hidden_size",
        "max_seq_len": "max_position_embeddings",
        "n_heads": "num_attention_heads",
        "n_layers": "num_hidden_layers",
    },
    tiny={
        **EVEN_SHARE,
        "intermediate_size": None,
        "attn_config": {"alibi_bias_max": 3, "clip_qkv": 0.7, "softmax_scale": 0.4},
    },
)

LINEAR_BIASES = (BLOOM, FALCON, MPT)
