# SPDX-License-Identifier: MIT OR Apache-2.0
"""The transformer: one forward pass for every family, written as the equations read."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from torch_mi.backends.protocol import FinalNorm, Run
from torch_mi.config.transformer import NormType, TransformerConfig
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.trace import Tap
from torch_mi.nn.attention import Attention, softcap
from torch_mi.nn.mlp import Mlp
from torch_mi.nn.norm import Norm
from torch_mi.nn.rotary import Rotary
from torch_mi.nn.shared import Shared, Sight
from torch_mi.types import Carry, Logits, Resid, Tokens


class Block(nn.Module):
    """One layer: attention, then MLP, each added to the residual stream."""

    def __init__(self, cfg: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.norm1 = Norm(cfg, HookPoint.Ln1Scale, HookPoint.Ln1Normalized)
        self.attn = Attention(cfg, layer)
        self.post1 = Norm(cfg) if cfg.use_post_norms else None
        self.norm2 = Norm(cfg, HookPoint.Ln2Scale, HookPoint.Ln2Normalized)
        self.mlp = Mlp(cfg)
        self.post2 = Norm(cfg) if cfg.use_post_norms else None

    def forward(self, x: Resid, shared: Shared, tap: Tap, past: Carry) -> tuple[Resid, Carry]:
        x = tap(HookPoint.ResidPre, x)
        h = tap(HookPoint.AttnIn, self.norm1(x, tap))
        attn, carry = self.attn(h, shared, tap, past)
        attn = attn if self.post1 is None else self.post1(attn, tap)
        x = tap(HookPoint.ResidMid, x + tap(HookPoint.AttnOut, attn))
        h = tap(HookPoint.MlpIn, self.norm2(x, tap))
        mlp = self.mlp(h, tap)
        mlp = mlp if self.post2 is None else self.post2(mlp, tap)
        return tap(HookPoint.ResidPost, x + tap(HookPoint.MlpOut, mlp)), carry


class Transformer(nn.Module):
    """A decoder-only transformer, in the pieces that `MIModel.forward` strings together."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        # made from zeros: drawing it at random on the meta device would import all of torch._dynamo
        zeros = torch.zeros(cfg.vocab_size, cfg.hidden_size)
        self.tokens = nn.Embedding.from_pretrained(zeros, freeze=False)  # pyright: ignore[reportUnknownMemberType] - torch's stub
        self.rope = Rotary(cfg.rope, cfg.head_dim)
        self.blocks = nn.ModuleList(Block(cfg, i) for i in range(cfg.num_layers))
        self.norm = Norm(cfg, HookPoint.FinalScale, HookPoint.FinalNormalized)
        self.head = nn.Linear(cfg.hidden_size, cfg.vocab_size, bias=False)
        if cfg.tie_word_embeddings:
            self.head.weight = self.tokens.weight
        absent = [HookPoint.PosEmbed, *([] if cfg.gated_mlp else [HookPoint.MlpPreLinear])]
        self.hook_points = frozenset(HookPoint) - frozenset(absent)
        self.read_only = frozenset[HookPoint]()
        self.always_explicit = cfg.attn_logit_softcapping is not None

    @property
    def n_layers(self) -> int:
        return self.cfg.num_layers

    @property
    def sizes(self) -> Mapping[str, int]:
        cfg = self.cfg
        return {
            "d_model": cfg.hidden_size,
            "head": cfg.num_attention_heads,
            "kv_head": cfg.num_kv_heads,
            "d_head": cfg.head_dim,
            "d_mlp": cfg.intermediate_size,
            "vocab": cfg.vocab_size,
        }

    @property
    def embedding(self) -> Tensor:
        return self.tokens.weight

    @property
    def unembedding(self) -> Tensor:
        return self.head.weight

    @property
    def final_norm(self) -> FinalNorm:
        centred = self.cfg.norm_type is NormType.Layer
        bias = None if self.norm.bias is None else self.norm.bias.detach()
        plus = 1 if self.cfg.norm_type is NormType.RmsPlusOne else 0
        return FinalNorm(self.norm.weight.detach() + plus, bias, centred)

    @property
    def norms_attention_output(self) -> bool:
        return self.cfg.use_post_norms

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
        cos, sin = self.rope.tables(run.positions, self.dtype)
        sight = Sight(run.positions.shape[1], run.seen, run.padding, self.device)
        return Shared(self.rope, cos, sin, sight, run.explicit)

    def embed(self, tokens: Tokens, shared: Shared, tap: Tap) -> Resid:  # noqa: ARG002
        x = self.tokens(tokens)
        if self.cfg.embedding_scale is not None:
            x = x * torch.tensor(self.cfg.embedding_scale, dtype=x.dtype)
        return tap(HookPoint.Embed, x)

    def block(
        self, layer: int, x: Resid, shared: Shared, tap: Tap, past: Carry
    ) -> tuple[Resid, Carry]:
        return self.blocks[layer](x, shared, tap, past)

    def unembed(self, x: Resid, tap: Tap) -> Logits:
        logits = self.head(tap(HookPoint.FinalNorm, self.norm(x, tap)))
        return tap(HookPoint.Logits, softcap(logits, self.cfg.final_logit_softcapping))

    def grows_differently(self, before: int, total: int) -> bool:
        return self.rope.depends_on_length(before, total)
