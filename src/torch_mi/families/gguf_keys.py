# SPDX-License-Identifier: MIT OR Apache-2.0
"""Which metadata of a GGUF file is which key of a `config.json`, by architecture."""

from collections.abc import Mapping

SIZES = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
}
RMS = {"rms_norm_eps": "attention.layer_norm_rms_epsilon"}
LAYER = {"layer_norm_eps": "attention.layer_norm_epsilon"}
WIDE = {"head_dim": "attention.key_length"}
GPT_SIZES = {
    "n_embd": "embedding_length",
    "n_layer": "block_count",
    "n_head": "attention.head_count",
    "n_inner": "feed_forward_length",
    "n_positions": "context_length",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
}
ROUTED = {"num_experts": "expert_count", "num_experts_per_tok": "expert_used_count"}

KEYS: Mapping[str, Mapping[str, str]] = {
    "llama": {**SIZES, **RMS},
    "mixtral": {
        **SIZES,
        **RMS,
        "num_local_experts": "expert_count",
        "num_experts_per_tok": "expert_used_count",
    },
    "qwen2": {**SIZES, **RMS},
    "qwen3": {**SIZES, **RMS, **WIDE},
    "qwen2moe": {
        **SIZES,
        **RMS,
        **ROUTED,
        "moe_intermediate_size": "expert_feed_forward_length",
        "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    },
    "qwen3moe": {
        **SIZES,
        **RMS,
        **WIDE,
        **ROUTED,
        "moe_intermediate_size": "expert_feed_forward_length",
    },
    "gemma": {**SIZES, **RMS, **WIDE},
    "gemma2": {
        **SIZES,
        **RMS,
        **WIDE,
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
        "sliding_window": "attention.sliding_window",
    },
    "gemma3": {**SIZES, **RMS, **WIDE, "sliding_window": "attention.sliding_window"},
    "phi2": {**SIZES, **LAYER},
    "phi3": {**SIZES, **RMS},
    "starcoder2": {**SIZES, "norm_epsilon": "attention.layer_norm_epsilon"},
    "starcoder": GPT_SIZES,
    "gpt2": GPT_SIZES,
    "gptneox": {**SIZES, **LAYER},
    "bloom": {
        "hidden_size": "embedding_length",
        "n_layer": "block_count",
        "n_head": "attention.head_count",
        "layer_norm_epsilon": "attention.layer_norm_epsilon",
    },
    "mpt": {
        "d_model": "embedding_length",
        "n_layers": "block_count",
        "n_heads": "attention.head_count",
        "max_seq_len": "context_length",
        "layer_norm_epsilon": "attention.layer_norm_epsilon",
    },
    "falcon": {
        "hidden_size": "embedding_length",
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "layer_norm_epsilon": "attention.layer_norm_epsilon",
    },
    "stablelm": {**SIZES, **LAYER},
    "olmo": SIZES,
    "olmo2": {**SIZES, **RMS},
    "olmo3": {**SIZES, **RMS, "sliding_window": "attention.sliding_window"},
    "olmoe": {**SIZES, **RMS, **ROUTED},
    "command-r": {**SIZES, **LAYER, "logit_scale": "logit_scale"},
    "granite": {
        **SIZES,
        **RMS,
        "attention_multiplier": "attention.scale",
        "embedding_multiplier": "embedding_scale",
        "residual_multiplier": "residual_scale",
        "logits_scaling": "logit_scale",
    },
    "smollm3": {**SIZES, **RMS},
    "internlm2": {**SIZES, **RMS},
    "exaone4": {**SIZES, **RMS, **WIDE},
    "deepseek2": {
        **SIZES,
        **RMS,
        "kv_lora_rank": "attention.kv_lora_rank",
        "qk_rope_head_dim": "rope.dimension_count",
        "first_k_dense_replace": "leading_dense_block_count",
        "moe_intermediate_size": "expert_feed_forward_length",
        "n_routed_experts": "expert_count",
        "n_shared_experts": "expert_shared_count",
        "num_experts_per_tok": "expert_used_count",
        "routed_scaling_factor": "expert_weights_scale",
    },
}
"""Config key -> metadata key without its prefix; all of these must be there."""
