# SPDX-License-Identifier: MIT OR Apache-2.0
"""LLaMA and those that differ from it little."""

from tests.parity.cases.case import WIDE, Case, rope

YARN = rope("yarn", factor=4.0, original_max_position_embeddings=8)
SHORT = [1.0, 1.3, 2.5]
LONG = [1.0, 2.0, 6.0]

CASES = (
    Case("llama-gqa-biased", "llama", {**WIDE, "attention_bias": True, "mlp_bias": True}),
    Case("llama-mqa-tied", "llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    Case("llama-mha-linear", "llama", {"num_key_value_heads": 6, **rope("linear", factor=3.0)}),
    Case("llama-dynamic", "llama", {"max_position_embeddings": 9, **rope("dynamic", factor=4.0)}),
    Case("llama-yarn", "llama", YARN),
    Case(
        "llama-llama3",
        "llama",
        {
            **WIDE,
            **rope(
                "llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=16,
            ),
        },
    ),
    Case("mistral-window", "mistral", {**WIDE, "sliding_window": 5}),
    Case("mistral-no-window-yarn", "mistral", {"sliding_window": None, **YARN}),
    Case(
        "qwen2-upper-windows-tied",
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
    ),
    Case("qwen2-windows-not-used", "qwen2", {"use_sliding_window": False, "sliding_window": 4}),
    Case("qwen2-yarn", "qwen2", {"num_key_value_heads": 6, **YARN}),
    Case("gemma-mqa", "gemma", {**WIDE, "num_key_value_heads": 1}),
    Case("gemma-untied", "gemma", {**WIDE, "tie_word_embeddings": False}),
    Case(
        "gemma2-caps",
        "gemma2",
        {
            **WIDE,
            "sliding_window": 4,
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 2.5,
            "query_pre_attn_scalar": 7,
        },
    ),
    Case(
        "gemma2-no-caps",
        "gemma2",
        {
            **WIDE,
            "sliding_window": 6,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        },
    ),
    Case(
        "phi3-partial",
        "phi3",
        {"hidden_size": 60, "sliding_window": 6, **rope("default", partial_rotary_factor=0.4)},
    ),
    Case("phi3-window", "phi3", {"sliding_window": 5, "num_key_value_heads": 3}),
    Case(
        "phi3-longrope-short",
        "phi3",
        {
            "original_max_position_embeddings": 32,
            **rope("longrope", short_factor=SHORT, long_factor=LONG),
        },
    ),
    Case(
        "phi3-longrope-long",
        "phi3",
        {
            "original_max_position_embeddings": 10,
            **rope("longrope", short_factor=SHORT, long_factor=LONG),
        },
    ),
    Case("starcoder2-window", "starcoder2", {**WIDE, "sliding_window": 5}),
    Case(
        "starcoder2-unbiased-untied",
        "starcoder2",
        {"use_bias": False, "tie_word_embeddings": False, **rope("linear", factor=2.0)},
    ),
    Case("mistral-tied", "mistral", {"tie_word_embeddings": True, "num_key_value_heads": 3}),
    Case(
        "gemma2-untied",
        "gemma2",
        {**WIDE, "sliding_window": 4, "query_pre_attn_scalar": 7, "tie_word_embeddings": False},
    ),
    Case("phi3-tied", "phi3", {"sliding_window": 5, "tie_word_embeddings": True}),
)
