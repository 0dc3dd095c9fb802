# SPDX-License-Identifier: MIT OR Apache-2.0
"""Which hook points a transformer of a given config has, in each layer and outside them."""

from torch_mi.config.activation import Activation
from torch_mi.config.parts import BlockLayout, NormType
from torch_mi.config.transformer import TransformerConfig
from torch_mi.hooks.point import HookPoint as P

ATTENTION = frozenset(
    [
        P.ResidPre, P.AttnIn, P.AttnQ, P.AttnK, P.AttnV, P.AttnRotQ, P.AttnRotK, P.AttnScores,
        P.AttnPattern, P.AttnZ, P.AttnResult, P.AttnOut, P.ResidPost,
    ]
)  # fmt: skip
APART = frozenset([P.AttnQIn, P.AttnKIn, P.AttnVIn])
MLP = frozenset([P.MlpPre, P.MlpPost])
EXPERTS = frozenset([P.RouterLogits, P.ExpertWeights, P.ExpertIndices, P.ExpertGates, P.ExpertOut])
HALVES = frozenset([P.ResidMid, P.MlpIn, P.MlpRawOut, P.MlpOut])


def layer_points(cfg: TransformerConfig, layer: int) -> frozenset[P]:
    """The points inside one layer."""
    points = set(ATTENTION) | norm_points(cfg)
    points |= APART if cfg.latent is None else {P.AttnLatent}
    if cfg.attention_only:
        return frozenset(points)
    points |= HALVES
    if not cfg.has_experts(layer):
        points |= MLP
        points |= {P.MlpPreLinear} if cfg.gated_mlp else set[P]()
        points |= {P.MlpMid} if cfg.activation is Activation.SoluNorm else set[P]()
    elif cfg.experts is not None:
        points |= EXPERTS
        points |= {P.SharedExpertOut} if cfg.experts.shared_width else set[P]()
    return frozenset(points)


def norm_points(cfg: TransformerConfig) -> set[P]:
    """The points of a layer's norms."""
    points = set[P]()
    if cfg.norm_type is NormType.Absent:
        return points
    if cfg.layout.norms_inputs:
        points |= {P.Ln1Scale, P.Ln1Normalized}
        if cfg.layout is not BlockLayout.Parallel and not cfg.attention_only:
            points |= {P.Ln2Scale, P.Ln2Normalized}
    if cfg.layout.norms_outputs:
        points |= {P.Ln1PostScale, P.Ln1PostNormalized}
        if not cfg.attention_only:
            points |= {P.Ln2PostScale, P.Ln2PostNormalized}
    return points


def outer_points(cfg: TransformerConfig) -> frozenset[P]:
    """The points before the first layer and after the last."""
    points = {P.Embed, P.FinalNorm, P.Logits}
    points |= set[P]() if cfg.embedding.learned is None else {P.PosEmbed}
    if cfg.final_norm_type is not NormType.Absent:
        points |= {P.FinalScale, P.FinalNormalized}
    return frozenset(points)
