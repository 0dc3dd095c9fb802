# SPDX-License-Identifier: MIT OR Apache-2.0
"""Published configs of GPT-2's kin that are in no shared folder, and what they mean, by hand."""

import os
from pathlib import Path
from typing import Any

from torch_mi.config.activation import Activation
from torch_mi.config.parts import (
    Alibi,
    BlockLayout,
    Embedding,
    Head,
    Learned,
    NormType,
)
from torch_mi.config.rope import Rope

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


PHI2: Raw = {
    **sizes(2560, 32, 32, 10240, 51200, 2048),
    **BIASED,
    **turns(32, 32),
    "head": Head(bias=True),
    "layout": BlockLayout.Parallel,
    "activation": Activation.GeluTanh,
    "tie_word_embeddings": False,
}
"""What both configs of Phi-2 mean, that of its authors and that of transformers."""

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
        PHI2,
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
