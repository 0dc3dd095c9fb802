# SPDX-License-Identifier: MIT OR Apache-2.0
"""The recurrent demo model's shape, and its first weights.

Those are what RWKV-7 (Peng et al. 2025, arXiv:2503.14456) is published with: whatever writes to the
stream begins at nothing, decays are spread over the channels, and the low ranks add nothing yet.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

CONFIG: dict[str, object] = {
    "architectures": ["RWKV7ForCausalLM"],
    "model_type": "rwkv7",
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "head_dim": 32,
    "num_heads": 4,
    "intermediate_size": 512,
    "hidden_act": "sqrelu",
    "decay_low_rank_dim": 16,
    "a_low_rank_dim": 16,
    "v_low_rank_dim": 16,
    "gate_low_rank_dim": 32,
    "norm_first": True,
    "norm_bias": True,
    "norm_eps": 1e-5,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "float32",
}
SHIFTS = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
"""How steeply each input's share of the token before grows over the channels."""
RANKS = {
    "w": "decay_low_rank_dim",
    "a": "a_low_rank_dim",
    "v": "v_low_rank_dim",
    "g": "gate_low_rank_dim",
}


class Draw:
    """Random matrices [rows columns] from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)

    def uniform(self, rows: int, columns: int, most: float) -> Tensor:
        """Numbers between -`most` and `most`."""
        return (2 * torch.rand(rows, columns, generator=self.random) - 1) * most

    def orthogonal(self, rows: int, columns: int, gain: float) -> Tensor:
        """Orthogonal rows or columns, whichever are fewer, each of length `gain`."""
        out = torch.empty(rows, columns)
        return torch.nn.init.orthogonal_(out, gain, self.random)


def size(config: Mapping[str, object], key: str) -> int:
    """A whole number of the config."""
    return int(str(config[key]))


def first_weights(config: Mapping[str, object], seed: int) -> dict[str, Tensor]:
    """Every tensor, under the names that flash-linear-attention gives them."""
    draw, width, layers = Draw(seed), size(config, "hidden_size"), size(config, "num_hidden_layers")
    vocab = size(config, "vocab_size")
    weights = {"model.embeddings.weight": draw.uniform(vocab, width, 1e-4)}
    weights |= norm("model.layers.0.pre_norm", width)
    for layer in range(layers):
        at = f"model.layers.{layer}"
        weights |= norm(f"{at}.attn_norm", width) | norm(f"{at}.ffn_norm", width)
        weights |= time_mix(f"{at}.attn", config, layer, draw)
        weights |= channel_mix(f"{at}.ffn", config, layer, draw)
    weights |= norm("model.norm", width)
    return weights | {
        "lm_head.weight": draw.orthogonal(vocab, width, 0.5 * math.sqrt(vocab / width))
    }


def norm(at: str, width: int) -> dict[str, Tensor]:
    """A layer norm that only norms."""
    return {f"{at}.weight": torch.ones(width), f"{at}.bias": torch.zeros(width)}


def before(width: int, power: float) -> Tensor:
    """The share of the token before: all in the first channel, next to none in the last."""
    return 1 - (torch.arange(width) / width) ** power


def spread(width: int, head: int) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers that rise over the channels: from 0 to 1, from -1/2 to 1/2, and in each head."""
    rising = torch.arange(width) / (width - 1)
    within = 2 * (torch.arange(width) % head) / (head - 1) - 1
    return rising, rising - 0.5, within * within.abs()


def time_mix(at: str, config: Mapping[str, object], layer: int, draw: Draw) -> dict[str, Tensor]:
    """One layer's time mixing."""
    width, head = size(config, "hidden_size"), size(config, "head_dim")
    layers = size(config, "num_hidden_layers")
    depth, left = layer / (layers - 1), 1 - layer / layers
    rising, linear, within = spread(width, head)
    reach = 0.5 / math.sqrt(width)
    weights = {f"{at}.x_{j}": before(width, p * left)[None, None] for j, p in SHIFTS.items()}
    weights |= {
        f"{at}.k_k": 0.71 - 0.1 * linear,
        f"{at}.k_a": torch.full((width,), 1.02),
        f"{at}.r_k": torch.full((width // head, head), -0.04),
        f"{at}.r_proj.weight": draw.uniform(width, width, reach),
        f"{at}.k_proj.weight": draw.uniform(width, width, reach / 10),
        f"{at}.v_proj.weight": draw.uniform(width, width, reach),
        f"{at}.o_proj.weight": torch.zeros(width, width),
    }
    biases = {
        "w": -5.5 + 6 * rising ** (1 + depth**0.3) + 2.5 * within,
        "a": -0.19 + 0.3 * within + 0.4 * linear,
        "v": 0.73 - 0.4 * linear,
    }
    for j, key in RANKS.items():
        if j == "v" and layer == 0:
            continue  # the first layer's values are what the others mix in
        rank = size(config, key)
        weights[f"{at}.{j}_lora.lora.0.weight"] = torch.zeros(rank, width)
        weights[f"{at}.{j}_lora.lora.2.weight"] = draw.orthogonal(width, rank, 0.1)
        if j in biases:
            weights[f"{at}.{j}_lora.lora.2.bias"] = biases[j]
    return weights | norm(f"{at}.g_norm", width)


def channel_mix(at: str, config: Mapping[str, object], layer: int, draw: Draw) -> dict[str, Tensor]:
    """One layer's channel mixing."""
    width, inner = size(config, "hidden_size"), size(config, "intermediate_size")
    left = 1 - layer / size(config, "num_hidden_layers")
    return {
        f"{at}.x_k": before(width, left**4),
        f"{at}.key.weight": draw.uniform(inner, width, 0.5 / math.sqrt(width)),
        f"{at}.value.weight": torch.zeros(width, inner),
    }
