# SPDX-License-Identifier: MIT OR Apache-2.0
"""Mixtures of experts."""

from tests.parity.cases.case import COMMON, WIDE, Case, Config, rope

QWEN: Config = {**COMMON, "moe_intermediate_size": 14, "num_experts": 5, "num_experts_per_tok": 2}
LATENT: Config = {
    **COMMON,
    "num_key_value_heads": 6,
    "kv_lora_rank": 14,
    "q_lora_rank": 10,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 7,
    "moe_intermediate_size": 14,
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
}
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=8, mscale=0.7, mscale_all_dim=1.3)

CASES: tuple[Case, ...] = (
    Case("mixtral-window", "mixtral", {**WIDE, "sliding_window": 5, "num_local_experts": 5}),
    Case(
        "mixtral-tied-one-expert-each",
        "mixtral",
        {
            "tie_word_embeddings": True,
            "num_key_value_heads": 6,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            **rope("linear", factor=2.0),
        },
    ),
    Case(
        "qwen2-moe-mixed-windows",
        "qwen2_moe",
        {
            "shared_expert_intermediate_size": 22,
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 2,
            "mlp_only_layers": [1],
            "norm_topk_prob": True,
        },
        QWEN,
    ),
    Case(
        "qwen2-moe-every-other-tied",
        "qwen2_moe",
        {
            **WIDE,
            "shared_expert_intermediate_size": 9,
            "decoder_sparse_step": 2,
            "qkv_bias": False,
            "tie_word_embeddings": True,
        },
        QWEN,
    ),
    Case(
        "qwen3-moe-mixed-biased",
        "qwen3_moe",
        {
            **WIDE,
            "attention_bias": True,
            "mlp_only_layers": [0],
            "norm_topk_prob": True,
            "use_sliding_window": True,
            "sliding_window": 5,
        },
        QWEN,
    ),
    Case("qwen3-moe-tied", "qwen3_moe", {"tie_word_embeddings": True}, QWEN),
    Case("olmoe-clipped", "olmoe", {"clip_qkv": 0.7, "num_experts": 5, "num_experts_per_tok": 2}),
    Case(
        "olmoe-normalised-tied",
        "olmoe",
        {
            "norm_topk_prob": True,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "num_experts": 7,
            "num_experts_per_tok": 3,
        },
    ),
    Case("deepseek2-greedy-yarn", "deepseek_v2", {"q_lora_rank": None, **YARN}, LATENT),
    Case(
        "deepseek2-groups-tied",
        "deepseek_v2",
        {
            "topk_method": "group_limited_greedy",
            "n_group": 3,
            "topk_group": 2,
            "routed_scaling_factor": 1.7,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
        LATENT,
    ),
    Case(
        "deepseek3-groups-yarn",
        "deepseek_v3",
        {
            "n_group": 3,
            "topk_group": 2,
            "qk_nope_head_dim": 5,
            "v_head_dim": 8,
            "attention_bias": True,
            **YARN,
        },
        LATENT,
    ),
    Case(
        "deepseek3-halves-tied",
        "deepseek_v3",
        {
            "n_group": 1,
            "topk_group": 1,
            "q_lora_rank": None,
            "rope_interleave": False,
            "norm_topk_prob": False,
            "routed_scaling_factor": 0.6,
            "first_k_dense_replace": 0,
            "tie_word_embeddings": True,
        },
        LATENT,
    ),
)
