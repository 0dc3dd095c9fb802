# SPDX-License-Identifier: MIT OR Apache-2.0
"""The position-wise MLP, gated or plain."""

from torch import nn

from torch_mi.config.activation import Activation
from torch_mi.config.parts import NormType
from torch_mi.config.transformer import TransformerConfig
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.trace import Tap
from torch_mi.nn.norm import Norm
from torch_mi.types import Resid


class Mlp(nn.Module):
    """`down(act(gate(x)) * up(x))`, or `down(act(up(x)))` without a gate."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        width, inner, bias = cfg.hidden_size, cfg.intermediate_size, cfg.mlp_bias
        self.act = cfg.activation.function
        self.gate = nn.Linear(width, inner, bias=bias) if cfg.gated_mlp else None
        self.up = nn.Linear(width, inner, bias=bias)
        after = cfg.activation is Activation.SoluNorm
        self.norm = Norm(NormType.Layer, cfg.norm_eps, inner) if after else None
        self.down = nn.Linear(inner, width, bias=bias)

    def forward(self, x: Resid, tap: Tap) -> Resid:
        if self.gate is None:
            post = self.act(tap(HookPoint.MlpPre, self.up(x)))
        else:
            gated = self.act(tap(HookPoint.MlpPre, self.gate(x)))
            post = gated * tap(HookPoint.MlpPreLinear, self.up(x))
        if self.norm is not None:
            post = self.norm(tap(HookPoint.MlpMid, post), tap)
        return tap(HookPoint.MlpRawOut, self.down(tap(HookPoint.MlpPost, post)))
