# SPDX-License-Identifier: MIT OR Apache-2.0
"""The gated MLP of recurrent models, `down(silu(gate x) * up x)`, which reads one token alone."""

from torch import nn
from torch.nn.functional import silu

from torch_mi.config.recurrent import RecurrentConfig
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.trace import Tap
from torch_mi.nn.rwkv import matrix
from torch_mi.nn.shift import Steps
from torch_mi.types import Carry, Resid


class Swiglu(nn.Module):
    """It carries nothing from token to token."""

    def __init__(self, cfg: RecurrentConfig) -> None:
        super().__init__()
        width, inner = cfg.hidden_size, cfg.intermediate_size
        self.gate, self.up = matrix(width, inner), matrix(width, inner)
        self.down = matrix(inner, width)

    def forward(
        self,
        h: Resid,
        steps: Steps,  # noqa: ARG002
        tap: Tap,
        past: Carry,  # noqa: ARG002
    ) -> tuple[Resid, Carry]:
        gated = silu(tap(HookPoint.MlpPre, self.gate(h)))
        post = tap(HookPoint.MlpPost, gated * tap(HookPoint.MlpPreLinear, self.up(h)))
        return tap(HookPoint.MlpRawOut, self.down(post)), ()

    def remember(self, h: Resid, steps: Steps, past: Carry) -> Carry:  # noqa: ARG002
        """Nothing."""
        return ()
