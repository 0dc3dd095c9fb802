# SPDX-License-Identifier: MIT OR Apache-2.0
"""How each kind of recurrent layer writes what its heads read."""

from torch import Tensor, nn

from torch_mi.backends.protocol import HeldNorm, MixedWritten
from torch_mi.config.recurrent import RecurrentConfig
from torch_mi.hooks.point import HookPoint
from torch_mi.nn.reading import HeadNorm
from torch_mi.nn.rwkv4 import Rwkv4Mix
from torch_mi.nn.rwkv6 import MatrixState
from torch_mi.nn.rwkv7 import Rwkv7Mix
from torch_mi.types import split


def written_by(mix: nn.Module, cfg: RecurrentConfig) -> MixedWritten | None:
    """What one layer does with what its heads have read, where that is known here (RWKV)."""
    match mix:
        case Rwkv4Mix():
            return MixedWritten(by_head(mix.o.weight, cfg), gate=HookPoint.RwkvR)
        case MatrixState():
            gate = None if mix.g is None else HookPoint.RwkvG
            return MixedWritten(by_head(mix.o.weight, cfg), held_heads(mix.norm), gate)
        case Rwkv7Mix():
            matrix, norm = by_head(mix.o.weight, cfg), held_heads(mix.norm)
            return MixedWritten(matrix, norm, HookPoint.RwkvG, bonus_after=True)
        case _:
            return None


def by_head(weight: Tensor, cfg: RecurrentConfig) -> Tensor:
    """An output matrix [d_model head d_value]."""
    return split(weight.detach(), -1, (cfg.mixer.heads, cfg.mixer.value_size))


def held_heads(norm: HeadNorm) -> HeldNorm:
    """A norm of each head by itself, with its denominators held."""
    return HeldNorm(norm.weight.detach(), norm.bias.detach(), centred=True)
