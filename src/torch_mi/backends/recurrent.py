# SPDX-License-Identifier: MIT OR Apache-2.0
"""Recurrent language models: one forward pass; each version supplies how it mixes."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from torch_mi.backends.protocol import HeldNorm, MixedWritten, Run, Written
from torch_mi.backends.recurrent_points import layer_points, outer_points, sizes_of
from torch_mi.backends.recurrent_written import written_by
from torch_mi.backends.transformer import held, normalised, table
from torch_mi.config.linear import Hgrn2, RetNet
from torch_mi.config.recurrent import RecurrentConfig, Rwkv7
from torch_mi.config.rope import Rope
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.trace import Tap, silent
from torch_mi.nn.hgrn2 import rising
from torch_mi.nn.mixers import channel_mix, time_mix
from torch_mi.nn.norm import Norm
from torch_mi.nn.rotary import Rotary
from torch_mi.nn.rwkv import Channels
from torch_mi.nn.shared import Turn
from torch_mi.nn.shift import Steps
from torch_mi.types import Carry, Enters, Leaves, Logits, Mixed, Resid, Tokens, split


def narrowed(h: Resid, weights: Tensor) -> Resid:
    """A vector in the dtype of the weights that it meets."""
    return h if h.dtype == weights.dtype else h.to(weights.dtype)


class RecurrentBlock(nn.Module):
    """One layer: time mixing and channel mixing, each added to the residual stream.

    In a model whose later layers read the first layer's values, those flow beside the stream, as
    more columns of it.
    """

    def __init__(self, cfg: RecurrentConfig, layer: int) -> None:
        super().__init__()
        self.width, self.values = cfg.hidden_size, (cfg.mixer.heads, cfg.mixer.value_size)
        self.last = layer == cfg.num_layers - 1
        kind, eps, width = cfg.norm_type, cfg.norm_eps, cfg.hidden_size
        self.norm1 = Norm(kind, eps, width, HookPoint.Ln1Scale, HookPoint.Ln1Normalized)
        self.mix = time_mix(cfg, layer)
        self.channels, self.norm2 = channel_mix(cfg), None
        if self.channels is not None:
            self.norm2 = Norm(kind, eps, width, HookPoint.Ln2Scale, HookPoint.Ln2Normalized)

    def forward(self, x: Enters, steps: Steps, tap: Tap, past: Carry) -> tuple[Leaves, Carry]:
        past = tuple(each.expand(len(x), *each.shape[1:]) for each in past)
        x, first, carry = self._time(x, steps, tap, past)
        if self.channels is None:
            return self._joined(tap(HookPoint.ResidPost, x), first), carry
        mid = tap(HookPoint.ResidMid, x)
        h = tap(HookPoint.MlpIn, self.normed(self.norm2, mid, tap))
        out, kept = self.channels(h, steps, tap, past[len(carry) :])
        x = tap(HookPoint.ResidPost, mid + tap(HookPoint.MlpOut, out))
        return self._joined(x, first), (*carry, *kept)

    def remember(self, x: Enters, steps: Steps, tap: Tap, past: Carry) -> Carry:
        """What `forward` hands on to later tokens, and no more than it takes."""
        x, _, carry = self._time(x, steps, tap, past)
        if not isinstance(self.channels, Channels):
            return carry
        h = tap(HookPoint.MlpIn, self.normed(self.norm2, tap(HookPoint.ResidMid, x), tap))
        return (*carry, *self.channels.remember(h, steps, past[len(carry) :]))

    def normed(self, by: Norm | None, x: Resid, tap: Tap) -> Resid:
        """The norm of the stream, which may be kept in more precision than the weights."""
        return narrowed(normalised(by, x, tap), self.mix.o.weight)

    def _time(
        self, x: Enters, steps: Steps, tap: Tap, past: Carry
    ) -> tuple[Resid, Mixed | None, Carry]:
        """The stream after time mixing, the first layer's values, and what is carried on."""
        x, first = self._parted(x)
        x = tap(HookPoint.ResidPre, x)
        h = tap(HookPoint.AttnIn, self.normed(self.norm1, x, tap))
        out, carry, first = self.mix(h, first, steps, tap, past[: self.mix.carried])
        return x + tap(HookPoint.AttnOut, out), first, carry

    def _parted(self, x: Enters) -> tuple[Resid, Mixed | None]:
        """The stream, and the first layer's values if they flow beside it."""
        beside = narrowed(x[..., self.width :], self.mix.o.weight)
        return x[..., : self.width], split(beside, -1, self.values) if beside.shape[-1] else None

    def _joined(self, x: Resid, first: Mixed | None) -> Leaves:
        """The stream with what flows beside it."""
        return x if first is None or self.last else torch.cat([x, first.flatten(2)], -1)


class Recurrent(nn.Module):
    """A recurrent language model, in the pieces that `MIModel.forward` strings together."""

    always_explicit = False
    parallel = False
    causal = True
    recurrent = True
    logit_scale = 1.0
    norms_attention_output = False
    adds_attention_bias = False
    unembedding_bias = None

    def __init__(self, cfg: RecurrentConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.tokens = table(cfg.vocab_size, cfg.hidden_size)
        kind, eps, width, mixer = cfg.norm_type, cfg.norm_eps, cfg.hidden_size, cfg.mixer
        self.norm0 = Norm(kind, eps, width) if cfg.embedding_norm else None
        self.rotary, self.bounds = None, None
        if isinstance(mixer, RetNet):
            self.rotary = Rotary(Rope(mixer.theta, mixer.key_size), mixer.key_size)
        if isinstance(mixer, Hgrn2) and mixer.bounded:
            self.bounds = nn.Parameter(torch.zeros(cfg.num_layers, mixer.heads * mixer.key_size))
        self.blocks = nn.ModuleList(RecurrentBlock(cfg, i) for i in range(cfg.num_layers))
        self.norm = Norm(kind, eps, width, HookPoint.FinalScale, HookPoint.FinalNormalized)
        self.head = nn.Linear(cfg.hidden_size, cfg.vocab_size, bias=False)
        if cfg.tie_word_embeddings:
            self.head.weight = self.tokens.weight
        self._points = [layer_points(cfg, layer) for layer in range(cfg.num_layers)]
        self.hook_points = outer_points(cfg).union(*self._points)
        self.read_only = frozenset[HookPoint]()

    def layer_points(self, layer: int) -> frozenset[HookPoint]:
        return self._points[layer]

    def stream_points(self, layer: int) -> tuple[HookPoint, ...]:
        """What enters a layer: the stream, and beside it what later layers read of the first."""
        beside = 0 < layer < self.n_layers and isinstance(self.cfg.mixer, Rwkv7)
        return (HookPoint.ResidPre, HookPoint.RwkvVFirst) if beside else (HookPoint.ResidPre,)

    @property
    def n_layers(self) -> int:
        return self.cfg.num_layers

    @property
    def sizes(self) -> Mapping[str, int]:
        return sizes_of(self.cfg)

    @property
    def embedding(self) -> Tensor:
        return self.tokens.weight

    @property
    def unembedding(self) -> Tensor:
        return self.head.weight

    @property
    def final_norm(self) -> HeldNorm:
        return held(self.norm, self.tokens.weight)

    def attention_written(self, layer: int) -> Written:  # noqa: ARG002 - nothing is added
        return Written()

    def mixed_written(self, layer: int) -> MixedWritten | None:
        return written_by(cast("RecurrentBlock", self.blocks[layer]).mix, self.cfg)

    def normed(self, layer: int, point: HookPoint, x: Tensor) -> Tensor:
        block = cast("RecurrentBlock", self.blocks[layer])
        flat = x.reshape(1, -1, x.shape[-1])
        norm = block.norm1 if point is HookPoint.AttnIn else block.norm2
        return normalised(norm, flat, silent).view_as(x)

    @property
    def device(self) -> torch.device:
        return self.tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.tokens.weight.dtype

    def begin(self, run: Run) -> Steps:
        length = run.positions.shape[1]
        real = None if run.padding is None else run.padding[:, run.seen :]
        bounds = None if self.bounds is None else rising(self.bounds)
        if self.rotary is None:
            return Steps(length, real, run.explicit, bounds=bounds)
        turn = Turn(self.rotary, *self.rotary.tables(run.positions, self.dtype))
        return Steps(length, real, run.explicit, turn, bounds)

    def embed(self, tokens: Tokens, shared: Steps, tap: Tap) -> Resid:  # noqa: ARG002
        x = tap(HookPoint.Embed, self.tokens(tokens))
        # the stream of RWKV outgrows float16; its runtimes halve it every few layers instead
        x = x.float() if x.dtype == torch.float16 else x
        return normalised(self.norm0, x, silent)

    def block(
        self, layer: int, x: Enters, shared: Steps, tap: Tap, past: Carry
    ) -> tuple[Leaves, Carry]:
        return self.blocks[layer](x, shared, tap, past)

    def remember(self, layer: int, x: Enters, shared: Steps, tap: Tap, past: Carry) -> Carry:
        return cast("RecurrentBlock", self.blocks[layer]).remember(x, shared, tap, past)

    def unembed(self, x: Resid, tap: Tap) -> Logits:
        h = tap(HookPoint.FinalNorm, narrowed(normalised(self.norm, x, tap), self.head.weight))
        return tap(HookPoint.Logits, self.head(h))

    def grows_differently(self, before: int, total: int) -> bool:  # noqa: ARG002
        return False
