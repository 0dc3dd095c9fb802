# SPDX-License-Identifier: MIT OR Apache-2.0
"""What stands in the place of attention and of the MLP in a layer of a recurrent model."""

from torch_mi.config.linear import DeltaNet, Gla, Hgrn2, Linear, Mamba, Mamba2, RetNet
from torch_mi.config.recurrent import ChannelMix, RecurrentConfig, Rwkv, Rwkv4, Rwkv5, Rwkv6, Rwkv7
from torch_mi.nn.delta_net import DeltaNetMix
from torch_mi.nn.gla import GlaMix
from torch_mi.nn.hgrn2 import Hgrn2Mix
from torch_mi.nn.mamba import Mamba2Mix, MambaMix
from torch_mi.nn.retnet import RetNetMix
from torch_mi.nn.rwkv import Channels
from torch_mi.nn.rwkv4 import Rwkv4Mix
from torch_mi.nn.rwkv6 import Rwkv5Mix, Rwkv6Mix
from torch_mi.nn.rwkv7 import Rwkv7Mix
from torch_mi.nn.swiglu import Swiglu

RwkvMix = Rwkv4Mix | Rwkv5Mix | Rwkv6Mix | Rwkv7Mix
LinearMix = MambaMix | Mamba2Mix | GlaMix | RetNetMix | Hgrn2Mix | DeltaNetMix


def time_mix(cfg: RecurrentConfig, layer: int) -> RwkvMix | LinearMix:
    """How one layer mixes what earlier tokens left."""
    if isinstance(cfg.mixer, Rwkv):
        return rwkv_mix(cfg, cfg.mixer, layer)
    return linear_mix(cfg, cfg.mixer, layer)


def rwkv_mix(cfg: RecurrentConfig, mixer: Rwkv, layer: int) -> RwkvMix:
    """One of the versions of RWKV."""
    match mixer:
        case Rwkv4():
            return Rwkv4Mix(cfg, mixer, layer)
        case Rwkv5():
            return Rwkv5Mix(cfg, mixer, layer)
        case Rwkv6():
            return Rwkv6Mix(cfg, mixer, layer)
        case Rwkv7():
            return Rwkv7Mix(cfg, mixer, layer)


def linear_mix(cfg: RecurrentConfig, mixer: Linear, layer: int) -> LinearMix:
    """One of the other linear recurrences."""
    match mixer:
        case Mamba():
            return MambaMix(cfg, mixer, layer)
        case Mamba2():
            return Mamba2Mix(cfg, mixer, layer)
        case Gla():
            return GlaMix(cfg, mixer, layer)
        case RetNet():
            return RetNetMix(cfg, mixer, layer)
        case Hgrn2():
            return Hgrn2Mix(cfg, mixer, layer)
        case DeltaNet():
            return DeltaNetMix(cfg, mixer, layer)


def channel_mix(cfg: RecurrentConfig) -> Channels | Swiglu | None:
    """How one layer mixes channels, if it does."""
    match cfg.channel_mix:
        case ChannelMix.Gated | ChannelMix.Plain:
            return Channels(cfg)
        case ChannelMix.Swiglu:
            return Swiglu(cfg)
        case ChannelMix.Absent:
            return None
