# SPDX-License-Identifier: MIT OR Apache-2.0
"""The `config.json` that a GGUF file's metadata amounts to.

What llama.cpp keeps in its code and not in the file (which layers have a window, how a score is
scaled) is written here as its code has it.
"""

from collections.abc import Callable, Mapping
from math import nextafter
from typing import cast

from torch_mi.errors import ConfigError
from torch_mi.families.gguf_keys import KEYS
from torch_mi.families.gguf_layout import Facts, Layout, Numeric
from torch_mi.families.gguf_names import variant

Config = dict[str, object]
More = Callable[[Facts], Config]

GEMMA2_LARGEST, GEMMA3_LARGEST = 46, 62
"""The layers of the one size whose scores are scaled by the model's width, not the head's."""

NO_ROPE_EVERY = 4
GEMMA3_LOCAL_THETA = 10_000.0


def build_config(layout: Layout, facts: Facts) -> Config:
    """The config of the model in a file."""
    name = variant(facts)
    keys = KEYS[{"deepseek3": "deepseek2", "falcon-new": "falcon"}.get(name, name)]
    config: Config = {"model_type": layout.model_type}
    config |= {theirs: facts.need(ggml) for theirs, ggml in keys.items()}
    config |= {"vocab_size": vocabulary(facts), "tie_word_embeddings": not _untied(facts)}
    config |= {
        f"{which}_token_id": facts.values[key]
        for which, key in SPECIAL.items()
        if key in facts.values
    }
    return config | MORE[name](facts)


SPECIAL = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
}


def vocabulary(facts: Facts) -> int:
    """How many tokens are embedded."""
    shape = facts.shapes.get("token_embd.weight", ())
    if not shape:
        raise ConfigError(f"{facts.path} has no token_embd.weight")
    return shape[0]


def _untied(facts: Facts) -> bool:
    return facts.has("output.weight")


def biased(facts: Facts, *modules: str) -> bool:
    """Whether the first layer's modules have biases."""
    return any(facts.has(f"blk.0.{module}.bias") for module in modules)


def _grouped(facts: Facts) -> Config:
    return {"num_key_value_heads": facts.kv_heads}


def rope(facts: Facts) -> Config:
    """The rotary embedding, scaled as the metadata or a tensor of factors says."""
    config: Config = {"rope_theta": facts.get("rope.freq_base") or 10_000.0}
    scaling = stretched(facts)
    return config | ({"rope_scaling": scaling} if scaling else {})


def stretched(facts: Facts) -> Config:
    """The scaling that metadata or tensors describe, if there is one."""
    kind = facts.values.get(f"{facts.architecture}.rope.scaling.type")
    factor = facts.get("rope.scaling.factor") or facts.get("rope.scale_linear")
    if facts.factors:
        return long_rope(facts)
    if kind in {None, "none", "longrope"} or not factor:
        return {"rope_type": "linear", "factor": factor} if kind is None and factor else {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise ConfigError(f"{facts.path}: rotary scaling {kind!r} is not modelled")
    original = facts.need("rope.scaling.original_context_length")
    yarn: Config = {"rope_type": "yarn", "factor": factor}
    yarn["original_max_position_embeddings"] = original
    if attention := facts.get("rope.scaling.attn_factor"):
        yarn["attention_factor"] = attention
    if grown := facts.get("rope.scaling.yarn_log_multiplier"):
        yarn |= {"mscale": grown * 10, "mscale_all_dim": grown * 10}
    return yarn


def long_rope(facts: Facts) -> Config:
    """A divisor for each frequency: of short and long texts apart, or of all alike."""
    factors = facts.factors
    both = factors.get("rope_freqs.weight")
    if both is not None:  # llama3's scaling, already worked out: it has no attention factor
        original = facts.need("context_length")
        return {
            "rope_type": "longrope",
            "short_factor": both,
            "long_factor": both,
            "original_max_position_embeddings": original,
            "attention_factor": 1.0,
        }
    return {
        "rope_type": "longrope",
        "short_factor": factors["rope_factors_short.weight"],
        "long_factor": factors["rope_factors_long.weight"],
    }


def share(dims: Numeric, whole: int) -> float:
    """A fraction of a head of which `int(fraction * whole)` is exactly `dims` again."""
    part = dims / whole
    return part if int(part * whole) == dims else nextafter(part, 1.0)


def turning(facts: Facts) -> float:
    """The fraction of each head that rotates."""
    return share(facts.get("rope.dimension_count") or facts.head_dim, facts.head_dim)


def _llama(facts: Facts) -> Config:
    return {
        **_grouped(facts),
        **rope(facts),
        "head_dim": facts.get("attention.key_length")
        or facts.get("rope.dimension_count")
        or facts.head_dim,
        "attention_bias": biased(facts, "attn_q", "attn_output"),
        "mlp_bias": biased(facts, "ffn_up"),
    }


def _mixtral(facts: Facts) -> Config:
    return {**_grouped(facts), **rope(facts), "head_dim": facts.head_dim, "sliding_window": None}


def _qwen2(facts: Facts) -> Config:
    return {**_grouped(facts), **rope(facts)}


def _qwen3(facts: Facts) -> Config:
    return {**_qwen2(facts), "attention_bias": biased(facts, "attn_q")}


def _qwen2_moe(facts: Facts) -> Config:
    return {**_qwen2(facts), "norm_topk_prob": False}


def _qwen3_moe(facts: Facts) -> Config:
    return {**_qwen3(facts), "norm_topk_prob": True}


def score_scale(facts: Facts, largest: int) -> Config:
    """What scores are divided by the root of, which the file need not say."""
    if scale := facts.get("attention.scale"):
        return {"query_pre_attn_scalar": scale**-2}
    wide = facts.need("block_count") == largest
    per_head = int(facts.need("embedding_length")) // facts.heads
    return {"query_pre_attn_scalar": per_head if wide else facts.head_dim}


def _gemma2(facts: Facts) -> Config:
    return {**_qwen2(facts), **score_scale(facts, GEMMA2_LARGEST)}


def _gemma3(facts: Facts) -> Config:
    return {
        **_qwen2(facts),
        **score_scale(facts, GEMMA3_LARGEST),
        "rope_theta": facts.get("rope.freq_base") or 1_000_000.0,
        "rope_local_base_freq": GEMMA3_LOCAL_THETA,
        "final_logit_softcapping": facts.get("final_logit_softcapping"),
    }


def _phi2(facts: Facts) -> Config:
    return {**_qwen2(facts), "partial_rotary_factor": turning(facts)}


def _phi3(facts: Facts) -> Config:
    config = {**_qwen2(facts), "sliding_window": facts.get("attention.sliding_window") or None}
    if original := facts.get("rope.scaling.original_context_length"):
        config["original_max_position_embeddings"] = original
    part = turning(facts)
    return config if part == 1.0 else {**config, "partial_rotary_factor": part}


def _starcoder2(facts: Facts) -> Config:
    bias = biased(facts, "attn_q", "ffn_up")
    return {**_qwen2(facts), "use_bias": bias, "sliding_window": None}


def _starcoder(facts: Facts) -> Config:
    return {"multi_query": facts.kv_heads == 1}


def _gpt_neox(facts: Facts) -> Config:
    return {
        "rotary_emb_base": facts.get("rope.freq_base") or 10_000.0,
        "rotary_pct": turning(facts),
        "use_parallel_residual": bool(facts.need("use_parallel_residual")),
    }


def _mpt(facts: Facts) -> Config:
    alibi = facts.get("attention.max_alibi_bias") or 0.0
    attention: Config = {"alibi": alibi > 0, "clip_qkv": facts.get("attention.clamp_kqv")}
    if alibi:
        attention["alibi_bias_max"] = int(alibi)
    ratio = facts.need("feed_forward_length") / facts.need("embedding_length")
    return {
        "attn_config": attention,
        "expansion_ratio": int(ratio),
        "no_bias": not biased(facts, "attn_qkv", "ffn_up"),
    }


def _falcon(facts: Facts) -> Config:
    new = facts.has("blk.0.attn_norm_2.weight")
    return {
        "num_kv_heads": facts.kv_heads,
        "multi_query": facts.kv_heads == 1,
        "new_decoder_architecture": new,
        "parallel_attn": True,
        "alibi": False,
        "bias": biased(facts, "attn_qkv"),
        **rope(facts),
    }


def _stablelm(facts: Facts) -> Config:
    return {
        **_qwen2(facts),
        "partial_rotary_factor": turning(facts),
        "use_qkv_bias": biased(facts, "attn_q"),
        "qk_layernorm": facts.has("blk.0.attn_q_norm.weight"),
        "use_parallel_residual": not facts.has("blk.0.ffn_norm.weight"),
    }


def _olmo(facts: Facts) -> Config:
    return {**_qwen2(facts), "clip_qkv": facts.get("attention.clamp_kqv")}


def _olmo3(facts: Facts) -> Config:
    return {**_qwen2(facts), "layer_types": windows(facts)}


def _olmoe(facts: Facts) -> Config:
    return {**_olmo(facts), "norm_topk_prob": False}


def windows(facts: Facts) -> list[str]:
    """`layer_types`, by the pattern in the file."""
    pattern = facts.values.get(f"{facts.architecture}.attention.sliding_window_pattern")
    layers = int(facts.need("block_count"))
    if not isinstance(pattern, list) or len(cast("list[object]", pattern)) != layers:
        raise ConfigError(f"{facts.path} does not say which of its layers have a sliding window")
    listed = cast("list[object]", pattern)
    return ["sliding_attention" if windowed else "full_attention" for windowed in listed]


def _cohere(facts: Facts) -> Config:
    return {**_qwen2(facts), "use_qk_norm": facts.has("blk.0.attn_q_norm.weight")}


def _granite(facts: Facts) -> Config:
    return {key: value for key, value in _llama(facts).items() if key != "head_dim"}


def _smollm3(facts: Facts) -> Config:
    layers = range(int(facts.need("block_count")))
    turns = [int((i + 1) % NO_ROPE_EVERY != 0) for i in layers]
    bare = {key: value for key, value in _llama(facts).items() if key != "head_dim"}
    return {**bare, "no_rope_layers": turns}


def _internlm2(facts: Facts) -> Config:
    return {**_qwen2(facts), "bias": biased(facts, "attn_q", "attn_output")}


def _exaone4(facts: Facts) -> Config:
    window = facts.get("attention.sliding_window")
    sliding: Config = {"sliding_window": window}
    return {**_qwen2(facts), **sliding, **({"layer_types": windows(facts)} if window else {})}


def _deepseek(facts: Facts) -> Config:
    turned = int(facts.need("rope.dimension_count"))
    width = facts.get("attention.key_length_mla") or facts.need("attention.key_length")
    value = facts.get("attention.value_length_mla") or facts.need("attention.value_length")
    config: Config = {
        **rope(facts),
        "num_key_value_heads": facts.heads,
        "q_lora_rank": facts.get("attention.q_lora_rank"),
        "qk_nope_head_dim": int(width) - turned,
        "v_head_dim": value,
        "norm_topk_prob": bool(facts.get("expert_weights_norm")),
    }
    groups = facts.get("expert_group_count") or 1
    config |= {"n_group": groups, "topk_group": facts.get("expert_group_used_count") or 1}
    if variant(facts) == "deepseek2":
        config["topk_method"] = "group_limited_greedy" if groups > 1 else "greedy"
    return config


MORE: Mapping[str, More] = {
    "llama": _llama,
    "mixtral": _mixtral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen2moe": _qwen2_moe,
    "qwen3moe": _qwen3_moe,
    "gemma": _qwen2,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi2": _phi2,
    "phi3": _phi3,
    "starcoder2": _starcoder2,
    "starcoder": _starcoder,
    "gpt2": lambda _: {},
    "gptneox": _gpt_neox,
    "bloom": lambda _: {},
    "mpt": _mpt,
    "falcon": _falcon,
    "falcon-new": _falcon,
    "stablelm": _stablelm,
    "olmo": _olmo,
    "olmo2": _qwen2,
    "olmo3": _olmo3,
    "olmoe": _olmoe,
    "command-r": _cohere,
    "granite": _granite,
    "smollm3": _smollm3,
    "internlm2": _internlm2,
    "exaone4": _exaone4,
    "deepseek2": _deepseek,
    "deepseek3": _deepseek,
}
"""What is not one number: by architecture, as `LAYOUTS`."""
