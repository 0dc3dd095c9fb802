# SPDX-License-Identifier: MIT OR Apache-2.0
"""GPT-2's kin: what published configs mean, what any config means to transformers, old names."""

import copy
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM
from transformers.activations import ACT2FN
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.parity import hf
from tests.parity.cases import gpt
from tests.parity.cases.case import Case
from torch_mi.backends.transformer import parameter_shapes
from torch_mi.config.activation import Activation
from torch_mi.config.parts import (
    Alibi,
    BlockLayout,
    Embedding,
    Head,
    Learned,
    NormType,
    Over,
    QkNorm,
)
from torch_mi.config.rope import Rope
from torch_mi.config.transformer import TransformerConfig
from torch_mi.families import read_config
from torch_mi.nn.rotary import Rotary

HERE = Path(__file__).resolve().parents[2]
CONFIGS = Path(os.environ.get("TORCH_MI_SHARED", HERE.parent / "shared")) / "data" / "configs"

Raw = dict[str, Any]

LAYER_NORM: Raw = {"norm_type": NormType.Layer, "norm_eps": 1e-5, "gated_mlp": False}
BIASED: Raw = {"qkv_bias": True, "o_proj_bias": True, "mlp_bias": True}
UNBIASED: Raw = {"qkv_bias": False, "o_proj_bias": False, "mlp_bias": False}


def sizes(width: int, layers: int, heads: int, inner: int, vocab: int, longest: int) -> Raw:
    """What every model has, with even heads and no sharing of keys."""
    return {
        **LAYER_NORM,
        "hidden_size": width,
        "num_layers": layers,
        "num_attention_heads": heads,
        "num_kv_heads": heads,
        "head_dim": width // heads,
        "intermediate_size": inner,
        "vocab_size": vocab,
        "max_position_embeddings": longest,
        "windows": (None,) * layers,
        "attn_scales": ((width // heads) ** -0.5,) * layers,
        "ropes": (None,) * layers,
    }


def turns(layers: int, dim: int, *, theta: float = 10_000.0, interleaved: bool = False) -> Raw:
    """One rotary embedding for all layers."""
    return {"ropes": (Rope(theta, dim, interleaved=interleaved),) * layers}


GENUINE: dict[str, Raw] = {
    "gpt2/gpt2.json": {
        **sizes(768, 12, 12, 3072, 50257, 1024),
        **BIASED,
        "embedding": Embedding(learned=Learned(1024)),
        "layout": BlockLayout.Pre,
        "activation": Activation.GeluTanh,
        "tie_word_embeddings": True,
    },
    "gpt2/gpt2_medium.json": {
        **sizes(1024, 24, 16, 4096, 50257, 1024),
        **BIASED,
        "embedding": Embedding(learned=Learned(1024)),
        "layout": BlockLayout.Pre,
        "activation": Activation.GeluTanh,
        "tie_word_embeddings": True,
    },
    "gpt_bigcode/gpt_bigcode.json": {
        **sizes(2048, 24, 16, 8192, 49280, 2048),
        **BIASED,
        "num_kv_heads": 1,
        "embedding": Embedding(learned=Learned(2048)),
        "layout": BlockLayout.Pre,
        "activation": Activation.GeluTanh,
        "tie_word_embeddings": True,
    },
    "gpt_neox/eleutherai__pythia-6.9b-deduped.json": {
        **sizes(4096, 32, 32, 16384, 50432, 2048),
        **BIASED,
        **turns(32, 32),
        "layout": BlockLayout.ParallelTwo,
        "activation": Activation.Gelu,
        "tie_word_embeddings": False,
    },
    "gpt_neox/redpajama_3b_v1.json": {
        **sizes(2560, 32, 32, 10240, 50432, 2048),
        **BIASED,
        **turns(32, 80),
        "layout": BlockLayout.Pre,
        "activation": Activation.Gelu,
        "tie_word_embeddings": False,
    },
    "gptj/gpt_j.json": {
        **sizes(4096, 28, 16, 16384, 50400, 2048),
        **turns(28, 64, interleaved=True),
        **UNBIASED,
        "mlp_bias": True,
        "head": Head(bias=True),
        "layout": BlockLayout.Parallel,
        "activation": Activation.GeluTanh,
        "tie_word_embeddings": False,
    },
    "falcon/tiiuae__falcon-7b.json": {
        **sizes(4544, 32, 71, 18176, 65024, 2048),
        **UNBIASED,
        **turns(32, 64),
        "num_kv_heads": 1,
        "layout": BlockLayout.Parallel,
        "activation": Activation.Gelu,
        "alibi": None,
        "tie_word_embeddings": True,
    },
    "phi-msft/phi-1_5.json": {
        **sizes(2048, 24, 32, 8192, 51200, 2048),
        **BIASED,
        **turns(24, 32),
        "head": Head(bias=True),
        "layout": BlockLayout.Parallel,
        "activation": Activation.GeluTanh,
        "tie_word_embeddings": False,
    },
    "phi-msft/phi-2.json": {
        **sizes(2560, 32, 32, 10240, 51200, 2048),
        **BIASED,
        **turns(32, 32),
        "head": Head(bias=True),
        "layout": BlockLayout.Parallel,
        "activation": Activation.GeluTanh,
        "tie_word_embeddings": False,
    },
}
"""What the published configs in the shared folder mean, written by hand."""

PUBLISHED: dict[str, tuple[Raw, Raw]] = {
    "facebook/opt-125m": (
        {
            "_remove_final_layer_norm": False,
            "activation_dropout": 0.0,
            "activation_function": "relu",
            "attention_dropout": 0.0,
            "do_layer_norm_before": True,
            "dropout": 0.1,
            "ffn_dim": 3072,
            "hidden_size": 768,
            "init_std": 0.02,
            "layerdrop": 0.0,
            "max_position_embeddings": 2048,
            "model_type": "opt",
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "prefix": "</s>",
            "vocab_size": 50272,
            "word_embed_proj_dim": 768,
        },
        {
            **sizes(768, 12, 12, 3072, 50272, 2048),
            **BIASED,
            "embedding": Embedding(learned=Learned(2050, 2)),
            "layout": BlockLayout.Pre,
            "activation": Activation.Relu,
            "tie_word_embeddings": True,
        },
    ),
    "bigscience/bloom-560m": (
        {
            "apply_residual_connection_post_layernorm": False,
            "attention_softmax_in_fp32": True,
            "bias_dropout_fusion": True,
            "hidden_dropout": 0.0,
            "layer_norm_epsilon": 1e-05,
            "masked_softmax_fusion": True,
            "model_type": "bloom",
            "n_embed": 1024,
            "n_inner": None,
            "n_layer": 24,
            "num_attention_heads": 16,
            "offset_alibi": 100,
            "pretraining_tp": 1,
            "skip_bias_add": True,
            "skip_bias_add_qkv": False,
            "unk_token_id": 0,
            "vocab_size": 250880,
        },
        {
            **sizes(1024, 24, 16, 4096, 250880, 2048),
            **BIASED,
            "embedding": Embedding(norm=True),
            "alibi": Alibi(),
            "layout": BlockLayout.Pre,
            "activation": Activation.GeluTanh,
            "tie_word_embeddings": True,
        },
    ),
    "mosaicml/mpt-7b": (
        {
            "attn_config": {
                "alibi": True,
                "alibi_bias_max": 8,
                "attn_impl": "torch",
                "attn_pdrop": 0,
                "attn_type": "multihead_attention",
                "attn_uses_sequence_id": False,
                "clip_qkv": None,
                "prefix_lm": False,
                "qk_ln": False,
                "softmax_scale": None,
            },
            "d_model": 4096,
            "emb_pdrop": 0,
            "embedding_fraction": 1.0,
            "expansion_ratio": 4,
            "init_config": {"name": "kaiming_normal_", "verbose": 0},
            "init_device": "cpu",
            "learned_pos_emb": True,
            "logit_scale": None,
            "max_seq_len": 2048,
            "model_type": "mpt",
            "n_heads": 32,
            "n_layers": 32,
            "no_bias": True,
            "norm_type": "low_precision_layernorm",
            "resid_pdrop": 0,
            "tokenizer_name": "EleutherAI/gpt-neox-20b",
            "verbose": 0,
            "vocab_size": 50432,
        },
        {
            **sizes(4096, 32, 32, 16384, 50432, 2048),
            **UNBIASED,
            "norm_type": NormType.LayerGain,
            "alibi": Alibi(max_bias=8.0),
            "clip_qkv": None,
            "activation": Activation.Gelu,
            "tie_word_embeddings": True,
        },
    ),
    "mosaicml/mpt-7b-storywriter": (
        {
            "attn_config": {"alibi": True, "alibi_bias_max": 16, "clip_qkv": 6.0},
            "d_model": 4096,
            "expansion_ratio": 4,
            "max_seq_len": 65536,
            "model_type": "mpt",
            "n_heads": 32,
            "n_layers": 32,
            "vocab_size": 50432,
        },
        {
            **sizes(4096, 32, 32, 16384, 50432, 65536),
            "norm_type": NormType.LayerGain,
            "alibi": Alibi(max_bias=16.0),
            "clip_qkv": 6.0,
        },
    ),
    "EleutherAI/gpt-neo-125m": (
        {
            "activation_function": "gelu_new",
            "attention_dropout": 0,
            "attention_layers": ["global", "local"] * 6,
            "attention_types": [[["global", "local"], 6]],
            "embed_dropout": 0,
            "gradient_checkpointing": False,
            "hidden_size": 768,
            "intermediate_size": None,
            "layer_norm_epsilon": 1e-05,
            "max_position_embeddings": 2048,
            "model_type": "gpt_neo",
            "num_heads": 12,
            "num_layers": 12,
            "resid_dropout": 0,
            "summary_type": "cls_index",
            "vocab_size": 50257,
            "window_size": 256,
        },
        {
            **sizes(768, 12, 12, 3072, 50257, 2048),
            **BIASED,
            "qkv_bias": False,
            "attn_scales": (1.0,) * 12,
            "windows": (None, 256) * 6,
            "embedding": Embedding(learned=Learned(2048)),
            "layout": BlockLayout.Pre,
            "activation": Activation.GeluTanh,
            "tie_word_embeddings": True,
        },
    ),
    "microsoft/phi-2": (
        {
            "hidden_act": "gelu_new",
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "layer_norm_eps": 1e-05,
            "max_position_embeddings": 2048,
            "model_type": "phi",
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 32,
            "partial_rotary_factor": 0.4,
            "qk_layernorm": False,
            "resid_pdrop": 0.1,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "vocab_size": 51200,
        },
        GENUINE["phi-msft/phi-2.json"],
    ),
    "tiiuae/falcon-40b": (
        {
            "alibi": False,
            "bias": False,
            "hidden_size": 8192,
            "layer_norm_epsilon": 1e-05,
            "model_type": "falcon",
            "multi_query": True,
            "new_decoder_architecture": True,
            "num_attention_heads": 128,
            "num_hidden_layers": 60,
            "num_kv_heads": 8,
            "parallel_attn": True,
            "vocab_size": 65024,
        },
        {
            **sizes(8192, 60, 128, 32768, 65024, 2048),
            **UNBIASED,
            **turns(60, 64),
            "num_kv_heads": 8,
            "layout": BlockLayout.ParallelTwo,
            "alibi": None,
            "tie_word_embeddings": True,
        },
    ),
    "tiiuae/falcon-11B": (
        {
            "activation": "gelu",
            "alibi": False,
            "bias": False,
            "ff_factor": 4,
            "ffn_hidden_size": 16384,
            "hidden_size": 4096,
            "max_position_embeddings": 8192,
            "model_type": "falcon",
            "multi_query": True,
            "new_decoder_architecture": True,
            "num_attention_heads": 32,
            "num_hidden_layers": 60,
            "num_kv_heads": 8,
            "num_ln_in_parallel_attn": 1,
            "parallel_attn": True,
            "rope_scaling": None,
            "rope_theta": 5000042.0,
            "tie_word_embeddings": False,
            "vocab_size": 65024,
        },
        {
            **sizes(4096, 60, 32, 16384, 65024, 8192),
            **UNBIASED,
            **turns(60, 128, theta=5000042.0),
            "num_kv_heads": 8,
            "layout": BlockLayout.Parallel,
            "tie_word_embeddings": False,
        },
    ),
    "tiiuae/falcon-rw-1b": (
        {
            "alibi": True,
            "apply_residual_connection_post_layernorm": False,
            "bias": True,
            "hidden_size": 2048,
            "layer_norm_epsilon": 1e-05,
            "model_type": "falcon",
            "multi_query": False,
            "new_decoder_architecture": False,
            "num_attention_heads": 32,
            "num_hidden_layers": 24,
            "parallel_attn": False,
            "vocab_size": 50304,
        },
        {
            **sizes(2048, 24, 32, 8192, 50304, 2048),
            **BIASED,
            "layout": BlockLayout.Pre,
            "alibi": Alibi(scaled=True, rounded=True),
            "tie_word_embeddings": True,
        },
    ),
    "bigcode/starcoder": (
        {
            "activation_function": "gelu",
            "attention_softmax_in_fp32": True,
            "inference_runner": 0,
            "max_batch_size": None,
            "model_type": "gpt_bigcode",
            "multi_query": True,
            "n_embd": 6144,
            "n_head": 48,
            "n_inner": 24576,
            "n_layer": 40,
            "n_positions": 8192,
            "pad_key_length": True,
            "pre_allocate_kv_cache": False,
            "scale_attention_softmax_in_fp32": True,
            "scale_attn_weights": True,
            "validate_runner_input": True,
            "vocab_size": 49152,
        },
        {
            **sizes(6144, 40, 48, 24576, 49152, 8192),
            **BIASED,
            "num_kv_heads": 1,
            "embedding": Embedding(learned=Learned(8192)),
            "activation": Activation.Gelu,
            "tie_word_embeddings": True,
        },
    ),
}
"""Published configs that are not in the shared folder, and what they mean, by hand."""


def means(cfg: TransformerConfig, wanted: Raw) -> None:
    found = {name: getattr(cfg, name) for name in wanted}
    assert found == wanted


@pytest.mark.parametrize("name", GENUINE)
def test_published_configs_mean_what_is_known_of_the_models(name: str) -> None:
    if not (CONFIGS / name).is_file():
        pytest.skip(f"no published config here: {CONFIGS / name} is absent")
    raw = json.loads((CONFIGS / name).read_text(encoding="utf-8"))
    cfg = read_config(raw)[1]
    means(cfg, GENUINE[name])
    rewritten = CONFIGS / "transformers5" / name
    if raw["model_type"] in CONFIG_MAPPING:
        assert read_config(json.loads(rewritten.read_text(encoding="utf-8")))[1] == cfg


@pytest.mark.parametrize("name", PUBLISHED)
def test_other_published_configs_mean_what_is_known_of_the_models(name: str) -> None:
    raw, wanted = PUBLISHED[name]
    family, cfg = read_config(raw)
    means(cfg, wanted)
    theirs = reference(raw)
    assert read_config(json.loads(theirs.to_json_string(use_diff=False)))[1] == cfg
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(theirs)
    assert placed(family, cfg, model)


def reference(raw: Raw) -> Any:
    """The config object of transformers."""
    return CONFIG_MAPPING[raw["model_type"]].from_dict(copy.deepcopy(raw))


def placed(family: Any, cfg: TransformerConfig, model: Any) -> Any:
    """A plan by which every tensor of the reference has a place of the right shape."""
    theirs = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    plan = family.place(cfg, parameter_shapes(cfg), theirs)
    for p in plan.placements:
        assert {theirs[name] for name in p.theirs} == {p.stored}
    assert {name for p in plan.placements for name in p.theirs} | set(plan.duplicates) == set(
        theirs
    )
    assert not plan.ignored
    return plan


@pytest.mark.parametrize("case", gpt.CASES, ids=str)
def test_every_number_of_a_checkpoint_has_one_place(case: Case) -> None:
    model = hf.build(case)
    family, cfg = read_config(model.config.to_dict())
    plan = placed(family, cfg, model)
    counted = {
        name: torch.arange(t.numel()).view(t.shape) for name, t in model.state_dict().items()
    }
    taken = dict[str, list[torch.Tensor]]()
    for p in plan.placements:
        part = p.take([counted[name] for name in p.theirs])
        assert tuple(part.shape) == p.shape
        taken.setdefault(p.theirs[0], []).append(part.flatten())
    for name, parts in taken.items():
        assert torch.equal(torch.cat(parts).sort().values, counted[name].flatten()), name


SMALL: dict[str, Mapping[str, Any]] = {
    "gpt2": gpt.GPT,
    "gpt_bigcode": gpt.GPT,
    "gpt_neo": gpt.NEO,
    "opt": gpt.OPT,
    "gptj": {**gpt.GPT, "rotary_dim": 4},
    "gpt_neox": {**gpt.NEOX, "hidden_size": 48, "num_attention_heads": 3},
    "phi": {**gpt.NEOX, "num_attention_heads": 3},
    "bloom": gpt.BLOOM,
    "falcon": gpt.FALCON,
    "mpt": gpt.MPT,
}

ACTS = st.sampled_from(["silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "gelu_fast"])
EPS = st.floats(1e-7, 1e-4)
TURNS: Raw = {
    "rope_theta": st.floats(100, 1e6) | st.integers(100, 10**6),
    "rope_scaling": st.fixed_dictionaries(
        {"type": st.sampled_from(["linear", "dynamic"]), "factor": st.floats(1, 9)}
    ),
}
GPT_KEYS: Raw = {
    "activation_function": ACTS,
    "layer_norm_epsilon": EPS,
    "n_inner": st.integers(1, 60),
    "n_positions": st.integers(1, 99),
    "attn_pdrop": st.just(0.1),
    "tie_word_embeddings": st.booleans(),
}

KEYS: dict[str, Raw] = {
    "gpt2": {
        **GPT_KEYS,
        "scale_attn_weights": st.booleans(),
        "scale_attn_by_inverse_layer_idx": st.booleans(),
        "reorder_and_upcast_attn": st.booleans(),
    },
    "gpt_bigcode": {
        **GPT_KEYS,
        "scale_attn_weights": st.booleans(),
        "multi_query": st.booleans(),
    },
    "gpt_neo": {
        "activation_function": ACTS,
        "layer_norm_epsilon": EPS,
        "intermediate_size": st.integers(1, 60),
        "max_position_embeddings": st.integers(1, 99),
        "window_size": st.integers(1, 99),
        "attention_types": st.sampled_from(
            [[[["local"], 3]], [[["global", "local"], 1], [["global"], 1]], [[["global"], 3]]]
        ),
        "tie_word_embeddings": st.booleans(),
    },
    "opt": {
        "activation_function": ACTS,
        "enable_bias": st.booleans(),
        "layer_norm_elementwise_affine": st.booleans(),
        "max_position_embeddings": st.integers(1, 99),
        "ffn_dim": st.integers(1, 60),
        "word_embed_proj_dim": st.just(36),
        "tie_word_embeddings": st.booleans(),
    },
    "gptj": {**GPT_KEYS, "rotary_dim": st.sampled_from([2, 4, 6])},
    "gpt_neox": {
        "hidden_act": ACTS,
        "layer_norm_eps": EPS,
        "attention_bias": st.booleans(),
        "use_parallel_residual": st.booleans(),
        "rotary_pct": st.sampled_from([0.13, 0.25, 0.5, 1.0]),
        "rotary_emb_base": TURNS["rope_theta"],
        "rope_scaling": TURNS["rope_scaling"],
        "tie_word_embeddings": st.booleans(),
    },
    "phi": {
        **TURNS,
        "hidden_act": ACTS,
        "layer_norm_eps": EPS,
        "num_key_value_heads": st.sampled_from([1, 3]),
        "qk_layernorm": st.booleans(),
        "partial_rotary_factor": st.sampled_from([0.34, 0.4, 0.5, 1.0]),
        "tie_word_embeddings": st.booleans(),
    },
    "bloom": {
        "layer_norm_epsilon": EPS,
        "slow_but_exact": st.booleans(),
        "pretraining_tp": st.integers(1, 4),
        "n_embed": st.just(36),
        "tie_word_embeddings": st.booleans(),
    },
    "falcon": {
        **TURNS,
        "alibi": st.booleans(),
        "bias": st.booleans(),
        "multi_query": st.booleans(),
        "activation": ACTS,
        "ffn_hidden_size": st.integers(1, 60),
        "layer_norm_epsilon": EPS,
        "tie_word_embeddings": st.booleans(),
    },
    "mpt": {
        "attn_config": st.fixed_dictionaries(
            {},
            optional={
                "alibi": st.just(value=True),
                "alibi_bias_max": st.integers(1, 16),
                "clip_qkv": st.none() | st.floats(0, 9),
                "softmax_scale": st.none() | st.floats(0.01, 1),
                "attn_impl": st.sampled_from(["torch", "flash", "triton"]),
            },
        ),
        "layer_norm_epsilon": EPS,
        "learned_pos_emb": st.booleans(),
        "max_seq_len": st.integers(8, 99),
        "tie_word_embeddings": st.booleans(),
    },
}


@st.composite
def configs(draw: st.DrawFn, family: str) -> Raw:
    """Configs with any of the keys that matter left out."""
    small = {key: value for key, value in SMALL[family].items() if value is not None}
    raw: Raw = {"model_type": family, **small}
    for key, values in KEYS[family].items():
        if draw(st.booleans()):
            raw[key] = draw(values)
        elif key in {"n_inner", "intermediate_size", "ffn_hidden_size"} and family in {
            "gpt2", "gpt_bigcode", "gptj", "gpt_neo", "falcon",
        }:  # fmt: skip
            raw[key] = None
    if family == "falcon" and draw(st.booleans()):
        newer = {"new_decoder_architecture": True, "num_kv_heads": draw(st.sampled_from([1, 2]))}
        raw |= {**newer, "num_ln_in_parallel_attn": draw(st.sampled_from([None, 1, 2]))}
    elif family == "falcon":
        raw["parallel_attn"] = draw(st.booleans())
    return raw


def activation_of(theirs: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The nonlinearity of transformers' config."""
    said = theirs.to_dict()
    fixed = {"bloom": "gelu_pytorch_tanh", "mpt": "gelu"}
    names = ("activation_function", "hidden_act", "activation")
    found = [said[name] for name in names if name in said] or [fixed[theirs.model_type]]
    return ACT2FN[found[0]]


def same_arithmetic(cfg: TransformerConfig, theirs: Any, model: Any) -> None:
    """Against the attributes and modules of transformers."""
    assert cfg.hidden_size == theirs.hidden_size
    assert cfg.num_layers == theirs.num_hidden_layers
    assert cfg.num_attention_heads == theirs.num_attention_heads
    assert cfg.vocab_size == theirs.vocab_size
    assert cfg.tie_word_embeddings == theirs.tie_word_embeddings
    assert cfg.head_dim == theirs.hidden_size // theirs.num_attention_heads
    x = torch.linspace(-4, 4, 201)
    torch.testing.assert_close(
        cfg.activation.function(x), activation_of(theirs)(x), atol=1e-6, rtol=1e-6
    )
    parts = [vars(module) for module in model.modules()]
    assert {part["eps"] for part in parts if "eps" in part} == {cfg.norm_eps}
    for layer, block in enumerate(hf.layers_of(model)):
        same_scores(cfg, layer, block)
    turning = [m for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding")]
    assert bool(turning) == any(cfg.ropes) or cfg.alibi is not None or theirs.model_type == "gptj"
    for rope in set(cfg.ropes) if turning else ():
        same_turning(rope, cfg.head_dim, type(turning[0])(theirs))


SCALES = ("scaling", "softmax_scale", "inv_norm_factor")


def same_scores(cfg: TransformerConfig, layer: int, block: Any) -> None:
    """What scores are multiplied by, and which keys they see."""
    for module in block.modules():
        said = vars(module)
        kind = type(module).__name__
        # OPT multiplies its queries
        found = [said[name] for name in SCALES if name in said]
        if kind.endswith("Attention") and found:
            assert cfg.attn_scales[layer] == pytest.approx(found[0], rel=1e-12)
        if "clip_qkv" in said:
            assert cfg.clip_qkv == (said["clip_qkv"] or None)
        if kind == "GPTNeoSelfAttention":
            window = said["config"].window_size if said["attention_type"] == "local" else None
            assert cfg.windows[layer] == window


def same_turning(rope: Rope | None, head_dim: int, module: Any) -> None:
    """Cosines and sines, near the start and far from it."""
    if rope is None:
        return
    for position in (3, 5000):
        positions = torch.tensor([[position]])
        cos, sin = module(torch.zeros(1), positions)
        ours = Rotary(rope, head_dim).tables(positions)
        dim = cos.shape[-1]
        assert dim == rope.dim
        torch.testing.assert_close(ours[0][:, :, 0, :dim], cos, atol=1e-6, rtol=0)
        torch.testing.assert_close(
            ours[1][:, :, 0, dim // 2 : dim], sin[..., dim // 2 :], atol=1e-6, rtol=0
        )


@pytest.mark.parametrize("family", KEYS)
def test_any_config_means_what_it_means_to_transformers(family: str) -> None:
    @given(configs(family))
    @settings(max_examples=40, deadline=None, database=None, derandomize=True)
    def run(raw: Raw) -> None:
        theirs = reference(raw)
        ours, cfg = read_config(raw)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(theirs)
        placed(ours, cfg, model)
        same_arithmetic(cfg, theirs, model)
        assert read_config(json.loads(theirs.to_json_string(use_diff=True)))[1] == cfg

    run()


def test_norms_of_queries_and_slopes_are_read() -> None:
    phi = {"model_type": "phi", **SMALL["phi"], "qk_layernorm": True}
    assert read_config(phi)[1].qk_norm == QkNorm(NormType.Layer, Over.Head)
    mpt = {"model_type": "mpt", **gpt.MPT, "attn_config": {"alibi_bias_max": 5}}
    assert read_config(mpt)[1].alibi == Alibi(max_bias=5.0)
