# SPDX-License-Identifier: MIT OR Apache-2.0
"""Any config of a mixture of experts means what it means to transformers, defaults included."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from torch_mi.config.parts import Experts, GroupScore, Latent, Scoring
from torch_mi.families import read_config

Raw = dict[str, Any]

SMALL: Raw = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 24,
    "vocab_size": 40,
}
ROPE: Raw = {"rope_theta": st.floats(100, 1e6), "tie_word_embeddings": st.booleans()}
DENSE: Raw = {
    "decoder_sparse_step": st.integers(1, 3),
    "mlp_only_layers": st.lists(st.integers(0, 3), unique=True),
}
QWEN: Raw = {
    **ROPE,
    **DENSE,
    "num_experts": st.sampled_from([0, 60, 70]),
    "num_experts_per_tok": st.integers(1, 9),
    "moe_intermediate_size": st.integers(1, 50),
    "norm_topk_prob": st.booleans(),
    "use_sliding_window": st.booleans(),
    "sliding_window": st.integers(1, 9),
    "max_window_layers": st.integers(0, 5),
}
LATENT: Raw = {
    **ROPE,
    "first_k_dense_replace": st.integers(0, 5),
    "kv_lora_rank": st.integers(1, 40),
    "q_lora_rank": st.integers(1, 40),
    "qk_nope_head_dim": st.integers(1, 9),
    "qk_rope_head_dim": st.sampled_from([2, 4, 6]),
    "v_head_dim": st.integers(1, 9),
    "n_routed_experts": st.sampled_from([64, 128]),
    "n_shared_experts": st.integers(1, 3),
    "moe_intermediate_size": st.integers(1, 50),
    "routed_scaling_factor": st.floats(0.1, 3),
    "attention_bias": st.booleans(),
}
KEYS: dict[str, Raw] = {
    "mixtral": {
        **ROPE,
        "num_local_experts": st.integers(4, 9),
        "num_experts_per_tok": st.integers(1, 4),
        "sliding_window": st.integers(1, 9),
    },
    "qwen2_moe": {
        **QWEN,
        "shared_expert_intermediate_size": st.integers(1, 50),
        "qkv_bias": st.booleans(),
    },
    "qwen3_moe": {**QWEN, "num_experts": st.sampled_from([0, 128, 130]), "head_dim": st.just(6)},
    "olmoe": {
        **ROPE,
        "num_experts": st.integers(9, 64),
        "num_experts_per_tok": st.integers(1, 9),
        "norm_topk_prob": st.booleans(),
        "clip_qkv": st.floats(0.1, 9),
    },
    "deepseek_v2": {
        **LATENT,
        "topk_method": st.sampled_from(["greedy", "group_limited_greedy"]),
    },
    "deepseek_v3": {
        **LATENT,
        "norm_topk_prob": st.booleans(),
        "rope_interleave": st.booleans(),
        "n_group": st.sampled_from([4, 8, 16]),
        "topk_group": st.integers(2, 4),
    },
}
ALWAYS: dict[str, Raw] = {
    "deepseek_v2": {"num_experts_per_tok": 3, "n_group": 8, "topk_group": 2},
}
"""What must be said."""


def sparse(hf: Any) -> tuple[bool, ...]:
    """Which layers have experts, as the models of Qwen decide."""
    return tuple(
        i not in hf.mlp_only_layers and hf.num_experts > 0 and (i + 1) % hf.decoder_sparse_step == 0
        for i in range(hf.num_hidden_layers)
    )


def mixtral(hf: Any) -> Raw:
    return {"count": hf.num_local_experts, "width": hf.intermediate_size, "normalised": True}


def olmoe(hf: Any) -> Raw:
    width = hf.intermediate_size
    return {"count": hf.num_experts, "width": width, "normalised": hf.norm_topk_prob}


def qwen3(hf: Any) -> Raw:
    width = hf.moe_intermediate_size
    return {"count": hf.num_experts, "width": width, "normalised": hf.norm_topk_prob}


def qwen2(hf: Any) -> Raw:
    width = hf.shared_expert_intermediate_size
    return {**qwen3(hf), "shared_width": width, "shared_gate": True}


def deepseek2(hf: Any) -> Raw:
    limited = hf.topk_method == "group_limited_greedy"
    return {
        "count": hf.n_routed_experts,
        "width": hf.moe_intermediate_size,
        "exact": True,
        "scale": hf.routed_scaling_factor,
        "groups": hf.n_group if limited else 1,
        "chosen_groups": hf.topk_group if limited else 1,
        "shared_width": hf.moe_intermediate_size * hf.n_shared_experts,
    }


def deepseek3(hf: Any) -> Raw:
    return {
        "count": hf.n_routed_experts,
        "width": hf.moe_intermediate_size,
        "scoring": Scoring.Sigmoid,
        "exact": True,
        "normalised": hf.norm_topk_prob,
        "scale": hf.routed_scaling_factor,
        "correction": True,
        "groups": hf.n_group,
        "chosen_groups": hf.topk_group,
        "group_score": GroupScore.TwoBest,
        "shared_width": hf.moe_intermediate_size * hf.n_shared_experts,
    }


EXPECTED: dict[str, Callable[[Any], Raw]] = {
    "mixtral": mixtral,
    "qwen2_moe": qwen2,
    "qwen3_moe": qwen3,
    "olmoe": olmoe,
    "deepseek_v2": deepseek2,
    "deepseek_v3": deepseek3,
}


def experts_of(hf: Any) -> Experts | None:
    """The experts that the reference's models build."""
    layers: tuple[bool, ...] = (True,) * hf.num_hidden_layers
    if "qwen" in hf.model_type:
        layers = sparse(hf)
    elif "deepseek" in hf.model_type:
        layers = tuple(i >= hf.first_k_dense_replace for i in range(hf.num_hidden_layers))
    if not any(layers):
        return None
    chosen = hf.num_experts_per_tok
    return Experts(layers=layers, chosen=chosen, **EXPECTED[hf.model_type](hf))


def windows_of(hf: Any) -> tuple[int | None, ...]:
    """What the reference masks by."""
    kinds = hf.to_dict().get("layer_types")
    window = hf.to_dict().get("sliding_window")
    if kinds is None:
        return (window,) * hf.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


@st.composite
def configs(draw: st.DrawFn, family: str) -> Raw:
    """Configs with any of the keys that matter left out."""
    raw: Raw = {"model_type": family, **SMALL, **ALWAYS.get(family, {})}
    for key, values in KEYS[family].items():
        if (value := draw(st.none() | values)) is not None:
            raw[key] = value
    return raw


@pytest.mark.parametrize("family", KEYS)
def test_any_config_means_what_it_means_to_transformers(family: str) -> None:
    @given(configs(family))
    @settings(max_examples=12, deadline=None, database=None, derandomize=True)
    def run(raw: Raw) -> None:
        hf = CONFIG_MAPPING[family].from_dict(dict(raw))
        cfg = read_config(raw)[1]
        assert cfg.experts == experts_of(hf)
        assert cfg.windows == windows_of(hf)
        assert cfg.tie_word_embeddings == hf.tie_word_embeddings
        assert cfg.norm_eps == hf.rms_norm_eps
        assert cfg.max_position_embeddings == hf.max_position_embeddings
        assert cfg.ropes[0] is not None
        assert cfg.ropes[0].theta == hf.rope_parameters["rope_theta"]
        if "deepseek" in family:
            wanted = (hf.q_lora_rank, hf.kv_lora_rank, hf.qk_nope_head_dim, hf.qk_rope_head_dim)
            assert cfg.latent == Latent(
                query_rank=wanted[0],
                kv_rank=wanted[1],
                nope_dim=wanted[2],
                rope_dim=wanted[3],
                value_dim=hf.v_head_dim,
            )
            assert cfg.head_dim == hf.qk_head_dim
            assert cfg.ropes[0].dim == hf.head_dim
        for whole in (True, False):
            again: Raw = json.loads(hf.to_json_string(use_diff=whole))
            assert read_config({"num_hidden_layers": 4, **again, "model_type": family})[1] == cfg

    run()
