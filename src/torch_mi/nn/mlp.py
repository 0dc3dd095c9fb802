# SPDX-License-Identifier: MIT OR Apache-2.0
"""The position-wise MLP, gated or plain."""

from torch import nn

from torch_mi.config.transformer import TransformerConfig
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.trace import Tap
from torch_mi.types import Resid


class Mlp(nn.Module):
    """`down(act(gate(x)) * up(x))`, or `down(act(up(x)))` without a gate."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        width, inner, bias = cfg.hidden_size, cfg.intermediate_size, cfg.mlp_bias
        self.act = cfg.activation.function
        self.gate = nn.Linear(width, inner, bias=bias) if cfg.gated_mlp else None
        self.up = nn.Linear(width, inner, bias=bias)
        self.down = nn.Linear(inner, width, bias=bias)

    def forward(self, x: Resid, tap: Tap) -> Resid:
        if self.gate is None:
            post = self.act(tap(HookPoint.MlpPre, self.up(x)))
        else:
            gated = self.act(tap(HookPoint.MlpPre, self.gate(x)))
            post = gated * tap(HookPoint.MlpPreLinear, self.up(x))
        return tap(HookPoint.MlpRawOut, self.down(tap(HookPoint.MlpPost, post)))
