# SPDX-License-Identifier: MIT OR Apache-2.0
"""The transformer: one forward pass for every family, written as the equations read."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from torch_mi.backends.points import layer_points, outer_points
from torch_mi.backends.protocol import HeldNorm, Run, Written
from torch_mi.config.parts import BlockLayout, NormType
from torch_mi.config.transformer import TransformerConfig
from torch_mi.errors import ModelError
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.trace import Tap, silent
from torch_mi.nn.attention import Attention, softcap
from torch_mi.nn.experts import Mixture
from torch_mi.nn.latent import LatentAttention
from torch_mi.nn.mlp import Mlp
from torch_mi.nn.norm import Norm
from torch_mi.nn.rotary import Rotary
from torch_mi.nn.shared import Shared, Sight, Turn, linear_biases
from torch_mi.types import Carry, Logits, Resid, Tokens


class Block(nn.Module):
    """One layer: attention and MLP, each added to the residual stream."""

    def __init__(self, cfg: TransformerConfig, layer: int) -> None:
        super().__init__()
        layout = cfg.layout
        self.parallel, self.scale = layout.parallel, cfg.residual_scale
        self.norm1 = norm(cfg, HookPoint.Ln1Scale, HookPoint.Ln1Normalized, layout.norms_inputs)
        self.attn = Attention(cfg, layer) if cfg.latent is None else LatentAttention(cfg, layer)
        self.post1 = norm(
            cfg, HookPoint.Ln1PostScale, HookPoint.Ln1PostNormalized, layout.norms_outputs
        )
        self.mlp: Mlp | Mixture | None = None
        if not cfg.attention_only:
            self.mlp = Mixture(cfg) if cfg.has_experts(layer) else Mlp(cfg)
        second = layout.norms_inputs and layout is not BlockLayout.Parallel
        self.norm2 = norm(
            cfg, HookPoint.Ln2Scale, HookPoint.Ln2Normalized, second and self.mlp is not None
        )
        self.post2 = norm(
            cfg,
            HookPoint.Ln2PostScale,
            HookPoint.Ln2PostNormalized,
            layout.norms_outputs and self.mlp is not None,
        )
        self.shares_norm = layout is BlockLayout.Parallel

    def forward(self, x: Resid, shared: Shared, tap: Tap, past: Carry) -> tuple[Resid, Carry]:
        x = tap(HookPoint.ResidPre, x)
        normed = normalised(self.norm1, x, tap)
        h = tap(HookPoint.AttnIn, apart(normed))
        attn, carry = self.attn(h, shared, tap, past)
        attn = tap(HookPoint.AttnOut, scaled(normalised(self.post1, attn, tap), self.scale))
        if self.mlp is None:
            return tap(HookPoint.ResidPost, x + attn), carry
        mid = tap(HookPoint.ResidMid, x + attn)
        h = normed if self.shares_norm else normalised(self.norm2, x if self.parallel else mid, tap)
        mlp = self.mlp(tap(HookPoint.MlpIn, apart(h)), tap)
        mlp = tap(HookPoint.MlpOut, scaled(normalised(self.post2, mlp, tap), self.scale))
        return tap(HookPoint.ResidPost, mid + mlp), carry

    def remember(self, x: Resid, shared: Shared, tap: Tap, past: Carry) -> Carry:
        """What `forward` hands on to later tokens, and no more than it takes."""
        x = tap(HookPoint.ResidPre, x)
        h = tap(HookPoint.AttnIn, normalised(self.norm1, x, tap))
        return self.attn.remember(h, shared, tap, past)


def norm(
    cfg: TransformerConfig,
    scale: HookPoint,
    normalized: HookPoint,
    wanted: bool,  # noqa: FBT001 - whether this layout has a norm here
) -> Norm | None:
    """A norm of the residual stream's width, tapped at two points, if there is one here."""
    if not wanted or cfg.norm_type is NormType.Absent:
        return None
    return Norm(cfg.norm_type, cfg.norm_eps, cfg.hidden_size, scale, normalized)


def normalised(by: Norm | None, x: Resid, tap: Tap) -> Resid:
    """The norm of `x`, if there is a norm here."""
    return x if by is None else by(x, tap)


def held(by: Norm, like: Tensor) -> HeldNorm:
    """What a norm does to a vector of the stream, once its denominator is held."""
    plus = 1 if by.kind is NormType.RmsPlusOne else 0
    gain = like.new_ones(like.shape[-1]) if by.weight is None else by.weight.detach() + plus
    return HeldNorm(gain, None if by.bias is None else by.bias.detach(), by.kind.centred)


def apart(x: Resid) -> Resid:
    """The same values as a tensor of their own: its gradient is what comes of this reader alone."""
    return x.view_as(x)


def scaled(x: Tensor, scale: float | None) -> Tensor:
    """`x` times the scale, if there is one."""
    return x if scale is None else x * scale


class Transformer(nn.Module):
    """A decoder-only transformer, in the pieces that `MIModel.forward` strings together."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.tokens = table(cfg.vocab_size, cfg.hidden_size)
        learned = cfg.embedding.learned
        self.positions = None if learned is None else table(learned.rows, cfg.hidden_size)
        self.norm0 = None
        if cfg.embedding.norm:
            self.norm0 = Norm(cfg.norm_type, cfg.norm_eps, cfg.hidden_size)
        turning = cfg.head_dim if cfg.latent is None else cfg.latent.rope_dim
        ropes = [rope for rope in dict.fromkeys(cfg.ropes) if rope is not None]
        self.ropes = {rope: Rotary(rope, turning) for rope in ropes}
        self.blocks = nn.ModuleList(Block(cfg, i) for i in range(cfg.num_layers))
        self.norm = None
        if cfg.final_norm_type is not NormType.Absent:
            self.norm = Norm(
                cfg.final_norm_type,
                cfg.norm_eps,
                cfg.hidden_size,
                HookPoint.FinalScale,
                HookPoint.FinalNormalized,
            )
        self.head = nn.Linear(cfg.hidden_size, cfg.output_vocab_size, bias=cfg.head.bias)
        if cfg.tie_word_embeddings:
            self.head.weight = self.tokens.weight
        self._points = [layer_points(cfg, layer) for layer in range(cfg.num_layers)]
        self.hook_points = outer_points(cfg).union(*self._points)
        self.read_only = frozenset([HookPoint.ExpertIndices]) & self.hook_points
        self.always_explicit = cfg.attn_logit_softcapping is not None

    def layer_points(self, layer: int) -> frozenset[HookPoint]:
        return self._points[layer]

    recurrent = False

    def stream_points(self, layer: int) -> tuple[HookPoint, ...]:  # noqa: ARG002 - all alike
        return (HookPoint.ResidPre,)

    @property
    def n_layers(self) -> int:
        return self.cfg.num_layers

    @property
    def sizes(self) -> Mapping[str, int]:
        cfg = self.cfg
        sizes = {
            "d_model": cfg.hidden_size,
            "head": cfg.num_attention_heads,
            "kv_head": cfg.num_kv_heads,
            "d_head": cfg.head_dim,
            "d_value": cfg.head_dim if cfg.latent is None else cfg.latent.value_dim,
            "d_mlp": cfg.intermediate_size,
            "vocab": cfg.output_vocab_size,
        }
        if cfg.latent is not None:
            sizes |= {"d_latent": cfg.latent.kv_rank}
        if cfg.experts is not None:
            sizes |= {"expert": cfg.experts.count, "chosen": cfg.experts.chosen}
        return sizes

    @property
    def embedding(self) -> Tensor:
        return self.tokens.weight

    @property
    def unembedding(self) -> Tensor:
        return self.head.weight

    @property
    def unembedding_bias(self) -> Tensor | None:
        return cast("Tensor | None", self.head.bias)

    @property
    def parallel(self) -> bool:
        return self.cfg.layout.parallel

    @property
    def causal(self) -> bool:
        return self.cfg.causal

    @property
    def logit_scale(self) -> float:
        return 1.0 if self.cfg.head.scale is None else self.cfg.head.scale

    @property
    def final_norm(self) -> HeldNorm | None:
        return None if self.norm is None else held(self.norm, self.tokens.weight)

    def attention_written(self, layer: int) -> Written:
        block = cast("Block", self.blocks[layer])
        bias, scale = block.attn.o_bias, self.cfg.residual_scale
        return Written(
            None if bias is None else bias.detach(),
            None if block.post1 is None else held(block.post1, self.tokens.weight),
            1.0 if scale is None else scale,
        )

    def mixed_written(self, layer: int) -> None:
        """Nothing: there is no state."""

    def normed(self, layer: int, point: HookPoint, x: Tensor) -> Tensor:
        block = cast("Block", self.blocks[layer])
        first = point is HookPoint.AttnIn or block.shares_norm
        flat = x.reshape(1, -1, x.shape[-1])
        return normalised(block.norm1 if first else block.norm2, flat, silent).view_as(x)

    @property
    def norms_attention_output(self) -> bool:
        return self.cfg.layout.norms_outputs or self.cfg.residual_scale is not None

    @property
    def adds_attention_bias(self) -> bool:
        return self.cfg.o_proj_bias

    @property
    def device(self) -> torch.device:
        return self.tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.tokens.weight.dtype

    def begin(self, run: Run) -> Shared:
        turns = {
            rope: Turn(rotary, *rotary.tables(run.positions, self.dtype))
            for rope, rotary in self.ropes.items()
        }
        sight = Sight(run.positions.shape[1], run.seen, run.padding, self.device, self.cfg.causal)
        alibi, heads = self.cfg.alibi, self.cfg.num_attention_heads
        bias = None if alibi is None else linear_biases(alibi, heads, sight)
        return Shared(run.positions, turns, sight, bias, run.explicit)

    def embed(self, tokens: Tokens, shared: Shared, tap: Tap) -> Resid:
        x = self.tokens(tokens)
        if self.cfg.embedding.scale is not None:
            x = x * torch.tensor(self.cfg.embedding.scale, dtype=x.dtype)
        x = tap(HookPoint.Embed, x)
        if self.positions is not None:
            rows = self.positions(self.rows(shared.positions)).expand_as(x)
            x = x + tap(HookPoint.PosEmbed, rows)
        return normalised(self.norm0, x, tap)

    def rows(self, positions: Tensor) -> Tensor:
        """The rows of the table of learned positions; an error beyond its end."""
        learned = self.cfg.embedding.learned
        offset, rows = (0, 0) if learned is None else (learned.offset, learned.rows)
        if positions.is_meta:  # a run without data
            return positions
        last = int(positions.max()) + offset
        if last >= rows:
            raise ModelError(
                f"position {last - offset} is beyond this model's {rows - offset} learned "
                "positions; use a shorter text"
            )
        return positions + offset

    def block(
        self, layer: int, x: Resid, shared: Shared, tap: Tap, past: Carry
    ) -> tuple[Resid, Carry]:
        return self.blocks[layer](x, shared, tap, past)

    def remember(self, layer: int, x: Resid, shared: Shared, tap: Tap, past: Carry) -> Carry:
        return cast("Block", self.blocks[layer]).remember(x, shared, tap, past)

    def unembed(self, x: Resid, tap: Tap) -> Logits:
        logits = self.head(tap(HookPoint.FinalNorm, normalised(self.norm, x, tap)))
        logits = softcap(scaled(logits, self.cfg.head.scale), self.cfg.head.softcap)
        return tap(HookPoint.Logits, logits)

    def grows_differently(self, before: int, total: int) -> bool:
        if not self.cfg.causal:
            return before != total
        return any(rope.depends_on_length(before, total) for rope in self.ropes.values())


def parameter_shapes(cfg: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter that a model of this config owns, in module order; a tied head is not one."""
    with torch.device("meta"):
        backend = Transformer(cfg)
    return {name: tuple(p.shape) for name, p in backend.named_parameters()}


def table(rows: int, width: int) -> nn.Embedding:
    """Vectors to look up.

    Made from zeros: drawing it at random on the meta device would import all of torch._dynamo.
    """
    zeros = torch.zeros(rows, width)
    return nn.Embedding.from_pretrained(zeros, freeze=False)  # pyright: ignore[reportUnknownMemberType] - torch's stub
