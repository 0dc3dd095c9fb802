# SPDX-License-Identifier: MIT OR Apache-2.0
"""GPT-2's kin: any config means to us what it means to transformers."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM
from transformers.activations import ACT2FN

from tests.parity import hf
from tests.parity.cases import gpt
from tests.parity.cases.gpt import SMALL
from tests.parity.placing import placed, reference
from torch_mi.config.parts import (
    Alibi,
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
    @settings(max_examples=12, deadline=None, database=None, derandomize=True)
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
