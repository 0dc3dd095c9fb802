# SPDX-License-Identifier: MIT OR Apache-2.0
"""Which hook points a recurrent model has, in each layer and outside them, and how large."""

from collections.abc import Mapping

from torch_mi.config.recurrent import ChannelMix, RecurrentConfig, Rwkv4, Rwkv5, Rwkv7
from torch_mi.hooks.point import HookPoint as P

EVERYWHERE = frozenset(
    [
        P.ResidPre, P.Ln1Scale, P.Ln1Normalized, P.AttnIn, P.RwkvShift, P.RwkvR, P.RwkvK, P.RwkvV,
        P.RwkvW, P.RwkvWrite, P.RwkvState, P.RwkvEffectiveAttn, P.RwkvWkv, P.AttnOut, P.ResidMid,
        P.Ln2Scale, P.Ln2Normalized, P.MlpIn, P.MlpShift, P.MlpPre, P.MlpPost, P.MlpRawOut,
        P.MlpOut, P.ResidPost,
    ]
)  # fmt: skip
SUMS = 3
"""What RWKV-4 carries for each channel: numerator, denominator, and their scale."""


def layer_points(cfg: RecurrentConfig, layer: int) -> frozenset[P]:
    """The points inside one layer."""
    points, mixer = set(EVERYWHERE), cfg.mixer
    if not isinstance(mixer, Rwkv4):
        points |= {P.RwkvBonus, P.RwkvNormScale}
        points |= set[P]() if isinstance(mixer, Rwkv5) and not mixer.gated else {P.RwkvG}
    if isinstance(mixer, Rwkv7):
        points |= {P.RwkvA, P.RwkvKappa, P.RwkvErase}
        points |= {P.RwkvVFirst} if layer else set[P]()
    points |= {P.MlpGate} if cfg.channel_mix is ChannelMix.Gated else set[P]()
    return frozenset(points)


def outer_points(cfg: RecurrentConfig) -> frozenset[P]:  # noqa: ARG001
    """The points before the first layer and after the last."""
    return frozenset([P.Embed, P.FinalScale, P.FinalNormalized, P.FinalNorm, P.Logits])


def sizes_of(cfg: RecurrentConfig) -> Mapping[str, int]:
    """How long the axes of activations are."""
    mixer = cfg.mixer
    return {
        "d_model": cfg.hidden_size,
        "head": mixer.heads,
        "kv_head": mixer.heads,
        "d_head": mixer.key_size,
        "d_key": mixer.key_size,
        "d_value": mixer.value_size,
        "d_state": SUMS if isinstance(mixer, Rwkv4) else mixer.value_size,
        "d_mlp": cfg.intermediate_size,
        "vocab": cfg.vocab_size,
    }
