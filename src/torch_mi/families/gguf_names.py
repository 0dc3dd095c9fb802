# SPDX-License-Identifier: MIT OR Apache-2.0
"""What GGUF calls each tensor of each architecture, and which of them it lays out differently."""

from collections.abc import Mapping

from torch_mi.errors import ConfigError, did_you_mean
from torch_mi.families.gguf_layout import (
    Facts,
    Layout,
    Maker,
    by_group,
    by_head,
    internlm_fused,
    keys,
    latent,
    less_one,
    queries,
    row,
    transposed,
)

ENDS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
ATTENTION = {
    "blk.*.attn_q": "model.layers.*.self_attn.q_proj",
    "blk.*.attn_k": "model.layers.*.self_attn.k_proj",
    "blk.*.attn_v": "model.layers.*.self_attn.v_proj",
    "blk.*.attn_output": "model.layers.*.self_attn.o_proj",
}
QK_NORMS = {
    "blk.*.attn_q_norm": "model.layers.*.self_attn.q_norm",
    "blk.*.attn_k_norm": "model.layers.*.self_attn.k_norm",
}
GATED = {
    "blk.*.ffn_gate": "model.layers.*.mlp.gate_proj",
    "blk.*.ffn_up": "model.layers.*.mlp.up_proj",
    "blk.*.ffn_down": "model.layers.*.mlp.down_proj",
}
TWO_NORMS = {
    "blk.*.attn_norm": "model.layers.*.input_layernorm",
    "blk.*.ffn_norm": "model.layers.*.post_attention_layernorm",
}
POST_NORMS = {
    "blk.*.post_attention_norm": "model.layers.*.post_attention_layernorm",
    "blk.*.post_ffw_norm": "model.layers.*.post_feedforward_layernorm",
}
FOUR_NORMS = {
    "blk.*.attn_norm": "model.layers.*.input_layernorm",
    "blk.*.ffn_norm": "model.layers.*.pre_feedforward_layernorm",
    **POST_NORMS,
}
EXPERTS = {
    "blk.*.ffn_gate_inp": "model.layers.*.mlp.gate",
    "blk.*.ffn_gate_exps": "model.layers.*.mlp.experts.#.gate_proj",
    "blk.*.ffn_up_exps": "model.layers.*.mlp.experts.#.up_proj",
    "blk.*.ffn_down_exps": "model.layers.*.mlp.experts.#.down_proj",
}
SHARED_EXPERT = {
    "blk.*.ffn_gate_inp_shexp": "model.layers.*.mlp.shared_expert_gate",
    "blk.*.ffn_gate_shexp": "model.layers.*.mlp.shared_expert.gate_proj",
    "blk.*.ffn_up_shexp": "model.layers.*.mlp.shared_expert.up_proj",
    "blk.*.ffn_down_shexp": "model.layers.*.mlp.shared_expert.down_proj",
}
LLAMA = {**ENDS, **ATTENTION, **GATED, **TWO_NORMS}
GPT2 = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "blk.*.attn_norm": "transformer.h.*.ln_1",
    "blk.*.attn_qkv": "transformer.h.*.attn.c_attn",
    "blk.*.attn_output": "transformer.h.*.attn.c_proj",
    "blk.*.ffn_norm": "transformer.h.*.ln_2",
    "blk.*.ffn_up": "transformer.h.*.mlp.c_fc",
    "blk.*.ffn_down": "transformer.h.*.mlp.c_proj",
}
BLOOM = {
    "token_embd": "transformer.word_embeddings",
    "token_embd_norm": "transformer.word_embeddings_layernorm",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "blk.*.attn_norm": "transformer.h.*.input_layernorm",
    "blk.*.attn_qkv": "transformer.h.*.self_attention.query_key_value",
    "blk.*.attn_output": "transformer.h.*.self_attention.dense",
    "blk.*.ffn_norm": "transformer.h.*.post_attention_layernorm",
    "blk.*.ffn_up": "transformer.h.*.mlp.dense_h_to_4h",
    "blk.*.ffn_down": "transformer.h.*.mlp.dense_4h_to_h",
}
FALCON_TWO_NORMS = {
    "blk.*.attn_norm": "transformer.h.*.ln_mlp",
    "blk.*.attn_norm_2": "transformer.h.*.ln_attn",
}
GPT_NEOX = {
    "token_embd": "gpt_neox.embed_in",
    "output_norm": "gpt_neox.final_layer_norm",
    "output": "embed_out",
    "blk.*.attn_norm": "gpt_neox.layers.*.input_layernorm",
    "blk.*.attn_qkv": "gpt_neox.layers.*.attention.query_key_value",
    "blk.*.attn_output": "gpt_neox.layers.*.attention.dense",
    "blk.*.ffn_norm": "gpt_neox.layers.*.post_attention_layernorm",
    "blk.*.ffn_up": "gpt_neox.layers.*.mlp.dense_h_to_4h",
    "blk.*.ffn_down": "gpt_neox.layers.*.mlp.dense_4h_to_h",
}
MPT = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.norm_f",
    "output": "lm_head",
    "blk.*.attn_norm": "transformer.blocks.*.norm_1",
    "blk.*.attn_qkv": "transformer.blocks.*.attn.Wqkv",
    "blk.*.attn_output": "transformer.blocks.*.attn.out_proj",
    "blk.*.ffn_norm": "transformer.blocks.*.norm_2",
    "blk.*.ffn_up": "transformer.blocks.*.ffn.up_proj",
    "blk.*.ffn_down": "transformer.blocks.*.ffn.down_proj",
}
INTERNLM2 = {
    "token_embd": "model.tok_embeddings",
    "output_norm": "model.norm",
    "output": "output",
    "blk.*.attn_norm": "model.layers.*.attention_norm",
    "blk.*.attn_q": "model.layers.*.attention.wqkv",
    "blk.*.attn_k": "model.layers.*.attention.wqkv",
    "blk.*.attn_v": "model.layers.*.attention.wqkv",
    "blk.*.attn_output": "model.layers.*.attention.wo",
    "blk.*.ffn_norm": "model.layers.*.ffn_norm",
    "blk.*.ffn_gate": "model.layers.*.feed_forward.w1",
    "blk.*.ffn_up": "model.layers.*.feed_forward.w3",
    "blk.*.ffn_down": "model.layers.*.feed_forward.w2",
}
PHI = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.final_layernorm",
    "output": "lm_head",
    **ATTENTION,
    "blk.*.attn_norm": "model.layers.*.input_layernorm",
    "blk.*.attn_output": "model.layers.*.self_attn.dense",
    "blk.*.ffn_up": "model.layers.*.mlp.fc1",
    "blk.*.ffn_down": "model.layers.*.mlp.fc2",
}
DEEPSEEK = {
    **LLAMA,
    **EXPERTS,
    "blk.*.attn_q_a": "model.layers.*.self_attn.q_a_proj",
    "blk.*.attn_q_a_norm": "model.layers.*.self_attn.q_a_layernorm",
    "blk.*.attn_q_b": "model.layers.*.self_attn.q_b_proj",
    "blk.*.attn_kv_a_mqa": "model.layers.*.self_attn.kv_a_proj_with_mqa",
    "blk.*.attn_kv_a_norm": "model.layers.*.self_attn.kv_a_layernorm",
    "blk.*.attn_kv_b": "model.layers.*.self_attn.kv_b_proj",
    "blk.*.attn_k_b": "model.layers.*.self_attn.kv_b_proj",
    "blk.*.attn_v_b": "model.layers.*.self_attn.kv_b_proj",
    "blk.*.ffn_gate_shexp": "model.layers.*.mlp.shared_experts.gate_proj",
    "blk.*.ffn_up_shexp": "model.layers.*.mlp.shared_experts.up_proj",
    "blk.*.ffn_down_shexp": "model.layers.*.mlp.shared_experts.down_proj",
    "blk.*.exp_probs_b": "model.layers.*.mlp.gate.e_score_correction",
}
PAIRED: Mapping[str, Maker] = {"blk.*.attn_q": queries, "blk.*.attn_k": keys}
GAINS: Mapping[str, Maker] = dict.fromkeys(("output_norm", *FOUR_NORMS, *QK_NORMS), less_one)
CONV1D: Mapping[str, Maker] = dict.fromkeys(
    ("blk.*.attn_qkv", "blk.*.attn_output", "blk.*.ffn_up", "blk.*.ffn_down"), transposed
)
HEADWISE: Mapping[str, Maker] = {"blk.*.attn_qkv": by_head}
LATENT: Mapping[str, Maker] = {"blk.*.attn_kv_b": latent, "blk.*.attn_k_b": latent}

MIXTRAL = {
    **LLAMA,
    "blk.*.ffn_gate_inp": "model.layers.*.block_sparse_moe.gate",
    "blk.*.ffn_gate_exps": "model.layers.*.block_sparse_moe.experts.#.w1",
    "blk.*.ffn_down_exps": "model.layers.*.block_sparse_moe.experts.#.w2",
    "blk.*.ffn_up_exps": "model.layers.*.block_sparse_moe.experts.#.w3",
}
STABLELM = {
    **LLAMA,
    "blk.*.attn_q_norm": "model.layers.*.self_attn.q_layernorm.norms.#",
    "blk.*.attn_k_norm": "model.layers.*.self_attn.k_layernorm.norms.#",
}
PHI3 = {
    **LLAMA,
    "blk.*.attn_qkv": "model.layers.*.self_attn.qkv_proj",
    "blk.*.ffn_up": "model.layers.*.mlp.gate_up_proj",
}
STARCODER2 = {
    **LLAMA,
    "blk.*.ffn_up": "model.layers.*.mlp.c_fc",
    "blk.*.ffn_down": "model.layers.*.mlp.c_proj",
}
POST_NORMED = {**ENDS, **ATTENTION, **QK_NORMS, **GATED, **POST_NORMS}

LAYOUTS: Mapping[str, Layout] = {
    "llama": Layout("llama", LLAMA, PAIRED),
    "mixtral": Layout("mixtral", MIXTRAL, PAIRED),
    "qwen2": Layout("qwen2", LLAMA),
    "qwen3": Layout("qwen3", {**LLAMA, **QK_NORMS}),
    "qwen2moe": Layout(
        "qwen2_moe",
        {**LLAMA, **EXPERTS, **SHARED_EXPERT},
        {"blk.*.ffn_gate_inp_shexp": row},
    ),
    "qwen3moe": Layout("qwen3_moe", {**LLAMA, **QK_NORMS, **EXPERTS}),
    "gemma": Layout("gemma", LLAMA, GAINS),
    "gemma2": Layout("gemma2", {**ENDS, **ATTENTION, **GATED, **FOUR_NORMS}, GAINS),
    "gemma3": Layout(
        "gemma3_text", {**ENDS, **ATTENTION, **QK_NORMS, **GATED, **FOUR_NORMS}, GAINS
    ),
    "phi2": Layout("phi", PHI),
    "phi3": Layout("phi3", PHI3),
    "starcoder2": Layout("starcoder2", STARCODER2),
    "starcoder": Layout("gpt_bigcode", GPT2),
    "gpt2": Layout("gpt2", GPT2, CONV1D),
    "gptneox": Layout("gpt_neox", GPT_NEOX, HEADWISE),
    "bloom": Layout("bloom", BLOOM, HEADWISE),
    "mpt": Layout("mpt", MPT),
    "falcon": Layout("falcon", BLOOM, {"blk.*.attn_qkv": by_group}),
    "falcon-new": Layout("falcon", {**BLOOM, **FALCON_TWO_NORMS}, {"blk.*.attn_qkv": by_group}),
    "stablelm": Layout("stablelm", STABLELM),
    "olmo": Layout("olmo", LLAMA, PAIRED),
    "olmo2": Layout("olmo2", POST_NORMED),
    "olmo3": Layout("olmo3", POST_NORMED),
    "olmoe": Layout("olmoe", {**LLAMA, **QK_NORMS, **EXPERTS}),
    "command-r": Layout("cohere", {**LLAMA, **QK_NORMS}),
    "granite": Layout("granite", LLAMA, PAIRED),
    "smollm3": Layout("smollm3", LLAMA, PAIRED),
    "internlm2": Layout("internlm2", INTERNLM2, {"blk.*.attn_q": internlm_fused}),
    "exaone4": Layout("exaone4", POST_NORMED),
    "deepseek2": Layout("deepseek_v2", DEEPSEEK, LATENT),
    "deepseek3": Layout("deepseek_v3", DEEPSEEK, LATENT),
}
"""By architecture; a few architectures are two model types, told apart by `variant`."""

SIGMOID = 2
"""llama.cpp's number for experts gated by a sigmoid."""


def layout_of(facts: Facts) -> Layout:
    """The layout of a file's architecture."""
    name = variant(facts)
    if name not in LAYOUTS:
        raise ConfigError(
            f"{facts.path} holds a model of architecture {name!r}, which is not read from GGUF; "
            f"these are: {', '.join(LAYOUTS)}{did_you_mean(name, LAYOUTS)}"
        )
    return LAYOUTS[name]


def variant(facts: Facts) -> str:
    """The architecture, or which of the two that go by its name."""
    name = facts.architecture
    if name == "llama" and facts.get("expert_count"):
        return "mixtral"
    if name == "olmo2" and facts.get("attention.sliding_window"):
        return "olmo3"
    if name == "falcon" and facts.has("blk.0.attn_norm_2.weight"):
        return "falcon-new"
    if name == "deepseek2" and facts.get("expert_gating_func") == SIGMOID:
        return "deepseek3"
    return name
