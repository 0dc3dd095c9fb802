# SPDX-License-Identifier: MIT OR Apache-2.0
"""Where a forward pass can be watched or changed.

Each member of `HookPoint` is declared once, as (path, axes, meaning, other spellings). Parsing,
printing, shape checks, error messages, `docs/hooks.md` and `torch-mi hooks` are read off that
declaration. Paths are TransformerLens names with TransformerLens meanings.

A place is its name: members and hooks are strings, so `HookPoint.AttnPattern(5)` and
`"blocks.5.attn.hook_pattern"` are equal, hash alike and may be used interchangeably.
"""

from enum import StrEnum
from typing import Self

from torch_mi.errors import HookError, did_you_mean
from torch_mi.hooks.hook import Hook


class HookPoint(StrEnum):
    """A kind of place in a forward pass; call one with a layer number to get a `Hook`.

    >>> HookPoint.AttnPattern(5)
    HookPoint.AttnPattern(5)
    >>> HookPoint.AttnPattern(5) == "blocks.5.attn.hook_pattern"
    True
    """

    axes: tuple[str, ...]
    meaning: str
    aliases: tuple[str, ...]

    Embed = "hook_embed", "batch pos d_model", "token embeddings, after any embedding scale"
    PosEmbed = (
        "hook_pos_embed",
        "batch pos d_model",
        "learned absolute positions, where a family has them",
    )
    ResidPre = "blocks.*.hook_resid_pre", "batch pos d_model", "residual stream entering the layer"
    Ln1Scale = (
        "blocks.*.ln1.hook_scale",
        "batch pos one",
        "denominator of the norm before attention",
    )
    Ln1Normalized = (
        "blocks.*.ln1.hook_normalized",
        "batch pos d_model",
        "value of that norm before its gain and bias",
    )
    AttnIn = (
        "blocks.*.hook_attn_in",
        "batch pos d_model",
        "what attention reads: that norm's output",
    )
    AttnQIn = (
        "blocks.*.hook_q_input",
        "batch pos head d_model",
        "what each head's queries read: attn_in, head by head",
    )
    AttnKIn = (
        "blocks.*.hook_k_input",
        "batch pos kv_head d_model",
        "what each head's keys read: attn_in, head by head",
    )
    AttnVIn = (
        "blocks.*.hook_v_input",
        "batch pos kv_head d_model",
        "what each head's values read: attn_in, head by head",
    )
    AttnLatent = (
        "blocks.*.attn.hook_latent",
        "batch pos d_latent",
        "the narrow vector that keys and values unfold from, normed (latent attention)",
    )
    AttnQ = (
        "blocks.*.attn.hook_q",
        "batch pos head d_head",
        "queries, before any norm of theirs and before rotary embedding",
    )
    AttnK = (
        "blocks.*.attn.hook_k",
        "batch pos kv_head d_head",
        "keys, before any norm of theirs, rotary embedding, and sharing among heads",
    )
    AttnV = (
        "blocks.*.attn.hook_v",
        "batch pos kv_head d_value",
        "values, before they are shared among heads",
    )
    AttnRotQ = (
        "blocks.*.attn.hook_rot_q",
        "batch pos head d_head",
        "queries, after rotary embedding",
    )
    AttnRotK = (
        "blocks.*.attn.hook_rot_k",
        "batch pos kv_head d_head",
        "keys, after rotary embedding",
    )
    AttnScores = (
        "blocks.*.attn.hook_scores",
        "batch head query key",
        "scores after scale, soft-cap, linear biases and mask, before the softmax",
        "blocks.*.attn.hook_attn_scores",
    )
    AttnPattern = (
        "blocks.*.attn.hook_pattern",
        "batch head query key",
        "attention probabilities, after the softmax",
    )
    AttnZ = "blocks.*.attn.hook_z", "batch pos head d_value", "each head's mixed values"
    AttnResult = (
        "blocks.*.attn.hook_result",
        "batch pos head d_model",
        "each head's share of the attention output (computed only when asked for)",
    )
    RwkvShift = (
        "blocks.*.rwkv.hook_shift",
        "batch pos d_model",
        "what time mixing reads of the token before: the norm's output there",
    )
    RwkvConv = (
        "blocks.*.rwkv.hook_conv",
        "batch pos d_conv",
        "what the short convolutions over the last tokens give, side by side; no nonlinearity yet",
    )
    RwkvDelta = (
        "blocks.*.rwkv.hook_delta",
        "batch pos head",
        "step size of a state space: how far it fades and how much is written, at once",
    )
    RwkvR = (
        "blocks.*.rwkv.hook_r",
        "batch pos head d_key",
        "receptance, as it reads the state (the query of other recurrent models)",
    )
    RwkvK = "blocks.*.rwkv.hook_k", "batch pos head d_key", "keys, as they are written to the state"
    RwkvVFirst = (
        "blocks.*.rwkv.hook_v_first",
        "batch pos head d_value",
        "the first layer's values, as this layer reads them",
    )
    RwkvV = (
        "blocks.*.rwkv.hook_v",
        "batch pos head d_value",
        "values, as they are written to the state",
    )
    RwkvW = (
        "blocks.*.rwkv.hook_w",
        "batch pos head d_key",
        "decay: what the state is multiplied by at this token, from 0 to 1 in every version",
        "blocks.*.rwkv.hook_decay",
    )
    RwkvA = (
        "blocks.*.rwkv.hook_a",
        "batch pos head d_key",
        "in-context learning rate: how much of what the key finds is erased",
    )
    RwkvKappa = (
        "blocks.*.rwkv.hook_kappa",
        "batch pos head d_key",
        "the key of unit length under which the state erases",
    )
    RwkvG = "blocks.*.rwkv.hook_g", "batch pos head d_value", "the gate on what was read"
    RwkvWrite = (
        "blocks.*.rwkv.hook_write",
        "batch pos head",
        "how much of a token's key and value is written to the state: 1 unless edited",
    )
    RwkvErase = (
        "blocks.*.rwkv.hook_erase",
        "batch pos head",
        "how much of what a token erases is erased: 1 unless edited",
    )
    RwkvState = (
        "blocks.*.rwkv.hook_state",
        "batch pos head d_key d_state",
        "the state after each token, handed over token by token (computed only when asked for)",
    )
    RwkvEffectiveAttn = (
        "blocks.*.rwkv.hook_effective_attn",
        "batch head query source",
        "what the value of each earlier token of the run counts in what is read, signed; "
        "computed only when asked for",
    )
    RwkvBonus = (
        "blocks.*.rwkv.hook_bonus",
        "batch pos head d_value",
        "what a token reads of itself beside the state",
    )
    RwkvWkv = (
        "blocks.*.rwkv.hook_wkv",
        "batch pos head d_value",
        "what each head reads, before it is normed",
    )
    RwkvNormScale = (
        "blocks.*.rwkv.hook_norm_scale",
        "batch pos head one",
        "denominator of the norm on what each head reads",
    )
    Ln1PostScale = (
        "blocks.*.ln1_post.hook_scale",
        "batch pos one",
        "denominator of the norm on attention's output, where there is one",
    )
    Ln1PostNormalized = (
        "blocks.*.ln1_post.hook_normalized",
        "batch pos d_model",
        "value of that norm before its gain and bias",
    )
    AttnOut = (
        "blocks.*.hook_attn_out",
        "batch pos d_model",
        "exactly what attention adds to the residual stream",
    )
    ResidMid = (
        "blocks.*.hook_resid_mid",
        "batch pos d_model",
        "residual stream between attention and MLP",
    )
    Ln2Scale = "blocks.*.ln2.hook_scale", "batch pos one", "denominator of the norm before the MLP"
    Ln2Normalized = (
        "blocks.*.ln2.hook_normalized",
        "batch pos d_model",
        "value of that norm before its gain and bias",
    )
    MlpIn = (
        "blocks.*.hook_mlp_in",
        "batch pos d_model",
        "what the MLP reads: that norm's output, gain included",
        "blocks.*.mlp.hook_in",
    )
    MlpShift = (
        "blocks.*.mlp.hook_shift",
        "batch pos d_model",
        "what channel mixing reads of the token before: the norm's output there",
    )
    MlpGate = (
        "blocks.*.mlp.hook_gate",
        "batch pos d_model",
        "the gate on the output of channel mixing",
    )
    MlpPre = "blocks.*.mlp.hook_pre", "batch pos d_mlp", "neurons before the nonlinearity"
    MlpPreLinear = (
        "blocks.*.mlp.hook_pre_linear",
        "batch pos d_mlp",
        "the linear branch of a gated MLP",
    )
    MlpMid = (
        "blocks.*.mlp.hook_mid",
        "batch pos d_mlp",
        "neurons after the nonlinearity, before a norm over the neurons",
    )
    MlpPost = (
        "blocks.*.mlp.hook_post",
        "batch pos d_mlp",
        "neurons after the nonlinearity, times the linear branch if gated",
    )
    RouterLogits = (
        "blocks.*.mlp.hook_router_logits",
        "batch pos expert",
        "how the router judges each expert, before softmax or sigmoid",
    )
    ExpertWeights = (
        "blocks.*.mlp.hook_expert_weights",
        "batch pos expert",
        "the router's scores after softmax or sigmoid, before any are chosen",
    )
    ExpertIndices = (
        "blocks.*.mlp.hook_expert_indices",
        "batch pos chosen",
        "which experts are chosen, best first",
    )
    ExpertGates = (
        "blocks.*.mlp.hook_expert_gates",
        "batch pos expert",
        "what each expert's output is multiplied by: zero unless it is chosen",
    )
    ExpertOut = (
        "blocks.*.mlp.hook_expert_out",
        "batch pos expert d_model",
        "each expert's share of the output, times its gate (computed only when asked for)",
    )
    SharedExpertOut = (
        "blocks.*.mlp.hook_shared_expert_out",
        "batch pos d_model",
        "the output of the expert that every token goes to, times its gate",
    )
    MlpRawOut = (
        "blocks.*.mlp.hook_out",
        "batch pos d_model",
        "output of the MLP or the experts, before any post-norm",
    )
    Ln2PostScale = (
        "blocks.*.ln2_post.hook_scale",
        "batch pos one",
        "denominator of the norm on the MLP's output, where there is one",
    )
    Ln2PostNormalized = (
        "blocks.*.ln2_post.hook_normalized",
        "batch pos d_model",
        "value of that norm before its gain and bias",
    )
    MlpOut = (
        "blocks.*.hook_mlp_out",
        "batch pos d_model",
        "exactly what the MLP adds to the residual stream",
    )
    ResidPost = "blocks.*.hook_resid_post", "batch pos d_model", "residual stream leaving the layer"
    FinalScale = "ln_final.hook_scale", "batch pos one", "denominator of the final norm"
    FinalNormalized = (
        "ln_final.hook_normalized",
        "batch pos d_model",
        "value of the final norm before its gain and bias",
    )
    FinalNorm = (
        "hook_final_norm",
        "batch pos d_model",
        "what the unembedding reads: the final norm's output",
    )
    RnnPreActivation = "blocks.*.rnn.hook_pre_activation", "batch pos d_mlp", "before the relu"
    RnnHidden = (
        "blocks.*.rnn.hook_hidden",
        "batch pos d_mlp",
        "neurons after the relu, step by step",
    )
    RnnFinalState = "rnn.hook_final_state", "batch d_mlp", "neurons after the last input"
    RnnOutput = "rnn.hook_output", "batch vocab", "outputs after the last input"
    Logits = "hook_logits", "batch pos vocab", "the output, after any soft-cap"

    def __new__(cls, path: str, axes: str, meaning: str, *aliases: str) -> Self:
        point = str.__new__(cls, path)
        point._value_ = path
        point.axes, point.meaning, point.aliases = tuple(axes.split()), meaning, aliases
        return point

    __hash__ = str.__hash__

    @property
    def stepwise(self) -> bool:
        """Whether a run hands this over token by token, as each depends on the one before."""
        return "d_state" in self.axes or self.startswith("blocks.*.rnn.")

    @property
    def per_layer(self) -> bool:
        return self.startswith("blocks.")

    def __call__(self, layer: int) -> "Hook":
        return Hook(self, layer)

    def on(self, n_layers: int) -> "list[Hook]":
        """Every hook of this kind in a model of `n_layers` layers."""
        return [Hook(self, i) for i in range(n_layers)] if self.per_layer else [Hook(self)]

    def __repr__(self) -> str:
        return f"HookPoint.{self.name}"


def locate(where: str) -> Hook | HookPoint:
    """The hook that a name means, or the hook point if it means the place in every layer.

    >>> locate("blocks.*.hook_resid_post")
    HookPoint.ResidPost
    """
    if isinstance(where, Hook):
        return where
    if isinstance(where, HookPoint):
        return where if where.per_layer else Hook(where)
    if not isinstance(where, str):  # pyright: ignore[reportUnnecessaryIsInstance] - users are untyped
        raise HookError(f"{where!r} is not a hook point or a name")
    if where.startswith("rnn.") and where not in _BY_PATH:  # networks of one layer do not number it
        where = f"blocks.0.{where}"
    head, _, rest = where.removeprefix("blocks.").partition(".")
    inside = where.startswith("blocks.")
    point = _BY_PATH.get(f"blocks.*.{rest}" if inside else where)
    if point is None or (inside and head != "*" and not (head.isascii() and head.isdecimal())):
        raise HookError(f"no hook point is named {where!r}{_nearest(where, head)}")
    if not inside:
        return Hook(point)
    return point if head == "*" else Hook(point, int(head))


def _nearest(where: str, layer: str) -> str:
    layer = layer if layer.isascii() and layer.isdecimal() else "*"
    paths = [path.replace("*", layer) for path in _BY_PATH]
    members = {f"HookPoint.{point.name}": point for point in HookPoint}
    return did_you_mean(where, paths) or did_you_mean(where, [p.name for p in members.values()])


_BY_PATH = {
    spelt: point
    for point in HookPoint
    for path in (str(point), *point.aliases)
    for spelt in (path, path.replace(".rwkv.", ".rnn."))
}
