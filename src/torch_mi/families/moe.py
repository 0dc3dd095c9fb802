# SPDX-License-Identifier: MIT OR Apache-2.0
"""Mixtures of experts.

Where a config is silent, the defaults are those of transformers' config classes.
"""

from typing import cast

from torch_mi.config.parts import NormType, Over, QkNorm
from torch_mi.families.compose import every
from torch_mi.families.decoder import ALWAYS, LLAMA, MISTRAL, NEVER, UNBIASED
from torch_mi.families.deepseek import DEEPSEEKS
from torch_mi.families.experts import (
    DENSE,
    MLP,
    PROJECTIONS,
    ROUTING,
    TOGETHER,
    apart,
    every_layer_has,
    mixture,
    sparse_layers,
)
from torch_mi.families.rope import RopeRule
from torch_mi.families.rules import (
    Reader,
    constant,
    every_layer,
    flag,
    integer,
    kv_heads,
    number,
    read_window,
    same_everywhere,
    windowed_layers,
    windows_in,
)
from torch_mi.families.sources import Source

MIXTRAL = MISTRAL.but(
    "mixtral",
    rules={
        "norm_eps": number("rms_norm_eps", 1e-5),
        "ropes": every(RopeRule(131072, theta=1e6)),
        "windows": every_layer(),
        "experts": mixture(
            every_layer_has,
            {
                "count": integer("num_local_experts", 8),
                "chosen": integer("num_experts_per_tok", 2),
                "width": integer("intermediate_size"),
                "normalised": ALWAYS,
            },
        ),
    },
    sources=apart("model.layers.*.block_sparse_moe", "w1", "w3", "w2"),
    variants=(TOGETHER,),
    aliases={"num_experts": "num_local_experts"},
    inert=ROUTING,
    tiny={"sliding_window": 5, "num_local_experts": 5, "num_experts_per_tok": 2},
)


def lower_layers(c: Reader) -> tuple[int | None, ...]:
    """If windows are used at all, they are in the even layers below `max_window_layers`."""
    window = read_window(c, 4096)
    window = window if c.get(bool, "use_sliding_window") else None
    last = cast("int", integer("max_window_layers", 28)(c))
    layers = windowed_layers(c)
    if layers is None:
        numbers = range(c.need(int, "num_hidden_layers"))
        layers = [window is not None and i % 2 == 0 and i < last for i in numbers]
    return windows_in(layers, window, c)


def all_or_none(c: Reader) -> tuple[int | None, ...]:
    """Windows are used in every layer or in none."""
    window = read_window(c, 4096)
    return same_everywhere(window if c.get(bool, "use_sliding_window") else None, c)


QWEN2_MOE = LLAMA.but(
    "qwen2_moe",
    rules={
        **UNBIASED,
        "num_kv_heads": kv_heads(absent=16),
        "max_position_embeddings": integer("max_position_embeddings", 32768),
        "qkv_bias": flag("qkv_bias", default=True),
        "ropes": every(RopeRule(32768)),
        "windows": lower_layers,
        "experts": mixture(
            sparse_layers,
            {
                "count": integer("num_experts", 60),
                "chosen": integer("num_experts_per_tok", 4),
                "width": integer("moe_intermediate_size", 1408),
                "normalised": flag("norm_topk_prob", default=False),
                "shared_width": integer("shared_expert_intermediate_size", 5632),
                "shared_gate": ALWAYS,
            },
        ),
    },
    sources={
        **PROJECTIONS,
        "blocks.*.mlp.shared.gate": f"{MLP}.shared_expert.gate_proj",
        "blocks.*.mlp.shared.up": f"{MLP}.shared_expert.up_proj",
        "blocks.*.mlp.shared.down": f"{MLP}.shared_expert.down_proj",
        "blocks.*.mlp.shared_gate": f"{MLP}.shared_expert_gate",
    },
    variants=(TOGETHER,),
    inert=ROUTING | DENSE | {"attention_bias", "shared_expert_intermediate_size"},
    fixed={"mlp_bias": (False,)},
    tiny={
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
        "num_experts": 5,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 14,
        "shared_expert_intermediate_size": 22,
        "mlp_only_layers": [1],
    },
)

NORMED_HEADS: dict[str, Source] = {
    "blocks.*.attn.norm_q": "model.layers.*.self_attn.q_norm",
    "blocks.*.attn.norm_k": "model.layers.*.self_attn.k_norm",
}

QWEN3_MOE = LLAMA.but(
    "qwen3_moe",
    rules={
        "num_kv_heads": kv_heads(absent=4),
        "max_position_embeddings": integer("max_position_embeddings", 32768),
        "mlp_bias": NEVER,
        "qk_norm": constant(QkNorm(NormType.Rms, Over.Head)),
        "ropes": every(RopeRule(32768)),
        "windows": all_or_none,
        "experts": mixture(
            sparse_layers,
            {
                "count": integer("num_experts", 128),
                "chosen": integer("num_experts_per_tok", 8),
                "width": integer("moe_intermediate_size", 768),
                "normalised": flag("norm_topk_prob", default=False),
            },
        ),
    },
    sources={**PROJECTIONS, **NORMED_HEADS},
    variants=(TOGETHER,),
    aliases={"num_local_experts": "num_experts"},
    inert=ROUTING | DENSE | {"max_window_layers"},
    fixed={"mlp_bias": (False,)},
    tiny={
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 14,
        "norm_topk_prob": True,
    },
)

OLMOE = LLAMA.but(
    "olmoe",
    rules={
        "max_position_embeddings": integer("max_position_embeddings", 4096),
        "norm_eps": number("rms_norm_eps", 1e-5),
        "mlp_bias": NEVER,
        "qk_norm": constant(QkNorm(NormType.Rms, Over.Whole)),
        "clip_qkv": lambda c: c.get(float, "clip_qkv"),
        "ropes": every(RopeRule(4096)),
        "experts": mixture(
            every_layer_has,
            {
                "count": integer("num_experts", 64),
                "chosen": integer("num_experts_per_tok", 8),
                "width": integer("intermediate_size"),
                "normalised": flag("norm_topk_prob", default=False),
            },
        ),
    },
    sources={**PROJECTIONS, **NORMED_HEADS},
    variants=(TOGETHER,),
    aliases={"num_local_experts": "num_experts"},
    inert=ROUTING,
    fixed={"mlp_bias": (False,)},
    tiny={"num_experts": 5, "num_experts_per_tok": 3, "clip_qkv": 1.5},
)

MIXTURES = (MIXTRAL, QWEN2_MOE, QWEN3_MOE, OLMOE, *DEEPSEEKS)
