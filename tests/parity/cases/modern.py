# SPDX-License-Identifier: MIT OR Apache-2.0
"""Later dense families: norms of queries and keys, multipliers, layers that do not turn."""

from tests.parity.cases.case import COMMON, WIDE, Case, Config, rope

NARROW: Config = {**COMMON, "hidden_size": 60}
"""Heads of ten that share evenly."""


def by_kind(whole: Config, windowed: Config) -> Config:
    """Two rotary embeddings, by kind of layer."""
    return {"rope_parameters": {"full_attention": whole, "sliding_attention": windowed}}


def turn(theta: float, kind: str = "default", **more: object) -> Config:
    """One of them."""
    return {"rope_type": kind, "rope_theta": theta, **more}


LLAMA3 = rope(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
YARN: Config = {"factor": 4.0, "original_max_position_embeddings": 8}
VISION: Config = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
"""What a model sees images with."""
MIXED = ["full_attention", "sliding_attention", "sliding_attention"]

CASES = (
    Case("qwen3-biased", "qwen3", {**WIDE, "attention_bias": True}),
    Case(
        "qwen3-windows-tied",
        "qwen3",
        {
            **WIDE,
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
    ),
    Case("qwen3-yarn-mqa", "qwen3", {**WIDE, "num_key_value_heads": 1, **rope("yarn", **YARN)}),
    Case("smollm3-interval-tied", "smollm3", {"no_rope_layer_interval": 2}),
    Case(
        "smollm3-listed-biased",
        "smollm3",
        {
            **WIDE,
            "no_rope_layers": [0, 1, 1],
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
            **rope("linear", factor=2.0),
        },
    ),
    Case(
        "smollm3-windows",
        "smollm3",
        {"no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 5},
    ),
    Case(
        "granite-multipliers",
        "granite",
        {
            **WIDE,
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.25,
            "residual_multiplier": 0.3,
            "logits_scaling": 6.0,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    Case("granite-plain-tied", "granite", {"tie_word_embeddings": True, **LLAMA3}),
    Case("cohere-plain", "cohere"),
    Case(
        "cohere-normed-untied",
        "cohere",
        {
            **WIDE,
            "use_qk_norm": True,
            "attention_bias": True,
            "logit_scale": 0.4,
            "tie_word_embeddings": False,
        },
    ),
    Case("cohere-dynamic", "cohere", {"max_position_embeddings": 9, **rope("dynamic", factor=4.0)}),
    Case("cohere2-windows", "cohere2", {"sliding_window": 5, "sliding_window_pattern": 2}),
    Case(
        "cohere2-listed-biased-untied",
        "cohere2",
        {
            "sliding_window": 4,
            "layer_types": MIXED,
            "attention_bias": True,
            "logit_scale": 1.0,
            "tie_word_embeddings": False,
        },
        common=NARROW,
    ),
    Case("olmo-clipped", "olmo", {**WIDE, "clip_qkv": 0.7}),
    Case(
        "olmo-biased-tied",
        "olmo",
        {"num_key_value_heads": None, "attention_bias": True, "tie_word_embeddings": True},
    ),
    Case("olmo2-biased", "olmo2", {**WIDE, "attention_bias": True}),
    Case("olmo2-mha-tied", "olmo2", {"num_key_value_heads": 6, "tie_word_embeddings": True}),
    Case(
        "olmo3-yarn",
        "olmo3",
        {
            **WIDE,
            "sliding_window": 5,
            **by_kind(turn(500_000.0, "yarn", **YARN), turn(500_000.0)),
            "layer_types": MIXED,
        },
    ),
    Case(
        "olmo3-biased-tied",
        "olmo3",
        {
            "sliding_window": 4,
            "num_hidden_layers": 4,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    Case("exaone4-hybrid", "exaone4", {**WIDE, "sliding_window": 5, "sliding_window_pattern": 2}),
    Case(
        "exaone4-whole-tied",
        "exaone4",
        {
            "sliding_window": None,
            "layer_types": ["full_attention"] * 3,
            "tie_word_embeddings": True,
            **LLAMA3,
        },
    ),
    Case(
        "stablelm-biased",
        "stablelm",
        {"use_qkv_bias": True, **rope("default", partial_rotary_factor=0.4)},
        common=NARROW,
    ),
    Case(
        "stablelm-parallel-tied",
        "stablelm",
        {
            "use_parallel_residual": True,
            "tie_word_embeddings": True,
            **rope("default", partial_rotary_factor=0.5),
        },
        common={**NARROW, "hidden_size": 48},
    ),
    Case(
        "stablelm-normed-parallel",
        "stablelm",
        {
            "qk_layernorm": True,
            "use_parallel_residual": True,
            "use_qkv_bias": True,
            **rope("linear", factor=3.0, partial_rotary_factor=0.6),
        },
        common=NARROW,
        shared=False,
    ),
    Case(
        "gemma3-text-caps-untied",
        "gemma3_text",
        {
            **WIDE,
            "sliding_window": 4,
            "sliding_window_pattern": 2,
            "query_pre_attn_scalar": 7,
            "final_logit_softcapping": 2.5,
            "tie_word_embeddings": False,
            **by_kind(turn(900.0, "linear", factor=8.0), turn(20.0)),
        },
    ),
    Case(
        "gemma3-text-biased",
        "gemma3_text",
        {
            **WIDE,
            "sliding_window": 5,
            "layer_types": MIXED,
            "attention_bias": True,
            **by_kind(turn(500.0), turn(30.0)),
        },
    ),
    Case(
        "gemma3-images-tied",
        "gemma3",
        {
            "text_config": {
                **COMMON,
                **WIDE,
                "sliding_window": 4,
                "sliding_window_pattern": 2,
                "query_pre_attn_scalar": 7,
                **by_kind(turn(900.0, "linear", factor=8.0), turn(20.0)),
            },
            "vision_config": VISION,
        },
        common={},
    ),
    Case(
        "gemma3-images-untied",
        "gemma3",
        {
            "text_config": {**COMMON, **WIDE, "layer_types": MIXED, "sliding_window": 5},
            "vision_config": VISION,
            "mm_tokens_per_image": 4,
            "tie_word_embeddings": False,
        },
        common={},
    ),
)
