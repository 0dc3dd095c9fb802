# SPDX-License-Identifier: MIT OR Apache-2.0
"""Which hook points a recurrent model has, in each layer and outside them, and how large."""

from collections.abc import Mapping

from torch_mi.config.linear import DeltaNet, Hgrn2, Linear, Mamba, Mamba2
from torch_mi.config.recurrent import ChannelMix, RecurrentConfig, Rwkv, Rwkv4, Rwkv5, Rwkv7
from torch_mi.hooks.point import HookPoint as P

EVERYWHERE = frozenset(
    [
        P.ResidPre, P.Ln1Scale, P.Ln1Normalized, P.AttnIn, P.RwkvR, P.RwkvK, P.RwkvV, P.RwkvW,
        P.RwkvWrite, P.RwkvState, P.RwkvEffectiveAttn, P.RwkvWkv, P.AttnOut, P.ResidPost,
    ]
)  # fmt: skip
CHANNELS = frozenset(
    [
        P.ResidMid, P.Ln2Scale, P.Ln2Normalized, P.MlpIn, P.MlpPre, P.MlpPost, P.MlpRawOut,
        P.MlpOut,
    ]
)  # fmt: skip
MIXING: Mapping[ChannelMix, frozenset[P]] = {
    ChannelMix.Gated: CHANNELS | {P.MlpShift, P.MlpGate},
    ChannelMix.Plain: CHANNELS | {P.MlpShift},
    ChannelMix.Swiglu: CHANNELS | {P.MlpPreLinear},
    ChannelMix.Absent: frozenset(),
}
SUMS = 3
"""What RWKV-4 carries for each channel: numerator, denominator, and their scale."""


def layer_points(cfg: RecurrentConfig, layer: int) -> frozenset[P]:
    """The points inside one layer."""
    mixer = cfg.mixer
    own = rwkv_points(mixer, layer) if isinstance(mixer, Rwkv) else linear_points(mixer)
    return EVERYWHERE | MIXING[cfg.channel_mix] | own


def rwkv_points(mixer: Rwkv, layer: int) -> set[P]:
    """The points that some versions of RWKV have."""
    points = {P.RwkvShift}
    if not isinstance(mixer, Rwkv4):
        points |= {P.RwkvBonus, P.RwkvNormScale}
        points |= set[P]() if isinstance(mixer, Rwkv5) and not mixer.gated else {P.RwkvG}
    if isinstance(mixer, Rwkv7):
        points |= {P.RwkvA, P.RwkvKappa, P.RwkvErase}
        points |= {P.RwkvVFirst} if layer else set[P]()
    return points


def linear_points(mixer: Linear) -> set[P]:
    """The points that some of the other linear recurrences have."""
    points = {P.RwkvConv} if mixer.convolved else set[P]()
    points |= set[P]() if isinstance(mixer, Mamba) else {P.RwkvNormScale}
    match mixer:
        case Mamba() | Mamba2():
            return points | {P.RwkvG, P.RwkvBonus, P.RwkvDelta}
        case Hgrn2():
            return points
        case DeltaNet():
            points |= {P.RwkvA, P.RwkvKappa, P.RwkvErase}
        case _:
            pass
    return points | {P.RwkvG} if mixer.gated else points


def outer_points(cfg: RecurrentConfig) -> frozenset[P]:  # noqa: ARG001
    """The points before the first layer and after the last."""
    return frozenset([P.Embed, P.FinalScale, P.FinalNormalized, P.FinalNorm, P.Logits])


def sizes_of(cfg: RecurrentConfig) -> Mapping[str, int]:
    """How long the axes of activations are."""
    mixer = cfg.mixer
    sizes = {
        "d_model": cfg.hidden_size,
        "head": mixer.heads,
        "kv_head": mixer.heads,
        "d_head": mixer.key_size,
        "d_key": mixer.key_size,
        "d_value": mixer.value_size,
        "d_state": SUMS if isinstance(mixer, Rwkv4) else mixer.value_size,
        "vocab": cfg.vocab_size,
    }
    if cfg.channel_mix is not ChannelMix.Absent:
        sizes |= {"d_mlp": cfg.intermediate_size}
    if not isinstance(mixer, Rwkv) and mixer.convolved:
        sizes |= {"d_conv": mixer.convolved}
    return sizes
