# SPDX-License-Identifier: MIT OR Apache-2.0
"""What families with experts share: which layers have them, and where their tensors lie.

Checkpoints hold every expert's matrices on their own; models of transformers 5 in memory hold them
stacked, gate and up side by side. Each family can be read in both.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

from torch_mi.config.parts import Experts
from torch_mi.config.transformer import TransformerConfig
from torch_mi.errors import ConfigError
from torch_mi.families.rules import Reader, Rule, integer
from torch_mi.families.sources import Named, Slabs, Source, Stack

ROUTING = frozenset(
    [
        "aux_loss_alpha",
        "ep_size",
        "output_router_logits",
        "router_aux_loss_coef",
        "router_jitter_noise",
        "seq_aux",
    ]
)
"""Keys of training, and of what else is returned."""

DENSE = frozenset(["moe_intermediate_size", "norm_topk_prob", "num_experts_per_tok"])
"""Keys that mean nothing where no layer has experts."""


def mixture(layers: Callable[[Reader], tuple[bool, ...]], parts: Mapping[str, Rule]) -> Rule:
    """A mixture of experts, part by part; none if no layer has one."""

    def rule(c: Reader) -> Experts | None:
        found = layers(c)
        if not any(found):
            return None
        fields: dict[str, Any] = {name: part(c) for name, part in parts.items()}
        return Experts(layers=found, **fields)

    return rule


def every_layer_has(c: Reader) -> tuple[bool, ...]:
    """No layer without experts."""
    return (True,) * max(c.need(int, "num_hidden_layers"), 0)


def sparse_layers(c: Reader) -> tuple[bool, ...]:
    """Every so-manyth layer, but for those that are named."""
    step = integer("decoder_sparse_step", 1)(c)
    if cast("int", step) <= 0:
        raise ConfigError(f"{c.name}: decoder_sparse_step = {step} is not positive")
    dense = cast("list[object]", c.get(list, "mlp_only_layers") or [])
    some = c.get(int, "num_experts") != 0
    layers = range(c.need(int, "num_hidden_layers"))
    return tuple(some and i not in dense and (i + 1) % cast("int", step) == 0 for i in layers)


def gate_up(cfg: TransformerConfig) -> tuple[int, ...]:
    """An expert's gate and up, stacked."""
    width = 0 if cfg.experts is None else cfg.experts.width
    return (width, width)


def apart(mlp: str, gate: str, up: str, down: str) -> dict[str, Source]:
    """Every expert on its own, and the router beside them."""
    return {
        "blocks.*.mlp.router": f"{mlp}.gate",
        "blocks.*.mlp.experts.gate": Stack(f"{mlp}.experts.#.{gate}"),
        "blocks.*.mlp.experts.up": Stack(f"{mlp}.experts.#.{up}"),
        "blocks.*.mlp.experts.down": Stack(f"{mlp}.experts.#.{down}"),
    }


MLP = "model.layers.*.mlp"

PROJECTIONS = apart(MLP, "gate_proj", "up_proj", "down_proj")
"""As most checkpoints have them."""

TOGETHER: dict[str, Source] = {
    "blocks.*.mlp.router": f"{MLP}.gate",
    "blocks.*.mlp.experts.gate": Slabs(f"{MLP}.experts.gate_up_proj", gate_up, 0),
    "blocks.*.mlp.experts.up": Slabs(f"{MLP}.experts.gate_up_proj", gate_up, 1),
    "blocks.*.mlp.experts.down": Named(f"{MLP}.experts.down_proj"),
}
"""As models of transformers 5 have them."""
