# SPDX-License-Identifier: MIT OR Apache-2.0
"""The demo transformer's shape, and its first weights."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from torch_mi.families import read_config

CONFIG: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "intermediate_size": 320,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "float32",
}


def first_weights(config: Mapping[str, object], seed: int) -> dict[str, Tensor]:
    """Normal weights of a small spread, smaller still where a layer adds to the residual."""
    _, cfg = read_config(config)
    width, inner = cfg.hidden_size, cfg.intermediate_size
    keys, queries = cfg.num_kv_heads * cfg.head_dim, cfg.num_attention_heads * cfg.head_dim
    within = 0.02 / math.sqrt(2 * cfg.num_layers)
    random = torch.Generator().manual_seed(seed)

    def normal(rows: int, columns: int, spread: float = 0.02) -> Tensor:
        return torch.randn(rows, columns, generator=random) * spread

    weights = {"model.embed_tokens.weight": normal(cfg.vocab_size, width)}
    for layer in range(cfg.num_layers):
        at = f"model.layers.{layer}"
        weights |= {
            f"{at}.input_layernorm.weight": torch.ones(width),
            f"{at}.self_attn.q_proj.weight": normal(queries, width),
            f"{at}.self_attn.k_proj.weight": normal(keys, width),
            f"{at}.self_attn.v_proj.weight": normal(keys, width),
            f"{at}.self_attn.o_proj.weight": normal(width, queries, within),
            f"{at}.post_attention_layernorm.weight": torch.ones(width),
            f"{at}.mlp.gate_proj.weight": normal(inner, width),
            f"{at}.mlp.up_proj.weight": normal(inner, width),
            f"{at}.mlp.down_proj.weight": normal(width, inner, within),
        }
    return weights | {"model.norm.weight": torch.ones(width)}
