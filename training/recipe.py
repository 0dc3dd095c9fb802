# SPDX-License-Identifier: MIT OR Apache-2.0
"""The demo model's shape, its first weights, and how it is saved."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from torch_mi.families import read_config
from torch_mi.model import MIModel
from torch_mi.storage import write_json, write_tensors

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


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what the training leads to."""

    seed: int = 0
    steps: int = 2800
    documents: int = 128
    """Per step."""
    learning_rate: float = 3e-3
    """Of the embedding and the norms, by AdamW."""
    matrix_rate: float = 0.02
    """Of every other matrix, by Muon."""
    weight_decay: float = 0.02
    answers_from: int = 800
    """The step from which answers count more, once sentences are known."""
    late_from: int = 1400
    """The step from which facts give way to what is slower to learn."""
    horizon: int = 4600
    """The step at which the cosine would reach nothing."""
    cool_down: int = 600
    """The last steps, over which the rates go to nothing in a line."""
    warm_up: int = 60

    def pace(self, step: int) -> float:
        """The part of the learning rates in force: up in a line, down a cosine, to nothing."""
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        done = (step - self.warm_up) / (self.horizon - self.warm_up)
        last = (self.steps - step) / self.cool_down
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done))) * min(1.0, last)


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


def begin(folder: Path, vocab_size: int, seed: int) -> MIModel:
    """An untrained model, saved in `folder` beside its tokenizer and loaded from there."""
    config = {**CONFIG, "vocab_size": vocab_size}
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 1})
    write_tensors(folder / "model.safetensors", first_weights(config, seed))
    return MIModel.from_pretrained(folder, device="cpu")


def hugging_face_weights(model: MIModel, config: Mapping[str, object]) -> dict[str, Tensor]:
    """The model's parameters under the names that transformers gives them."""
    family, cfg = read_config(config)
    names = list(first_weights(config, 0))
    ours = dict(model.backend.named_parameters())
    shapes = {name: tuple(tensor.shape) for name, tensor in ours.items()}
    placements = family.place(cfg, shapes, names).placements
    return {theirs: ours[p.ours] for p in placements for theirs in p.theirs}
