# SPDX-License-Identifier: MIT OR Apache-2.0
"""The values of published configs, where no file of theirs is among the shared data."""

from typing import Any

Raw = dict[str, Any]

FULL, SLIDING = "full_attention", "sliding_attention"


def llama_like(model_type: str, layers: int, heads: int, kv_heads: int, **more: Any) -> Raw:
    """The keys that these have in common."""
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": "bfloat16",
        **more,
    }


OLMO_1B = llama_like(
    "olmo", 16, 16, 16,
    architectures=["OlmoForCausalLM"], attention_bias=False, clip_qkv=None, eos_token_id=50279,
    hidden_size=2048, intermediate_size=8192, max_position_embeddings=2048, pad_token_id=1,
    rope_scaling=None, rope_theta=10000.0, tie_word_embeddings=True, vocab_size=50304,
)  # fmt: skip
OLMO_7B_0424 = llama_like(
    "olmo", 32, 32, 32,
    architectures=["OlmoForCausalLM"], attention_bias=False, clip_qkv=8.0, eos_token_id=50279,
    hidden_size=4096, intermediate_size=11008, max_position_embeddings=4096, pad_token_id=1,
    rope_scaling=None, rope_theta=10000.0, tie_word_embeddings=False, vocab_size=50304,
)  # fmt: skip
OLMO_3_7B = llama_like(
    "olmo3", 32, 32, 32,
    architectures=["Olmo3ForCausalLM"], attention_bias=False, eos_token_id=100257,
    hidden_size=4096, intermediate_size=11008, layer_types=[*[SLIDING] * 3, FULL] * 8,
    max_position_embeddings=65536, pad_token_id=100277, rms_norm_eps=1e-06,
    rope_scaling={
        "attention_factor": 1.2079441541679836, "beta_fast": 32, "beta_slow": 1, "factor": 8.0,
        "original_max_position_embeddings": 8192, "rope_type": "yarn",
    },
    rope_theta=500000, sliding_window=4096, tie_word_embeddings=False, vocab_size=100278,
)  # fmt: skip
SMOLLM3_3B = llama_like(
    "smollm3", 36, 16, 4,
    architectures=["SmolLM3ForCausalLM"], attention_bias=False, eos_token_id=128012,
    hidden_size=2048, intermediate_size=11008, layer_types=[FULL] * 36,
    max_position_embeddings=65536, max_window_layers=28, mlp_bias=False, no_rope_layer_interval=4,
    no_rope_layers=[1, 1, 1, 0] * 9, pad_token_id=128004, pretraining_tp=2, rms_norm_eps=1e-06,
    rope_scaling=None, rope_theta=5000000.0, sliding_window=None, use_sliding_window=False,
    vocab_size=128256,
)  # fmt: skip
GRANITE_2B = llama_like(
    "granite", 40, 32, 8,
    architectures=["GraniteForCausalLM"], attention_bias=False, attention_multiplier=0.015625,
    bos_token_id=0, embedding_multiplier=12.0, eos_token_id=0, hidden_size=2048,
    intermediate_size=8192, logits_scaling=8.0, max_position_embeddings=131072, mlp_bias=False,
    pad_token_id=0, residual_multiplier=0.22, rms_norm_eps=1e-05, rope_scaling=None,
    rope_theta=5000000.0, tie_word_embeddings=True, vocab_size=49155,
)  # fmt: skip
EXAONE_1_2B = llama_like(
    "exaone4", 30, 32, 8,
    architectures=["Exaone4ForCausalLM"], bos_token_id=1, eos_token_id=361, head_dim=64,
    hidden_size=2048, intermediate_size=4096, layer_types=[FULL] * 30,
    max_position_embeddings=65536, pad_token_id=0, rms_norm_eps=1e-05,
    rope_scaling={
        "factor": 16.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    },
    rope_theta=1000000, sliding_window=None, sliding_window_pattern=None,
    tie_word_embeddings=True, vocab_size=102400,
)  # fmt: skip
EXAONE_32B = llama_like(
    "exaone4", 64, 40, 8,
    architectures=["Exaone4ForCausalLM"], bos_token_id=1, eos_token_id=361, head_dim=128,
    hidden_size=5120, intermediate_size=27392, layer_types=[*[SLIDING] * 3, FULL] * 16,
    max_position_embeddings=131072, pad_token_id=0, rms_norm_eps=1e-05,
    rope_scaling={
        "factor": 16.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    },
    rope_theta=1000000, sliding_window=4096, sliding_window_pattern="LLLG",
    tie_word_embeddings=False, vocab_size=102400,
)  # fmt: skip
COMMAND_R_PLUS = llama_like(
    "cohere", 64, 96, 8,
    architectures=["CohereForCausalLM"], attention_bias=False, bos_token_id=5,
    eos_token_id=255001, hidden_size=12288, intermediate_size=33792, layer_norm_eps=1e-05,
    logit_scale=0.8333333333333334, max_position_embeddings=131072, pad_token_id=0,
    rope_theta=75000000.0, use_qk_norm=True, vocab_size=256000,
)  # fmt: skip
COMMAND_R7B = llama_like(
    "cohere2", 32, 32, 8,
    architectures=["Cohere2ForCausalLM"], attention_bias=False, bos_token_id=5,
    cache_implementation="hybrid", eos_token_id=255001, head_dim=128, hidden_size=4096,
    intermediate_size=14336, layer_norm_eps=1e-05, layer_switch=4, logit_scale=0.25,
    max_position_embeddings=8192, order_of_interleaved_layers="local_attn_first",
    pad_token_id=0, position_embedding_type="rope_gptj", rope_scaling=None, rope_theta=50000,
    rotary_pct=1.0, sliding_window=4096, sliding_window_pattern=4, use_embedding_sharing=True,
    use_gated_activation=True, use_parallel_block=True, use_parallel_embedding=False,
    use_qk_norm=False, vocab_size=256000,
)  # fmt: skip
SIGLIP: Raw = {
    "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304,
    "model_type": "siglip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 27,
    "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
GEMMA_3_4B: Raw = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "vision_config": SIGLIP,
}
GEMMA_3_27B: Raw = {
    **GEMMA_3_4B,
    "text_config": {
        "head_dim": 128,
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "model_type": "gemma3_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "query_pre_attn_scalar": 168,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
}

PUBLISHED: dict[str, Raw] = {
    "OLMo-1B": OLMO_1B,
    "OLMo-7B-0424": OLMO_7B_0424,
    "Olmo-3-7B": OLMO_3_7B,
    "SmolLM3-3B": SMOLLM3_3B,
    "granite-3.1-2b": GRANITE_2B,
    "EXAONE-4.0-1.2B": EXAONE_1_2B,
    "EXAONE-4.0-32B": EXAONE_32B,
    "command-r-plus": COMMAND_R_PLUS,
    "command-r7b": COMMAND_R7B,
    "gemma-3-4b": GEMMA_3_4B,
    "gemma-3-27b": GEMMA_3_27B,
}
