# SPDX-License-Identifier: MIT OR Apache-2.0
"""Families that `transformers` knows through code of their own alone.

Each is LLaMA under other names, so that a LLaMA is built, and published as one of these.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.parity.cases.case import Case, Config, rope

Tensors = Mapping[str, Tensor]


def same_names(tensors: Tensors, _config: Any) -> dict[str, Tensor]:
    """InternLM's names are LLaMA's."""
    return dict(tensors)


def internlm2_names(tensors: Tensors, config: Any) -> dict[str, Tensor]:
    """Keys, their queries and their values take turns in one tensor."""
    renamed = dict[str, Tensor]()
    for name, tensor in tensors.items():
        new = name
        for old, other in INTERNLM2_NAMES.items():
            new = new.replace(old, other)
        renamed[new] = tensor
    for i in range(config.num_hidden_layers):
        for leaf in ("weight", "bias"):
            prefix = f"model.layers.{i}.attention"
            parts = [renamed.pop(f"{prefix}.{part}_proj.{leaf}", None) for part in "qkv"]
            found = [
                part.unflatten(0, (config.num_key_value_heads, -1))
                for part in parts
                if part is not None
            ]
            if found:
                renamed[f"{prefix}.wqkv.{leaf}"] = torch.cat(found, 1).flatten(0, 1)
    return renamed


INTERNLM2_NAMES = {
    "embed_tokens": "tok_embeddings",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn": "attention",
    "o_proj": "wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "lm_head": "output",
}


@dataclass(frozen=True)
class Published:
    """A LLaMA, and the config and names it is published with."""

    family: str
    llama: Case
    config: Config
    """What takes the place of LLaMA's keys for biases and rotary embedding."""
    names: Callable[[Tensors, Any], dict[str, Tensor]]

    def __str__(self) -> str:
        return f"{self.family}-{self.llama.name}"


def internlm2(name: str, llama: Config, config: Config) -> Published:
    """One kind of InternLM2."""
    return Published("internlm2", Case(name, "llama", llama), config, internlm2_names)


def internlm(name: str, llama: Config, config: Config) -> Published:
    """One kind of InternLM."""
    case = Case(name, "llama", {"num_key_value_heads": 6, **llama})
    return Published("internlm", case, config, same_names)


CASES = (
    internlm2("biased-mqa", {"attention_bias": True, "num_key_value_heads": 1}, {}),
    internlm2(
        "dynamic",
        {"max_position_embeddings": 9, **rope("dynamic", factor=4.0)},
        {"bias": False, "rope_theta": 500, "rope_scaling": {"type": "dynamic", "factor": 4.0}},
    ),
    internlm2(
        "linear-tied",
        {"num_key_value_heads": 3, "tie_word_embeddings": True, **rope("linear", factor=2.0)},
        {
            "bias": False,
            "rope_theta": 500.0,
            "rope_scaling": {"type": "linear", "factor": 2.0},
            "tie_word_embeddings": True,
        },
    ),
    internlm(
        "growing",
        {
            "attention_bias": True,
            "max_position_embeddings": 9,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 1.0},
        },
        {},
    ),
    internlm("origin", rope("default"), {"bias": False, "rotary": {"base": 500, "type": "origin"}}),
)
