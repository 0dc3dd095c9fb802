# SPDX-License-Identifier: MIT OR Apache-2.0
"""GPT-2 and its kin, with learned positions, parts that turn, or linear biases."""

from tests.parity.cases.case import COMMON, Case, Config, rope

TOKENS: Config = {
    "vocab_size": 83,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}

GPT: Config = {
    **TOKENS,
    "n_embd": 36,
    "n_head": 6,
    "n_inner": 44,
    "n_layer": 3,
    "n_positions": 64,
}
"""Sizes of the models whose configs call them as GPT-2's does."""

NEO: Config = {
    **TOKENS,
    "hidden_size": 36,
    "num_heads": 6,
    "intermediate_size": 44,
    "num_layers": 3,
    "max_position_embeddings": 64,
    "attention_types": [[["local"], 1], [["global", "local"], 1]],
    "window_size": 5,
}

NEOX: Config = {key: value for key, value in COMMON.items() if key != "num_key_value_heads"}

OPT: Config = {
    **{key: value for key, value in NEOX.items() if key != "intermediate_size"},
    "ffn_dim": 44,
}

BLOOM: Config = {**TOKENS, "hidden_size": 36, "n_head": 6, "n_layer": 3}

FALCON: Config = {
    **{key: value for key, value in NEOX.items() if key != "intermediate_size"},
    "ffn_hidden_size": 44,
}

MPT: Config = {**TOKENS, "d_model": 36, "n_heads": 6, "n_layers": 3, "max_seq_len": 64}

SMALL: dict[str, Config] = {
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "gpt_neo": NEO,
    "opt": OPT,
    "gptj": {**GPT, "rotary_dim": 4},
    "gpt_neox": {**NEOX, "hidden_size": 48, "num_attention_heads": 3},
    "phi": {**NEOX, "num_attention_heads": 3},
    "bloom": BLOOM,
    "falcon": FALCON,
    "mpt": MPT,
}
"""The smallest config of each family from which transformers makes a model."""

UNTIED: Config = {"tie_word_embeddings": False}
TIED: Config = {"tie_word_embeddings": True}


def part(share: float, kind: str = "default", **more: object) -> Config:
    """A rotary embedding of a part of each head."""
    return rope(kind, partial_rotary_factor=share, **more)


LEARNED = (
    Case("gpt2", "gpt2", {"n_inner": None}, GPT),
    Case(
        "gpt2-shrinking-scales-untied",
        "gpt2",
        {"scale_attn_by_inverse_layer_idx": True, "activation_function": "relu", **UNTIED},
        GPT,
    ),
    Case(
        "gpt2-unscaled-upcast",
        "gpt2",
        {"scale_attn_weights": False, "reorder_and_upcast_attn": True, "n_head": 3},
        GPT,
    ),
    Case("gpt_bigcode-multi-query", "gpt_bigcode", {}, GPT),
    Case(
        "gpt_bigcode-untied",
        "gpt_bigcode",
        {"multi_query": False, "n_inner": None, "scale_attn_weights": False, **UNTIED},
        GPT,
        shared=False,
    ),
    Case("gpt_neo-windows", "gpt_neo", {}, NEO),
    Case(
        "gpt_neo-untied",
        "gpt_neo",
        {"attention_types": [[["global"], 3]], "intermediate_size": None, **UNTIED},
        NEO,
    ),
    Case("opt", "opt", {}, OPT),
    Case(
        "opt-unbiased-untied",
        "opt",
        {
            "enable_bias": False,
            "layer_norm_elementwise_affine": False,
            "activation_function": "gelu",
            **UNTIED,
        },
        OPT,
    ),
)

TURNING = (
    Case("gptj", "gptj", {"rotary_dim": 4, "n_inner": None}, GPT),
    Case("gptj-whole-heads-tied", "gptj", {"rotary_dim": 12, "n_head": 3, **TIED}, GPT),
    Case("gpt_neox", "gpt_neox", part(0.4), NEOX, shared=False),
    Case(
        "gpt_neox-one-after-the-other-tied",
        "gpt_neox",
        {"use_parallel_residual": False, **part(1.0), **TIED},
        NEOX,
        shared=False,
    ),
    Case(
        "gpt_neox-unbiased-linear",
        "gpt_neox",
        {"attention_bias": False, "num_attention_heads": 3, **part(0.5, "linear", factor=3.0)},
        NEOX,
        shared=False,
    ),
    Case("phi", "phi", part(0.7)),
    Case(
        "phi-normed-tied",
        "phi",
        {"qk_layernorm": True, "num_key_value_heads": None, **part(0.4), **TIED},
    ),
    Case(
        "phi-yarn",
        "phi",
        part(1.0, "yarn", factor=4.0, original_max_position_embeddings=8),
    ),
)

BIASED = (
    Case("bloom", "bloom", {}, BLOOM, shared=False),
    Case("bloom-untied", "bloom", {"n_head": 4, **UNTIED}, BLOOM, shared=False),
    Case("falcon-7b", "falcon", rope("default"), FALCON),
    Case(
        "falcon-40b",
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2, **UNTIED},
        FALCON,
        shared=False,
    ),
    Case(
        "falcon-11b",
        "falcon",
        {
            "new_decoder_architecture": True,
            "num_kv_heads": 3,
            "num_ln_in_parallel_attn": 1,
            "bias": True,
            **rope("linear", factor=2.0),
        },
        FALCON,
        shared=False,
    ),
    Case(
        "falcon-rw",
        "falcon",
        {
            "alibi": True,
            "bias": True,
            "multi_query": False,
            "parallel_attn": False,
            "ffn_hidden_size": None,
        },
        FALCON,
        shared=False,
    ),
    Case("falcon-alibi-multi-query", "falcon", {"alibi": True, "num_attention_heads": 3}, FALCON),
    Case("mpt", "mpt", {}, MPT),
    Case(
        "mpt-clipped-untied",
        "mpt",
        {
            "attn_config": {"alibi_bias_max": 5, "clip_qkv": 0.8, "softmax_scale": 0.3},
            "n_heads": 4,
            **UNTIED,
        },
        MPT,
    ),
)

CASES = (*LEARNED, *TURNING, *BIASED)
