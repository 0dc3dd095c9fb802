# SPDX-License-Identifier: MIT OR Apache-2.0
"""A transformers model as a GGUF file, in the layout that llama.cpp's converter writes.

The names come from the gguf package's own table; the changes of layout are written from the
definition of each architecture, not from what is tested here.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

Write = Callable[[gguf.GGUFWriter, Any], None]
Change = Callable[[str, Tensor, Any], Mapping[str, Tensor]]

COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
GPT: dict[str, Any] = {
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "vocab_size": 97,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def unchanged(name: str, x: Tensor, config: Any) -> Mapping[str, Tensor]:
    return {name: x}


def pairs_together(x: Tensor, heads: int) -> Tensor:
    """Rows (half, j) of each head become rows (j, half)."""
    dim = x.shape[0] // heads
    order = [
        h * dim + half * (dim // 2) + j
        for h in range(heads)
        for j in range(dim // 2)
        for half in (0, 1)
    ]
    return x[order]


def paired(name: str, x: Tensor, config: Any) -> Mapping[str, Tensor]:
    if "q_proj" in name:
        x = pairs_together(x, config.num_attention_heads)
    if "k_proj" in name:
        x = pairs_together(x, config.num_key_value_heads)
    return {name: x}


def plus_one(name: str, x: Tensor, config: Any) -> Mapping[str, Tensor]:
    return {name: x + 1 if name.endswith("norm.weight") else x}


def conv(name: str, x: Tensor, config: Any) -> Mapping[str, Tensor]:
    turned = re.search(r"c_(attn|proj|fc)\.weight$", name)
    return {name: x.T if turned else x}


def heads_apart(name: str, x: Tensor, config: Any) -> Mapping[str, Tensor]:
    """[q of head 0, k of head 0, v of head 0, q of head 1, ...] becomes [all q, all k, all v]."""
    if "query_key_value" in name:
        dim = x.shape[0] // config.num_attention_heads // 3
        blocks = x.split(dim)
        x = torch.cat([*blocks[0::3], *blocks[1::3], *blocks[2::3]])
    return {name: x}


def bloom_names(name: str, x: Tensor, config: Any) -> Mapping[str, Tensor]:
    return heads_apart(name.removeprefix("transformer."), x, config)


def groups_apart(name: str, x: Tensor, config: Any) -> Mapping[str, Tensor]:
    """Each group of query heads with its key and value becomes [all q, all k, all v]."""
    if "query_key_value" in name:
        groups = config.num_kv_heads if config.new_decoder_architecture else 1
        per = config.num_attention_heads // groups
        dim = config.hidden_size // config.num_attention_heads
        q, k, v = [], [], []
        for group in x.split(dim * (per + 2)):
            heads = group.split(dim)
            q += heads[:per]
            k.append(heads[per])
            v.append(heads[per + 1])
        x = torch.cat([*q, *k, *v])
    return {name: x}


def latent(name: str, x: Tensor, config: Any) -> Mapping[str, Tensor]:
    if name.endswith("kv_b_proj.weight"):
        heads = config.num_attention_heads
        split = x.view(heads, config.qk_nope_head_dim + config.v_head_dim, -1)
        k, v = split[:, : config.qk_nope_head_dim], split[:, config.qk_nope_head_dim :]
        return {name.replace("kv_b", "k_b"): k.transpose(1, 2), name.replace("kv_b", "v_b"): v}
    return {name.replace("e_score_correction_bias", "e_score_correction.bias"): x}


def plain(w: gguf.GGUFWriter, c: Any) -> None:
    """What nearly every architecture writes."""
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    if (kv := c.to_dict().get("num_key_value_heads")) is not None:
        w.add_head_count_kv(kv)
    if (theta := (c.to_dict().get("rope_parameters") or {}).get("rope_theta")) is not None:
        w.add_rope_freq_base(theta)


def rms(w: gguf.GGUFWriter, c: Any) -> None:
    plain(w, c)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)


def llama(w: gguf.GGUFWriter, c: Any) -> None:
    rms(w, c)
    w.add_vocab_size(c.vocab_size)
    w.add_rope_dimension_count(
        c.to_dict().get("head_dim") or c.hidden_size // c.num_attention_heads
    )


def mixtral(w: gguf.GGUFWriter, c: Any) -> None:
    llama(w, c)
    w.add_expert_count(c.num_local_experts)
    w.add_expert_used_count(c.num_experts_per_tok)


def wide(w: gguf.GGUFWriter, c: Any) -> None:
    rms(w, c)
    w.add_key_length(c.head_dim)
    w.add_value_length(c.head_dim)


def routed(w: gguf.GGUFWriter, c: Any) -> None:
    rms(w, c)
    settings = c.to_dict()
    if "head_dim" in settings and settings["head_dim"] is not None:
        w.add_key_length(c.head_dim)
        w.add_value_length(c.head_dim)
    w.add_expert_count(c.num_experts)
    w.add_expert_used_count(c.num_experts_per_tok)
    if "moe_intermediate_size" in settings:
        w.add_expert_feed_forward_length(c.moe_intermediate_size)
    if "shared_expert_intermediate_size" in settings:
        w.add_expert_shared_feed_forward_length(c.shared_expert_intermediate_size)


def gemma2(w: gguf.GGUFWriter, c: Any) -> None:
    wide(w, c)
    w.add_attn_logit_softcapping(c.attn_logit_softcapping)
    w.add_final_logit_softcapping(c.final_logit_softcapping)
    w.add_sliding_window(c.sliding_window)


def gemma3(w: gguf.GGUFWriter, c: Any) -> None:
    wide(w, c)
    w.add_sliding_window(c.sliding_window)
    w.add_rope_freq_base(c.rope_parameters["full_attention"]["rope_theta"])


def phi3(w: gguf.GGUFWriter, c: Any) -> None:
    rms(w, c)
    w.add_rope_dimension_count(c.hidden_size // c.num_attention_heads)
    w.add_rope_scaling_orig_ctx_len(c.original_max_position_embeddings)
    w.add_sliding_window(c.sliding_window or 0)


def phi2(w: gguf.GGUFWriter, c: Any) -> None:
    layer(w, c)
    part = c.rope_parameters["partial_rotary_factor"]
    w.add_rope_dimension_count(int(part * c.hidden_size) // c.num_attention_heads)


def layer(w: gguf.GGUFWriter, c: Any) -> None:
    plain(w, c)
    w.add_layer_norm_eps(c.layer_norm_eps)


def starcoder2(w: gguf.GGUFWriter, c: Any) -> None:
    plain(w, c)
    w.add_layer_norm_eps(c.norm_epsilon)


def gpt(w: gguf.GGUFWriter, c: Any) -> None:
    w.add_context_length(c.n_positions)
    w.add_embedding_length(c.n_embd)
    w.add_feed_forward_length(4 * c.n_embd)
    w.add_head_count(c.n_head)
    w.add_layer_norm_eps(c.layer_norm_epsilon)


def starcoder(w: gguf.GGUFWriter, c: Any) -> None:
    gpt(w, c)
    w.add_head_count_kv(1)


def gptneox(w: gguf.GGUFWriter, c: Any) -> None:
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_feed_forward_length(c.intermediate_size)
    part = c.rope_parameters["partial_rotary_factor"]
    w.add_rope_dimension_count(int(part * (c.hidden_size // c.num_attention_heads)))
    w.add_head_count(c.num_attention_heads)
    w.add_parallel_residual(c.use_parallel_residual)
    w.add_layer_norm_eps(c.layer_norm_eps)


def bloom(w: gguf.GGUFWriter, c: Any) -> None:
    w.add_context_length(c.hidden_size)
    w.add_embedding_length(c.hidden_size)
    w.add_feed_forward_length(4 * c.hidden_size)
    w.add_head_count(c.n_head)
    w.add_head_count_kv(c.n_head)
    w.add_layer_norm_eps(c.layer_norm_epsilon)


def mpt(w: gguf.GGUFWriter, c: Any) -> None:
    w.add_context_length(c.max_seq_len)
    w.add_embedding_length(c.d_model)
    w.add_feed_forward_length(4 * c.d_model)
    w.add_head_count(c.n_heads)
    w.add_layer_norm_eps(1e-5)
    w.add_max_alibi_bias(c.attn_config.alibi_bias_max)


def falcon(w: gguf.GGUFWriter, c: Any) -> None:
    w.add_context_length(2048)
    w.add_embedding_length(c.hidden_size)
    w.add_feed_forward_length(4 * c.hidden_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_kv_heads if c.new_decoder_architecture else 1)
    w.add_layer_norm_eps(c.layer_norm_epsilon)


def stablelm(w: gguf.GGUFWriter, c: Any) -> None:
    layer(w, c)
    part = c.rope_parameters["partial_rotary_factor"]
    w.add_rope_dimension_count(int(part * (c.hidden_size // c.num_attention_heads)))
    w.add_parallel_residual(c.use_parallel_residual)


def olmo(w: gguf.GGUFWriter, c: Any) -> None:
    plain(w, c)
    w.add_layer_norm_eps(1e-5)
    if c.clip_qkv is not None:
        w.add_clamp_kqv(c.clip_qkv)


def cohere(w: gguf.GGUFWriter, c: Any) -> None:
    layer(w, c)
    w.add_logit_scale(c.logit_scale)
    w.add_rope_scaling_type(gguf.RopeScalingType.NONE)


def granite(w: gguf.GGUFWriter, c: Any) -> None:
    llama(w, c)
    w.add_attention_scale(c.attention_multiplier)
    w.add_embedding_scale(c.embedding_multiplier)
    w.add_residual_scale(c.residual_multiplier)
    w.add_logit_scale(c.logits_scaling)


def exaone4(w: gguf.GGUFWriter, c: Any) -> None:
    wide(w, c)
    w.add_sliding_window(c.sliding_window)
    w.add_sliding_window_pattern([kind == "sliding_attention" for kind in c.layer_types])


def deepseek(w: gguf.GGUFWriter, c: Any) -> None:
    c.num_key_value_heads = 1  # one shared head, as llama.cpp computes it
    rms(w, c)
    w.add_leading_dense_block_count(c.first_k_dense_replace)
    if c.q_lora_rank is not None:
        w.add_q_lora_rank(c.q_lora_rank)
    w.add_kv_lora_rank(c.kv_lora_rank)
    w.add_key_length(c.kv_lora_rank + c.qk_rope_head_dim)
    w.add_value_length(c.kv_lora_rank)
    w.add_key_length_mla(c.qk_nope_head_dim + c.qk_rope_head_dim)
    w.add_value_length_mla(c.v_head_dim)
    w.add_expert_feed_forward_length(c.moe_intermediate_size)
    w.add_expert_count(c.n_routed_experts)
    w.add_expert_used_count(c.num_experts_per_tok)
    w.add_expert_shared_count(c.n_shared_experts)
    w.add_expert_weights_scale(c.routed_scaling_factor)
    w.add_expert_weights_norm(c.norm_topk_prob)
    w.add_expert_group_count(c.n_group)
    w.add_expert_group_used_count(c.topk_group)
    sigmoid = c.model_type == "deepseek_v3"
    kinds = gguf.ExpertGatingFuncType
    w.add_expert_gating_func(kinds.SIGMOID if sigmoid else kinds.SOFTMAX)
    w.add_rope_dimension_count(c.qk_rope_head_dim)


@dataclass(frozen=True)
class Architecture:
    """How one architecture is written."""

    model_type: str
    write: Write
    change: Change = unchanged
    config: Mapping[str, Any] | None = None
    common: Mapping[str, Any] | None = None


MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MLA = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "routed_scaling_factor": 1.5,
}
ARCHITECTURES = {
    "llama": Architecture("llama", llama, paired, {"attention_bias": True, "mlp_bias": True}),
    "llama-experts": Architecture("mixtral", mixtral, paired, {"num_local_experts": 4}),
    "qwen2": Architecture("qwen2", rms, config={"tie_word_embeddings": True}),
    "qwen3": Architecture("qwen3", wide, config={"head_dim": 24}),
    "qwen2moe": Architecture(
        "qwen2_moe", routed, config={**MOE, "shared_expert_intermediate_size": 64}
    ),
    "qwen3moe": Architecture(
        "qwen3_moe", routed, config={**MOE, "head_dim": 24, "norm_topk_prob": True}
    ),
    "gemma": Architecture("gemma", wide, plus_one, {"head_dim": 24}),
    "gemma2": Architecture(
        "gemma2",
        gemma2,
        plus_one,
        {"head_dim": 24, "sliding_window": 4, "query_pre_attn_scalar": 24},
    ),
    "gemma3": Architecture(
        "gemma3_text",
        gemma3,
        plus_one,
        {"head_dim": 24, "sliding_window": 4, "query_pre_attn_scalar": 24, "num_hidden_layers": 7},
    ),
    "phi2": Architecture(
        "phi", phi2, config={"partial_rotary_factor": 0.5, "num_key_value_heads": 4}
    ),
    "phi3": Architecture(
        "phi3",
        phi3,
        config={"original_max_position_embeddings": 64, "sliding_window": 6},
    ),
    "starcoder2": Architecture("starcoder2", starcoder2, config={"sliding_window": None}),
    "starcoder": Architecture("gpt_bigcode", starcoder, common=GPT),
    "gpt2": Architecture("gpt2", gpt, conv, common=GPT),
    "gptneox": Architecture("gpt_neox", gptneox, heads_apart, {"num_key_value_heads": None}),
    "bloom": Architecture(
        "bloom",
        bloom,
        bloom_names,
        common={
            "hidden_size": 64,
            "n_layer": 3,
            "n_head": 4,
            "vocab_size": 97,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "mpt": Architecture(
        "mpt",
        mpt,
        common={
            "d_model": 64,
            "n_layers": 3,
            "n_heads": 4,
            "max_seq_len": 64,
            "vocab_size": 97,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "attn_config": {"alibi": True, "alibi_bias_max": 8},
        },
    ),
    "falcon": Architecture("falcon", falcon, groups_apart, {"num_key_value_heads": None}),
    "falcon-new": Architecture(
        "falcon",
        falcon,
        groups_apart,
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_key_value_heads": None},
    ),
    "stablelm": Architecture("stablelm", stablelm, config={"use_qkv_bias": True}),
    "olmo": Architecture("olmo", olmo, paired, {"clip_qkv": 0.5}),
    "olmo2": Architecture("olmo2", rms),
    "olmoe": Architecture("olmoe", routed, config={"num_experts": 4, "num_experts_per_tok": 2}),
    "command-r": Architecture("cohere", cohere, config={"logit_scale": 0.25, "use_qk_norm": True}),
    "granite": Architecture(
        "granite",
        granite,
        paired,
        {
            "attention_multiplier": 0.2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
    ),
    "smollm3": Architecture("smollm3", llama, paired, {"num_hidden_layers": 5}),
    "exaone4": Architecture(
        "exaone4", exaone4, config={"sliding_window": 4, "num_hidden_layers": 5, "head_dim": 24}
    ),
    "deepseek2": Architecture(
        "deepseek_v2", deepseek, latent, {**MLA, "topk_method": "group_limited_greedy"}
    ),
    "deepseek3": Architecture("deepseek_v3", deepseek, latent, MLA),
}
GGML = {"llama-experts": "llama", "falcon-new": "falcon", "deepseek3": "deepseek2"}


def build(name: str, changes: Mapping[str, Any] | None = None, seed: int = 0) -> Any:
    """A tiny transformers model of an architecture, every parameter random."""
    made = ARCHITECTURES[name]
    settings = {**(made.common or COMMON), **(made.config or {}), **(changes or {})}
    config = AutoConfig.for_model(made.model_type, **settings)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for value in dict(model.named_parameters()).values():
            noise = torch.randn(value.shape)
            value.copy_(0.3 * noise + value if value.ndim == 1 else noise / value.shape[-1] ** 0.5)
    return model


def stacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Experts and heads that lie apart in a checkpoint, in one tensor each."""
    found: dict[str, list[tuple[int, Tensor]]] = {}
    for name, x in tensors.items():
        item = re.search(r"\.(experts|norms)\.(\d+)\.", name)
        whole = (
            name
            if item is None
            else name.replace(item[0], ".experts." if item[1] == "experts" else ".")
        )
        whole = re.sub(
            r"model\.layers\.(\d+)\.block_sparse_moe\.experts",
            r"layers.\1.feed_forward.experts",
            whole,
        )
        found.setdefault(whole, []).append((int(item[2]) if item else -1, x))
    return {
        name: parts[0][1]
        if parts[0][0] < 0
        else torch.stack([x for _, x in sorted(parts, key=lambda p: p[0])])
        for name, parts in found.items()
    }


def metadata(writer: gguf.GGUFWriter, made: Architecture, config: Any) -> None:
    """Everything about the model but its tensors."""
    made.write(writer, config)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    if config.pad_token_id is not None:
        writer.add_pad_token_id(config.pad_token_id)


def write(
    path: Path,
    model: Any,
    name: str,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    extra: Callable[[gguf.GGUFWriter], None] | None = None,
) -> None:
    """Write a model; matrices whose rows are whole blocks are quantised as `kind`."""
    made, architecture = ARCHITECTURES[name], GGML.get(name, name)
    ids = {label: arch for arch, label in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(ids[architecture], model.config.num_hidden_layers)
    folder = path.parent / f"{path.stem}-hf"
    model.save_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    writer = gguf.GGUFWriter(path, architecture)
    metadata(writer, made, config)
    if extra is not None:
        extra(writer)
    changed: dict[str, Tensor] = {}
    for theirs, x in load_file(folder / "model.safetensors").items():
        changed |= made.change(theirs, x, config)
    for theirs, x in stacked(changed).items():
        ours = table.get_name(theirs, try_suffixes=(".weight", ".bias"))
        assert ours is not None, theirs
        values = x.contiguous().numpy()
        block = gguf.GGML_QUANT_SIZES[kind][0]
        whole = x.ndim > 1 and x.shape[-1] % block == 0 and "norm" not in ours
        chosen = kind if whole else gguf.GGMLQuantizationType.F32
        data = values if chosen is gguf.GGMLQuantizationType.F32 else gguf.quantize(values, chosen)
        writer.add_tensor(ours, np.ascontiguousarray(data), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
