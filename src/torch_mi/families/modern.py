# SPDX-License-Identifier: MIT OR Apache-2.0
"""Later dense families: norms of queries and keys, multipliers, layers without rotary embedding.

Where a config is silent, the defaults are those of transformers' config classes.
"""

from torch_mi.config.parts import BlockLayout, NormType, Over, QkNorm
from torch_mi.config.transformer import TransformerConfig
from torch_mi.errors import ConfigError
from torch_mi.families.compose import embedding, every, head
from torch_mi.families.decoder import LLAMA, NEVER
from torch_mi.families.layers import PATTERN, ButEvery, interval_layers, turning
from torch_mi.families.rope import RopeRule, RopesByKind
from torch_mi.families.rules import (
    Reader,
    Rule,
    constant,
    even_heads,
    flag,
    integer,
    inverse_root,
    kv_heads,
    number,
    read_window,
    same_everywhere,
    upper_layers,
    windowed_layers,
    windows_in,
)
from torch_mi.families.sources import Stack

NORMED = {
    "blocks.*.attn.norm_q": "model.layers.*.self_attn.q_norm",
    "blocks.*.attn.norm_k": "model.layers.*.self_attn.k_norm",
}
POST_NORMS = {
    "blocks.*.post1": "model.layers.*.post_attention_layernorm",
    "blocks.*.post2": "model.layers.*.post_feedforward_layernorm",
}
NO_MLP_BIAS = {"mlp_bias": (False,)}

QWEN3_HEAD = integer("head_dim", 128)

QWEN3 = LLAMA.but(
    "qwen3",
    rules={
        "num_kv_heads": kv_heads(absent=32),
        "head_dim": QWEN3_HEAD,
        "max_position_embeddings": integer("max_position_embeddings", 32768),
        "mlp_bias": NEVER,
        "ropes": every(RopeRule(32768, QWEN3_HEAD)),
        "windows": upper_layers,
        "attn_scales": every(inverse_root(QWEN3_HEAD)),
        "qk_norm": constant(QkNorm(NormType.Rms, Over.Head)),
    },
    sources=NORMED,
    fixed=NO_MLP_BIAS,
    tiny={
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
        "num_key_value_heads": 3,
    },
)


def smollm3_windows(c: Reader) -> tuple[int | None, ...]:
    """If windows are used at all, they are in the layers that do not turn."""
    window = c.get(int, "sliding_window")
    window = window if c.get(bool, "use_sliding_window") else None
    layers = windowed_layers(c)
    if layers is None:
        layers = [window is not None and not turns for turns in interval_layers(c)]
    return windows_in(layers, window, c)


SMOLLM3 = LLAMA.but(
    "smollm3",
    rules={
        "num_kv_heads": kv_heads(absent=4),
        "max_position_embeddings": integer("max_position_embeddings", 32768),
        "ropes": turning(RopeRule(32768, theta=2_000_000.0), interval_layers),
        "windows": smollm3_windows,
        "tie_word_embeddings": flag("tie_word_embeddings", default=True),
    },
    inert={"max_window_layers"},
    tiny={"no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 4},
)


def factor(key: str, default: float) -> Rule:
    """What something is multiplied by; once is not at all."""

    def rule(c: Reader) -> float | None:
        found = c.get(float, key)
        value = default if found is None else found
        return None if value == 1.0 else value

    return rule


def divided_logits(c: Reader) -> float | None:
    """What logits are multiplied by where the config divides them."""
    divisor = c.get(float, "logits_scaling")
    if divisor == 0:
        raise ConfigError(f"{c.name}: logits cannot be divided by logits_scaling = 0")
    return None if divisor is None or divisor == 1.0 else 1.0 / divisor


GRANITE = LLAMA.but(
    "granite",
    rules={
        "embedding": embedding(scale=factor("embedding_multiplier", 1.0)),
        "attn_scales": every(number("attention_multiplier", 1.0)),
        "residual_scale": factor("residual_multiplier", 1.0),
        "head": head(scale=divided_logits),
    },
    tiny={
        "attention_bias": True,
        "mlp_bias": True,
        "embedding_multiplier": 1.5,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.4,
        "logits_scaling": 3,
    },
)


def cohere_qk_norm(c: Reader) -> QkNorm | None:
    """Every head's queries and keys, each with gains of its own, if at all."""
    used = flag("use_qk_norm", default=False)(c)
    return QkNorm(NormType.LayerGain, Over.EachHead) if used else None


COHERE = LLAMA.but(
    "cohere",
    rules={
        "max_position_embeddings": integer("max_position_embeddings", 8192),
        "layout": constant(BlockLayout.Parallel),
        "norm_type": constant(NormType.LayerGain),
        "norm_eps": number("layer_norm_eps", 1e-5),
        "mlp_bias": NEVER,
        "ropes": every(RopeRule(8192, interleaved=True, theta=500_000.0)),
        "qk_norm": cohere_qk_norm,
        "head": head(scale=factor("logit_scale", 0.0625)),
        "tie_word_embeddings": flag("tie_word_embeddings", default=True),
    },
    sources=NORMED,
    inert={"model_max_length"},
    fixed=NO_MLP_BIAS,
    tiny={"use_qk_norm": True, "attention_bias": True, "logit_scale": 0.4},
)

ALL_BUT_FOURTH = ButEvery(4)

COHERE2 = COHERE.but(
    "cohere2",
    rules={
        "ropes": turning(RopeRule(8192, interleaved=True), ALL_BUT_FOURTH.layers),
        "windows": ALL_BUT_FOURTH,
        "qk_norm": constant(None),
    },
    inert={PATTERN},
    fixed={
        "layer_switch": (4,),
        "order_of_interleaved_layers": ("local_attn_first",),
        "position_embedding_type": ("rope_gptj",),
        "rotary_pct": (1, 1.0),
        "use_embedding_sharing": (True,),
        "use_gated_activation": (True,),
        "use_parallel_block": (True,),
        "use_parallel_embedding": (False,),
        "use_qk_norm": (False,),
    },
    tiny={"sliding_window": 4, "sliding_window_pattern": 2, "tie_word_embeddings": False},
)

OLMO = LLAMA.but(
    "olmo",
    rules={
        "norm_type": constant(NormType.LayerBare),
        "norm_eps": constant(1e-5),
        "mlp_bias": NEVER,
        "clip_qkv": lambda c: c.get(float, "clip_qkv"),
    },
    fixed=NO_MLP_BIAS,
    tiny={"clip_qkv": 0.8, "tie_word_embeddings": True},
)

OLMO2 = LLAMA.but(
    "olmo2",
    rules={
        "layout": constant(BlockLayout.Post),
        "norm_type": constant(NormType.RmsFloat),
        "norm_eps": number("rms_norm_eps", 1e-5),
        "mlp_bias": NEVER,
        "qk_norm": constant(QkNorm(NormType.RmsFloat, Over.Whole)),
    },
    sources={**NORMED, **POST_NORMS},
    fixed=NO_MLP_BIAS,
    tiny={"attention_bias": True, "num_key_value_heads": 3},
)

OLMO3_WINDOWS = ButEvery(4, key=None)
OLMO3_ROPE = RopeRule(2048, theta=500_000.0)

OLMO3 = OLMO2.but(
    "olmo3",
    rules={
        "ropes": RopesByKind(OLMO3_ROPE, OLMO3_ROPE, OLMO3_WINDOWS),
        "windows": OLMO3_WINDOWS,
    },
    # of another base at the top level, versions of transformers disagree which layers it is for
    fixed={"rope_theta": (500_000, 500_000.0)},
    tiny={
        "rope_theta": None,
        "sliding_window": 4,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 30.0}
        },
    },
)


def exaone4_windows(c: Reader) -> tuple[int | None, ...]:
    """All layers but every fourth, unless there is no window or `layer_types` says otherwise."""
    if read_window(c, 4096) is None:
        return same_everywhere(None, c)
    return ALL_BUT_FOURTH(c)


def exaone4_turning(c: Reader) -> list[bool]:
    """Where there are windows at all, only the layers that have one turn."""
    return [read_window(c, 4096) is None or window is not None for window in exaone4_windows(c)]


EXAONE4 = LLAMA.but(
    "exaone4",
    rules={
        "num_kv_heads": kv_heads(absent=32),
        "layout": constant(BlockLayout.Post),
        "norm_eps": number("rms_norm_eps", 1e-5),
        "qkv_bias": NEVER,
        "o_proj_bias": NEVER,
        "mlp_bias": NEVER,
        "ropes": turning(RopeRule(2048), exaone4_turning),
        "windows": exaone4_windows,
        "qk_norm": constant(QkNorm(NormType.Rms, Over.Head)),
    },
    sources={**NORMED, **POST_NORMS},
    inert={PATTERN},
    fixed={"attention_bias": (False,), **NO_MLP_BIAS},
    tiny={"sliding_window": 4, "sliding_window_pattern": 2},
)


def stablelm_layout(c: Reader) -> BlockLayout:
    """Attention and MLP side by side on one norm, or one after the other."""
    parallel = flag("use_parallel_residual", default=False)(c)
    return BlockLayout.Parallel if parallel else BlockLayout.Pre


def stablelm_qk_norm(c: Reader) -> QkNorm | None:
    """The same arithmetic as Cohere's."""
    used = flag("qk_layernorm", default=False)(c)
    return QkNorm(NormType.LayerGain, Over.EachHead) if used else None


def query_heads(cfg: TransformerConfig) -> int:
    """How many norms of queries there are."""
    return cfg.num_attention_heads


def key_heads(cfg: TransformerConfig) -> int:
    """How many norms of keys there are."""
    return cfg.num_kv_heads


STABLELM = LLAMA.but(
    "stablelm",
    rules={
        "num_kv_heads": kv_heads(absent=32),
        "head_dim": even_heads,
        "max_position_embeddings": integer("max_position_embeddings", 4096),
        "layout": stablelm_layout,
        "norm_type": constant(NormType.Layer),
        "norm_eps": number("layer_norm_eps", 1e-5),
        "qkv_bias": flag("use_qkv_bias", default=False),
        "o_proj_bias": NEVER,
        "mlp_bias": NEVER,
        "ropes": every(RopeRule(4096, even_heads, partial=True, part=0.25)),
        "attn_scales": every(inverse_root(even_heads)),
        "qk_norm": stablelm_qk_norm,
    },
    sources={
        "blocks.*.attn.norm_q": Stack("model.layers.*.self_attn.q_layernorm.norms.#", query_heads),
        "blocks.*.attn.norm_k": Stack("model.layers.*.self_attn.k_layernorm.norms.#", key_heads),
    },
    fixed={"attention_bias": (False,), **NO_MLP_BIAS},
    tiny={
        "head_dim": None,
        "hidden_size": 36,
        "partial_rotary_factor": 0.7,
        "use_qkv_bias": True,
        "qk_layernorm": True,
        "use_parallel_residual": True,
    },
)

MODERN = (
    QWEN3,
    SMOLLM3,
    GRANITE,
    COHERE,
    COHERE2,
    OLMO,
    OLMO2,
    OLMO3,
    EXAONE4,
    STABLELM,
)
