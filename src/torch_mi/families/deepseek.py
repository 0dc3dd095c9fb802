# SPDX-License-Identifier: MIT OR Apache-2.0
"""DeepSeek, from its first mixture of experts to latent attention and corrected choices.

Where a config is silent, the defaults are those of the config classes: of transformers, or of the
code beside the checkpoints for the first of them.
"""

from collections.abc import Callable
from typing import cast

from torch_mi.config.parts import GroupScore, Latent, Scoring
from torch_mi.config.rope import Rope
from torch_mi.errors import ConfigError
from torch_mi.families.compose import every
from torch_mi.families.decoder import ALWAYS, LLAMA, NEVER
from torch_mi.families.experts import DENSE, MLP, PROJECTIONS, ROUTING, TOGETHER, mixture
from torch_mi.families.family import Family
from torch_mi.families.rope import RopeRule, dynamic, flatten, linear, plain, yarn_sharpening
from torch_mi.families.rules import (
    Reader,
    Rule,
    constant,
    flag,
    integer,
    kv_heads,
    number,
)
from torch_mi.families.sources import Kept, Named, Source, source_of

SHARED: dict[str, Source] = {
    "blocks.*.mlp.shared.gate": f"{MLP}.shared_experts.gate_proj",
    "blocks.*.mlp.shared.up": f"{MLP}.shared_experts.up_proj",
    "blocks.*.mlp.shared.down": f"{MLP}.shared_experts.down_proj",
}


def after_dense(first: int) -> Callable[[Reader], tuple[bool, ...]]:
    """Experts in every so-manyth layer, but not in the first ones."""

    def rule(c: Reader) -> tuple[bool, ...]:
        start = cast("int", integer("first_k_dense_replace", first)(c))
        step = cast("int", integer("moe_layer_freq", 1)(c))
        if step <= 0:
            raise ConfigError(f"{c.name}: moe_layer_freq = {step} is not positive")
        return tuple(i >= start and i % step == 0 for i in range(c.need(int, "num_hidden_layers")))

    return rule


def if_any(c: Reader) -> tuple[bool, ...]:
    """The same, unless no number of experts is given."""
    layers = after_dense(0)(c)
    return layers if c.get(int, "n_routed_experts") is not None else (False,) * len(layers)


def shared_width(width: int, count: int) -> Rule:
    """So many experts that every token goes to, side by side."""

    def rule(c: Reader) -> int:
        one = cast("int", integer("moe_intermediate_size", width)(c))
        return one * cast("int", integer("n_shared_experts", count)(c))

    return rule


def several_normalised(c: Reader) -> bool:
    """Whether weights are taken in proportion; that of a lone expert never is."""
    return (
        flag("norm_topk_prob", default=False)(c) is True and c.get(int, "num_experts_per_tok") != 1
    )


DEEPSEEK = LLAMA.but(
    "deepseek",
    rules={
        "num_kv_heads": kv_heads(absent=32),
        "mlp_bias": NEVER,
        "ropes": every(
            RopeRule(2048, kinds={"default": plain, "linear": linear, "dynamic": dynamic})
        ),
        "experts": mixture(
            if_any,
            {
                "count": integer("n_routed_experts"),
                "chosen": integer("num_experts_per_tok"),
                "width": integer("moe_intermediate_size", 1407),
                "normalised": several_normalised,
                "shared_width": shared_width(1407, 0),
            },
        ),
    },
    sources={**PROJECTIONS, **SHARED},
    inert=ROUTING | DENSE | {"n_shared_experts"},
    fixed={"mlp_bias": (False,), "scoring_func": ("softmax",)},
    tiny={
        "first_k_dense_replace": 0,
        "moe_layer_freq": 2,
        "n_routed_experts": 5,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 14,
        "n_shared_experts": 2,
        "norm_topk_prob": True,
    },
)

NOPE, ROPE = integer("qk_nope_head_dim", 128), integer("qk_rope_head_dim", 64)


def latent(c: Reader) -> Latent:
    """The widths that keys, values and queries come through and unfold to."""
    rank = c.get(int, "q_lora_rank") if c.given("q_lora_rank") else 1536
    return Latent(
        query_rank=rank,
        kv_rank=cast("int", integer("kv_lora_rank", 512)(c)),
        nope_dim=cast("int", NOPE(c)),
        rope_dim=cast("int", ROPE(c)),
        value_dim=cast("int", integer("v_head_dim", 128)(c)),
    )


def latent_scales(c: Reader) -> tuple[float, ...]:
    """One over the root of a head's width, sharpened twice over where the rotary embedding says."""
    scale = latent(c).head_dim ** -0.5
    for r in flatten(c):
        kind = r.get(str, "rope_type") or r.get(str, "type") or "default"
        all_dim = r.get(float, "mscale_all_dim")
        if kind != "default" and all_dim:
            scale *= yarn_sharpening(r.need(float, "factor"), all_dim) ** 2
    return (scale,) * max(c.need(int, "num_hidden_layers"), 0)


def in_groups(rule: Rule) -> Rule:
    """What `rule` says where experts are chosen group by group; 1 where they are not."""

    def limited(c: Reader) -> object:
        return rule(c) if c.get(str, "topk_method") == "group_limited_greedy" else 1

    return limited


DEEPSEEK_V2 = LLAMA.but(
    "deepseek_v2",
    rules={
        "num_kv_heads": kv_heads(),
        "head_dim": lambda c: latent(c).head_dim,
        "ropes": every(RopeRule(2048, ROPE, interleaved=True)),
        "attn_scales": latent_scales,
        "latent": latent,
        "experts": mixture(
            after_dense(0),
            {
                "count": integer("n_routed_experts", 64),
                "chosen": integer("num_experts_per_tok"),
                "width": integer("moe_intermediate_size", 1407),
                "exact": ALWAYS,
                "scale": number("routed_scaling_factor", 1.0),
                "groups": in_groups(integer("n_group")),
                "chosen_groups": in_groups(integer("topk_group")),
                "shared_width": shared_width(1407, 2),
            },
        ),
    },
    sources={
        **PROJECTIONS,
        **SHARED,
        "blocks.*.attn.q": "model.layers.*.self_attn.q_proj",
        "blocks.*.attn.q_down": "model.layers.*.self_attn.q_a_proj",
        "blocks.*.attn.norm_q": "model.layers.*.self_attn.q_a_layernorm",
        "blocks.*.attn.q_up": "model.layers.*.self_attn.q_b_proj",
        "blocks.*.attn.kv_down": "model.layers.*.self_attn.kv_a_proj_with_mqa",
        "blocks.*.attn.norm_kv": "model.layers.*.self_attn.kv_a_layernorm",
        "blocks.*.attn.kv_up": "model.layers.*.self_attn.kv_b_proj",
    },
    variants=(TOGETHER,),
    aliases={"num_experts": "n_routed_experts"},
    inert=ROUTING
    | DENSE
    | {"head_dim", "n_group", "n_routed_experts", "n_shared_experts", "qk_head_dim"}
    | {"routed_scaling_factor", "topk_group"},
    fixed={
        "moe_layer_freq": (1,),
        "norm_topk_prob": (False,),
        "scoring_func": ("softmax",),
        "topk_method": ("greedy", "group_limited_greedy"),
    },
    tiny={
        "first_k_dense_replace": 1,
        "kv_lora_rank": 11,
        "q_lora_rank": None,
        "qk_nope_head_dim": 5,
        "qk_rope_head_dim": 4,
        "v_head_dim": 7,
        "num_key_value_heads": 6,
        "n_routed_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 14,
        "n_shared_experts": 2,
        "n_group": 3,
        "topk_group": 2,
        "topk_method": "group_limited_greedy",
        "routed_scaling_factor": 1.5,
    },
)


CORRECTED: dict[str, Source] = {
    "blocks.*.mlp.correction": Kept(f"{MLP}.gate.e_score_correction_bias")
}


def chosen_pairing(c: Reader) -> Rope:
    """Neighbouring dimensions turn together unless the config says otherwise."""
    pairs = cast("bool", flag("rope_interleave", default=True)(c))
    return RopeRule(4096, ROPE, interleaved=pairs)(c)


FORETOLD = "model.layers.61."
"""The published model's layer after the last, which guesses a second token."""


def foretelling() -> tuple[str, ...]:
    """The names of that layer's tensors."""
    sources = {**DEEPSEEK_V2.sources, **CORRECTED}.values()
    layer = [s for s in map(source_of, sources) if ".layers.*." in s.theirs]
    own = ("embed_tokens", "enorm", "hnorm", "eh_proj", "shared_head.norm", "shared_head.head")
    named = [f"{FORETOLD}{module}.weight" for module in own]
    for source in layer:
        full = isinstance(source, Named)
        name = source.theirs.replace("model.layers.*.", FORETOLD).replace("#", "*")
        named.append(name if full else f"{name}.weight")
    return tuple(named)


DEEPSEEK_V3 = DEEPSEEK_V2.but(
    "deepseek_v3",
    rules={
        "max_position_embeddings": integer("max_position_embeddings", 4096),
        "mlp_bias": NEVER,
        "ropes": every(chosen_pairing),
        "experts": mixture(
            after_dense(3),
            {
                "count": integer("n_routed_experts", 256),
                "chosen": integer("num_experts_per_tok", 8),
                "width": integer("moe_intermediate_size", 2048),
                "scoring": constant(Scoring.Sigmoid),
                "exact": ALWAYS,
                "normalised": flag("norm_topk_prob", default=True),
                "scale": number("routed_scaling_factor", 2.5),
                "correction": ALWAYS,
                "groups": integer("n_group", 8),
                "chosen_groups": integer("topk_group", 4),
                "group_score": constant(GroupScore.TwoBest),
                "shared_width": shared_width(2048, 1),
            },
        ),
    },
    sources=CORRECTED,
    buffers=foretelling(),
    aliases={"num_local_experts": "n_routed_experts", "num_mtp_layers": "num_nextn_predict_layers"},
    inert={"num_nextn_predict_layers"},
    fixed={
        "mlp_bias": (False,),
        "norm_topk_prob": (False, True),
        "scoring_func": ("sigmoid",),
        "topk_method": ("noaux_tc",),
    },
    tiny={
        "first_k_dense_replace": 0,
        "kv_lora_rank": 11,
        "q_lora_rank": 13,
        "qk_nope_head_dim": 5,
        "qk_rope_head_dim": 4,
        "v_head_dim": 7,
        "num_key_value_heads": 6,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 14,
        "n_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "attention_bias": True,
    },
)

DEEPSEEKS: tuple[Family, ...] = (DEEPSEEK, DEEPSEEK_V2, DEEPSEEK_V3)
