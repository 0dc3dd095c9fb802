# SPDX-License-Identifier: MIT OR Apache-2.0
"""Published configs of mixtures of experts, and every tensor of the models that they describe."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from torch_mi.backends.transformer import parameter_shapes
from torch_mi.config.parts import Experts, GroupScore, Latent, Scoring
from torch_mi.config.rope import Rope, Yarn
from torch_mi.config.transformer import TransformerConfig
from torch_mi.families import read_config
from torch_mi.families.names import placement

HERE = Path(__file__).resolve().parents[2]
CONFIGS = Path(os.environ.get("TORCH_MI_SHARED", HERE.parent / "shared")) / "data" / "configs"

Raw = dict[str, Any]


def published(family: str, name: str) -> TransformerConfig:
    path = CONFIGS / family / name
    if not path.exists():
        pytest.skip(f"no published configs in {CONFIGS}")
    return read_config(json.loads(path.read_text(encoding="utf-8")))[1]


@pytest.mark.parametrize("era", ["", "transformers5/"])
def test_mixtral_8x7b(era: str) -> None:
    cfg = published(f"{era}mixtral", "mistralai__mixtral-8x7b-v0.1.json")
    assert cfg.experts == Experts(
        layers=(True,) * 32, count=8, chosen=2, width=14336, normalised=True
    )
    assert (cfg.num_attention_heads, cfg.num_kv_heads, cfg.head_dim) == (32, 8, 128)
    assert cfg.ropes == (Rope(1e6, 128),) * 32
    assert cfg.windows == (None,) * 32
    assert cfg.norm_eps == 1e-5
    assert not cfg.qkv_bias


@pytest.mark.parametrize("era", ["", "transformers5/"])
def test_qwen_1_5_moe_a2_7b(era: str) -> None:
    cfg = published(f"{era}qwen2_moe", "qwen2moe.json")
    assert cfg.experts == Experts(
        layers=(True,) * 24,
        count=60,
        chosen=4,
        width=1408,
        shared_width=5632,
        shared_gate=True,
    )
    assert (cfg.qkv_bias, cfg.o_proj_bias, cfg.mlp_bias) == (True, False, False)
    assert cfg.windows == (None,) * 24
    assert (cfg.num_kv_heads, cfg.head_dim, cfg.vocab_size) == (16, 128, 151936)


@pytest.mark.parametrize("era", ["", "transformers5/"])
def test_qwen3_30b_a3b(era: str) -> None:
    cfg = published(f"{era}qwen3_moe", "qwen__qwen3-30b-a3b.json")
    assert cfg.experts == Experts(
        layers=(True,) * 48, count=128, chosen=8, width=768, normalised=True
    )
    assert (cfg.num_attention_heads, cfg.num_kv_heads, cfg.head_dim) == (32, 4, 128)
    assert cfg.hidden_size == 2048
    assert cfg.qk_norm is not None
    assert cfg.windows == (None,) * 48
    assert cfg.ropes[0] == Rope(1e6, 128)


def test_deepseek_moe_16b() -> None:
    cfg = published("deepseek", "deepseek.json")
    assert cfg.experts == Experts(
        layers=(False,) + (True,) * 27, count=64, chosen=6, width=1408, shared_width=2816
    )
    assert cfg.latent is None
    assert (cfg.intermediate_size, cfg.num_kv_heads, cfg.head_dim) == (10944, 16, 128)


@pytest.mark.parametrize("era", ["", "transformers5/"])
def test_deepseek_v2_lite(era: str) -> None:
    """This copy of the file lacks `q_lora_rank: null`, and absence means 1536."""
    cfg = published(f"{era}deepseek_v2", "deepseek_v2_lite.json")
    assert cfg.experts == Experts(
        layers=(False,) + (True,) * 26,
        count=64,
        chosen=6,
        width=1408,
        exact=True,
        shared_width=2816,
    )
    assert cfg.latent == Latent(
        query_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128
    )
    assert (cfg.num_attention_heads, cfg.num_kv_heads, cfg.head_dim) == (16, 16, 192)
    # 0.1 * 0.707 * ln 40 + 1, squared
    assert cfg.attn_scales[0] == pytest.approx(192**-0.5 * 1.2608038 * 1.2608038, rel=1e-6)
    scaling = Yarn(40.0, 4096, 1.0, 32.0, 1.0, truncate=True)
    assert cfg.ropes == (Rope(10000.0, 64, scaling, interleaved=True),) * 27


OLMOE: Raw = {
    "architectures": ["OlmoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "clip_qkv": None,
    "eos_token_id": 50279,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 1024,
    "max_position_embeddings": 4096,
    "model_type": "olmoe",
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 16,
    "num_key_value_heads": 16,
    "output_router_logits": False,
    "pad_token_id": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "router_aux_loss_coef": 0.01,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0.dev0",
    "use_cache": True,
    "vocab_size": 50304,
}
"""OLMoE-1B-7B, as published."""

DEEPSEEK_V3: Raw = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 129280,
}
"""DeepSeek-V3, as published, without its quantisation."""


def test_olmoe_1b_7b() -> None:
    cfg = read_config(OLMOE)[1]
    assert cfg.experts == Experts(layers=(True,) * 16, count=64, chosen=8, width=1024)
    assert (cfg.num_kv_heads, cfg.head_dim, cfg.clip_qkv) == (16, 128, None)


def test_deepseek_v3() -> None:
    cfg = read_config(DEEPSEEK_V3)[1]
    assert cfg.experts == Experts(
        layers=(False,) * 3 + (True,) * 58,
        count=256,
        chosen=8,
        width=2048,
        scoring=Scoring.Sigmoid,
        exact=True,
        normalised=True,
        scale=2.5,
        correction=True,
        groups=8,
        chosen_groups=4,
        group_score=GroupScore.TwoBest,
        shared_width=2048,
    )
    assert cfg.latent == Latent(
        query_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128
    )
    # 0.1 * ln 40 + 1, squared
    assert cfg.attn_scales[0] == pytest.approx(192**-0.5 * 1.3688879 * 1.3688879, rel=1e-6)
    assert cfg.ropes[0] is not None
    assert cfg.ropes[0].interleaved


def genuine() -> dict[str, Raw]:
    found = {"olmoe": OLMOE, "deepseek_v3": DEEPSEEK_V3}
    for family in ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2"):
        for path in sorted((CONFIGS / family).glob("*.json")):
            found[f"{family}-{path.stem}"] = json.loads(path.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", genuine())
def test_every_tensor_of_a_published_model_has_one_place(name: str) -> None:
    """Of its first five layers: what comes after is like them."""
    raw: Raw = {**genuine()[name], "num_hidden_layers": 5}
    family, cfg = read_config(raw)
    config = CONFIG_MAPPING[raw["model_type"]].from_dict(raw)
    assert read_config(config.to_dict())[1] == cfg
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    theirs = {key: value.shape for key, value in model.state_dict().items()}
    plan = family.place(cfg, parameter_shapes(cfg), list(theirs))
    assert {key for p in plan.placements for key in p.theirs} == set(theirs)
    assert not plan.ignored
    total = sum(torch.Size(p.shape).numel() for p in plan.placements)
    assert total == sum(shape.numel() for shape in theirs.values())
    for p in plan.placements:
        assert all(tuple(theirs[key]) == p.stored for key in p.theirs), p.ours


def on_disk(raw: Raw) -> set[str]:
    """The names in a checkpoint, where every expert is on its own."""
    family, cfg = read_config(raw)
    shapes = parameter_shapes(cfg).items()
    placed = (placement(ours, shape, cfg, family.sources) for ours, shape in shapes)
    return {name for each in placed for name in each.theirs}


def test_a_layer_that_foretells_more_tokens_is_passed_over() -> None:
    raw = {**DEEPSEEK_V3, "first_k_dense_replace": 60, "n_routed_experts": 16}
    family, cfg = read_config(raw)
    names = on_disk(raw)
    extra = {name.replace(".60.", ".61.", 1) for name in names if "layers.60." in name}
    own = ("embed_tokens", "enorm", "hnorm", "eh_proj", "shared_head.norm", "shared_head.head")
    extra |= {f"model.layers.61.{module}.weight" for module in own}
    plan = family.place(cfg, parameter_shapes(cfg), [*names, *extra])
    assert set(plan.ignored) == extra
