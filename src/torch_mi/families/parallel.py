# SPDX-License-Identifier: MIT OR Apache-2.0
"""GPT-J, GPT-NeoX and Phi: attention beside the MLP, rotary embedding of a part of each head."""

from typing import cast

from torch_mi.config.parts import BlockLayout, NormType, Over, QkNorm
from torch_mi.config.rope import Rope
from torch_mi.errors import ConfigError
from torch_mi.families.compose import every, head
from torch_mi.families.decoder import ALWAYS, FIXED, INERT, NEVER, qkv_rows
from torch_mi.families.family import Family
from torch_mi.families.gpt import EVEN_SHARE, GPT2, GPT_KEYS, SUMMARY, four_times, in_turn
from torch_mi.families.rope import RopeRule, plain
from torch_mi.families.rules import (
    HEAD_DIM,
    Reader,
    Rule,
    activation,
    constant,
    even_heads,
    flag,
    integer,
    inverse_root,
    kv_heads,
    number,
)
from torch_mi.families.sources import Rows

ROTARY_RULES: dict[str, Rule] = {
    **{name: rule for name, rule in GPT2.rules.items() if name != "embedding"},
    "max_position_embeddings": integer("max_position_embeddings", 2048),
    "layout": constant(BlockLayout.Parallel),
    "attn_scales": every(inverse_root(even_heads)),
    "tie_word_embeddings": flag("tie_word_embeddings", default=False),
}


def by_ten_thousand(turn: RopeRule, whose: str) -> Rule:
    """A rotary embedding whose base is not for the config to say."""

    def rule(c: Reader) -> Rope:
        rope = turn(c)
        if rope.theta != turn.theta:
            raise ConfigError(
                f"{c.name}: rope_theta = {rope.theta}, but {whose} always turns by {turn.theta}"
            )
        return rope

    return rule


GPTJ_TURN = RopeRule(
    2048,
    head_dim=integer("rotary_dim", 64),
    kinds={"default": plain, "gptj": plain},
    interleaved=True,
)

GPTJ = Family(
    "gptj",
    rules={
        **ROTARY_RULES,
        "qkv_bias": NEVER,
        "o_proj_bias": NEVER,
        "ropes": every(by_ten_thousand(GPTJ_TURN, "gptj")),
        "head": head(bias=ALWAYS),
    },
    sources={
        "tokens": "transformer.wte",
        "blocks.*.norm1": "transformer.h.*.ln_1",
        "blocks.*.attn.q": "transformer.h.*.attn.q_proj",
        "blocks.*.attn.k": "transformer.h.*.attn.k_proj",
        "blocks.*.attn.v": "transformer.h.*.attn.v_proj",
        "blocks.*.attn.o": "transformer.h.*.attn.out_proj",
        "blocks.*.mlp.up": "transformer.h.*.mlp.fc_in",
        "blocks.*.mlp.down": "transformer.h.*.mlp.fc_out",
        "norm": "transformer.ln_f",
        "head": "lm_head",
    },
    inert=INERT | SUMMARY | {"attn_pdrop"},
    fixed={
        **FIXED,
        "rotary": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "scale_attn_weights": (True,),
    },
    buffers=(
        "transformer.h.*.attn.bias",
        "transformer.h.*.attn.masked_bias",
        "transformer.h.*.attn.embed_positions",
    ),
    aliases=GPT_KEYS,
    tiny={**EVEN_SHARE, "num_attention_heads": 3, "rotary_dim": 6},
)


def side_by_side(c: Reader) -> BlockLayout:
    """Attention beside the MLP, each with its norm, or before it."""
    beside = flag("use_parallel_residual", default=True)(c)
    return BlockLayout.ParallelTwo if beside else BlockLayout.Pre


NEOX_TURN = RopeRule(
    2048, even_heads, partial=True, part=0.25, base="rotary_emb_base", share="rotary_pct"
)


def neox_rope(c: Reader) -> Rope:
    """What transformers calls these keys may stand beside GPT-NeoX's own, and be no different."""
    rope = NEOX_TURN(c)
    theta, part = c.get(float, "rope_theta"), c.get(float, "partial_rotary_factor")
    if theta is not None and theta != rope.theta:
        raise ConfigError(
            f"{c.name}: rope_theta = {theta}, but gpt_neox reads rotary_emb_base, "
            f"which makes it {rope.theta}"
        )
    if part is not None and int(part * even_heads(c)) != rope.dim:
        raise ConfigError(
            f"{c.name}: partial_rotary_factor = {part}, but gpt_neox reads rotary_pct, "
            f"by which {rope.dim} dimensions turn"
        )
    return rope


NEOX_BIASED = flag("attention_bias", default=True)

GPT_NEOX = Family(
    "gpt_neox",
    rules={
        **ROTARY_RULES,
        "intermediate_size": integer("intermediate_size", 24576),
        "layout": side_by_side,
        "norm_eps": number("layer_norm_eps", 1e-5),
        "activation": activation("hidden_act", "gelu"),
        "qkv_bias": NEOX_BIASED,
        "o_proj_bias": NEOX_BIASED,
        "ropes": every(neox_rope),
    },
    sources={
        "tokens": "gpt_neox.embed_in",
        "blocks.*.norm1": "gpt_neox.layers.*.input_layernorm",
        **in_turn("gpt_neox.layers.*.attention.query_key_value"),
        "blocks.*.attn.o": "gpt_neox.layers.*.attention.dense",
        "blocks.*.norm2": "gpt_neox.layers.*.post_attention_layernorm",
        "blocks.*.mlp.up": "gpt_neox.layers.*.mlp.dense_h_to_4h",
        "blocks.*.mlp.down": "gpt_neox.layers.*.mlp.dense_4h_to_h",
        "norm": "gpt_neox.final_layer_norm",
        "head": "embed_out",
    },
    inert=INERT | {"classifier_dropout"},
    fixed=FIXED,
    buffers=(
        "gpt_neox.layers.*.attention.bias",
        "gpt_neox.layers.*.attention.masked_bias",
        "gpt_neox.layers.*.attention.rotary_emb.inv_freq",
        "gpt_neox.rotary_emb.inv_freq",
    ),
    variants=({"head": "lm_head"},),
    tiny={
        **EVEN_SHARE,
        "num_attention_heads": 3,
        "rotary_pct": 0.5,
        "rotary_emb_base": 100,
    },
)


def phi_norm(c: Reader) -> QkNorm | None:
    """A layer norm of each query and key, if the config asks for it."""
    asked = flag("qk_layernorm", default=False)(c)
    return QkNorm(NormType.Layer, Over.Head) if asked else None


PHI = Family(
    "phi",
    rules={
        **ROTARY_RULES,
        "num_kv_heads": kv_heads(),
        "head_dim": HEAD_DIM,
        "intermediate_size": integer("intermediate_size", 8192),
        "norm_eps": number("layer_norm_eps", 1e-5),
        "activation": activation("hidden_act", "gelu_new"),
        "ropes": every(RopeRule(2048, partial=True, part=0.5)),
        "attn_scales": every(inverse_root(HEAD_DIM)),
        "qk_norm": phi_norm,
        "head": head(bias=ALWAYS),
    },
    sources={
        "tokens": "model.embed_tokens",
        "blocks.*.norm1": "model.layers.*.input_layernorm",
        "blocks.*.attn.q": "model.layers.*.self_attn.q_proj",
        "blocks.*.attn.k": "model.layers.*.self_attn.k_proj",
        "blocks.*.attn.v": "model.layers.*.self_attn.v_proj",
        "blocks.*.attn.norm_q": "model.layers.*.self_attn.q_layernorm",
        "blocks.*.attn.norm_k": "model.layers.*.self_attn.k_layernorm",
        "blocks.*.attn.o": "model.layers.*.self_attn.dense",
        "blocks.*.mlp.up": "model.layers.*.mlp.fc1",
        "blocks.*.mlp.down": "model.layers.*.mlp.fc2",
        "norm": "model.final_layernorm",
        "head": "lm_head",
    },
    inert=INERT,
    fixed=FIXED,
    buffers=("model.layers.*.self_attn.rotary_emb.inv_freq",),
    tiny={"partial_rotary_factor": 0.6, "qk_layernorm": True},
)


def turning_part(c: Reader) -> int:
    """How many dimensions of a head turn: not more than it has."""
    return min(cast("int", integer("rotary_dim", 32)(c)), even_heads(c))


PHI_MSFT = Family(
    "phi-msft",
    rules={
        **ROTARY_RULES,
        "num_kv_heads": kv_heads(),
        "intermediate_size": integer("intermediate_size", four_times),
        "ropes": every(
            by_ten_thousand(RopeRule(2048, turning_part, {"default": plain}), "phi-msft")
        ),
        "head": head(bias=ALWAYS),
    },
    sources={
        "tokens": "transformer.embd.wte",
        "blocks.*.norm1": "transformer.h.*.ln",
        "blocks.*.attn.q": Rows("transformer.h.*.mixer.Wqkv", qkv_rows, 0),
        "blocks.*.attn.k": Rows("transformer.h.*.mixer.Wqkv", qkv_rows, 1),
        "blocks.*.attn.v": Rows("transformer.h.*.mixer.Wqkv", qkv_rows, 2),
        "blocks.*.attn.o": "transformer.h.*.mixer.out_proj",
        "blocks.*.mlp.up": "transformer.h.*.mlp.fc1",
        "blocks.*.mlp.down": "transformer.h.*.mlp.fc2",
        "norm": "lm_head.ln",
        "head": "lm_head.linear",
    },
    inert=INERT | {"attn_pdrop", "flash_attn", "flash_rotary", "fused_dense"},
    fixed={**FIXED, "img_processor": (), "scale_attn_weights": (True,)},
    buffers=(
        "transformer.h.*.mixer.rotary_emb.inv_freq",
        "transformer.h.*.mixer.rotary_emb.scale",
    ),
    aliases={**GPT_KEYS, "n_head_kv": "num_key_value_heads"},
    tiny={"head_dim": None, "rope_theta": None, "rotary_dim": 2},
)

PARALLEL = (GPTJ, GPT_NEOX, PHI, PHI_MSFT)
