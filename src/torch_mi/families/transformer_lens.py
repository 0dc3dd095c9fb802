# SPDX-License-Identifier: MIT OR Apache-2.0
"""TransformerLens' `HookedTransformer`: where its tensors lie, which keep heads apart."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_mi.config.activation import Activation
from torch_mi.config.parts import BlockLayout
from torch_mi.config.transformer import TransformerConfig
from torch_mi.errors import ModelError
from torch_mi.families.names import Plan, place
from torch_mi.families.sources import Shape, Source, Whole


@dataclass(frozen=True)
class Pair(Whole):
    """A weight and a bias that are called something else, as they are."""

    weight: str
    bias: str

    def names(self, leaf: str, cfg: TransformerConfig) -> tuple[str, ...]:  # noqa: ARG002
        return (f"{self.theirs}.{self.weight if leaf == 'weight' else self.bias}",)


@dataclass(frozen=True)
class Flipped(Pair):
    """The same with the weight stored as [in, out]."""

    def stored(self, shape: Shape, cfg: TransformerConfig) -> Shape:  # noqa: ARG002
        return shape[::-1]

    def take(self, tensors: Sequence[Tensor], cfg: TransformerConfig) -> Tensor:  # noqa: ARG002
        return tensors[0].mT if tensors[0].ndim > 1 else tensors[0]


@dataclass(frozen=True)
class PerHead(Pair):
    """What heads read with: a weight [head in d_head] and a bias [head d_head]."""

    def stored(self, shape: Shape, cfg: TransformerConfig) -> Shape:
        heads = shape[0] // cfg.head_dim
        return (heads, *shape[1:], cfg.head_dim)

    def take(self, tensors: Sequence[Tensor], cfg: TransformerConfig) -> Tensor:  # noqa: ARG002
        each = tensors[0]
        return (each.mT if each.ndim > 2 else each).flatten(0, 1)  # noqa: PLR2004 - a weight


@dataclass(frozen=True)
class FromHeads(Pair):
    """What heads write with: a weight [head d_head out], and one bias for all."""

    def stored(self, shape: Shape, cfg: TransformerConfig) -> Shape:
        return shape if len(shape) == 1 else (shape[1] // cfg.head_dim, cfg.head_dim, shape[0])

    def take(self, tensors: Sequence[Tensor], cfg: TransformerConfig) -> Tensor:  # noqa: ARG002
        return tensors[0] if tensors[0].ndim == 1 else tensors[0].flatten(0, 1).mT


def norm_at(where: str) -> Pair:
    """A norm's gain and bias."""
    return Pair(where, "w", "b")


SOURCES: dict[str, Source] = {
    "tokens": Pair("embed", "W_E", ""),
    "positions": Pair("pos_embed", "W_pos", ""),
    "norm0": norm_at("embed.ln"),
    "blocks.*.norm1": norm_at("blocks.*.ln1"),
    "blocks.*.attn.q": PerHead("blocks.*.attn", "W_Q", "b_Q"),
    "blocks.*.attn.k": PerHead("blocks.*.attn", "W_K", "b_K"),
    "blocks.*.attn.v": PerHead("blocks.*.attn", "W_V", "b_V"),
    "blocks.*.attn.o": FromHeads("blocks.*.attn", "W_O", "b_O"),
    "blocks.*.attn.norm_q": norm_at("blocks.*.attn.q_norm"),
    "blocks.*.attn.norm_k": norm_at("blocks.*.attn.k_norm"),
    "blocks.*.post1": norm_at("blocks.*.ln1_post"),
    "blocks.*.norm2": norm_at("blocks.*.ln2"),
    "blocks.*.mlp.gate": Flipped("blocks.*.mlp", "W_gate", "b_gate"),
    "blocks.*.mlp.up": Flipped("blocks.*.mlp", "W_in", "b_in"),
    "blocks.*.mlp.norm": norm_at("blocks.*.mlp.ln"),
    "blocks.*.mlp.down": Flipped("blocks.*.mlp", "W_out", "b_out"),
    "blocks.*.post2": norm_at("blocks.*.ln2_post"),
    "norm": norm_at("ln_final"),
    "head": Flipped("unembed", "W_U", "b_U"),
}
GROUPED: dict[str, Source] = {
    **SOURCES,
    "blocks.*.attn.k": PerHead("blocks.*.attn", "_W_K", "_b_K"),
    "blocks.*.attn.v": PerHead("blocks.*.attn", "_W_V", "_b_V"),
}
"""The names where heads share keys and values."""

BUFFERS = tuple(f"blocks.*.attn.{name}" for name in ("mask", "IGNORE", "rotary_sin", "rotary_cos"))
UNUSED = "pos_embed.W_pos"
"""Made, and not used, where positions are not learned."""


def place_lens(cfg: TransformerConfig, shapes: Mapping[str, Shape], names: Collection[str]) -> Plan:
    """Where each of our parameters lies among their tensors, every one accounted for."""
    unused = (UNUSED,) if cfg.embedding.learned is None else ()
    return place(cfg, shapes, [SOURCES, GROUPED], (*BUFFERS, *unused), names)


def completed(theirs: Mapping[str, Tensor], cfg: TransformerConfig) -> dict[str, Tensor]:
    """Their tensors with what they leave unsaid.

    Norms that were folded have a gain of one where others of the same model have gains. A gated
    MLP's inner bias comes after the product, where it is a part of the outer one.
    """
    tensors = dict(theirs)
    for name, value in tensors.items():
        if not isinstance(value, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance] - users are untyped
            raise ModelError(f"{name} is a {type(value).__name__}, not a tensor")
    for layer in range(cfg.num_layers):
        mlp = f"blocks.{layer}.mlp"
        if cfg.activation is Activation.SoluNorm and f"{mlp}.ln.w" not in tensors:
            tensors[f"{mlp}.ln.w"] = torch.ones(cfg.intermediate_size)
            tensors[f"{mlp}.ln.b"] = torch.zeros(cfg.intermediate_size)
        needed = [f"{mlp}.{name}" for name in ("b_in", "W_out", "b_out")]
        if cfg.gated_mlp and all(name in tensors for name in needed):
            inner, matrix, outer = (tensors[name] for name in needed)
            tensors[needed[2]] = outer + inner @ matrix
            tensors[needed[0]] = tensors[f"{mlp}.b_gate"] = torch.zeros_like(inner)
    if cfg.layout is BlockLayout.Sandwich:
        inputs = [f"blocks.{i}.ln{half}.w" for i in range(cfg.num_layers) for half in (1, 2)]
        if not any(name in tensors for name in inputs):
            tensors |= {name: torch.ones(cfg.hidden_size) for name in [*inputs, "ln_final.w"]}
    return tensors
