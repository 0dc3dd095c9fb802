# SPDX-License-Identifier: MIT OR Apache-2.0
"""RWKV-4 to 7: what their configs and tensors say, and what a checkpoint without a config is."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch_mi.config.parts import NormType
from torch_mi.config.recurrent import (
    ChannelMix,
    Mixer,
    RecurrentConfig,
    Rwkv4,
    Rwkv5,
    Rwkv6,
    Rwkv7,
)
from torch_mi.errors import ConfigError
from torch_mi.families.evidence_recurrent import Evidence, agreed, shared_out
from torch_mi.families.recurrent import RecurrentFamily
from torch_mi.families.rules import Reader
from torch_mi.families.rwkv_names import RWKV4_TABLES, RWKV5_TABLES, RWKV6_TABLES, RWKV7_TABLES

HEAD = 64
"""What a head measures unless something says otherwise."""
LARGE = 4096
"""The width from which RWKV-6 doubles its ranks."""
EMBEDDINGS = ("emb.weight", "embeddings.weight")
KEYS = ("att.key.weight", "attention.key.weight", "attn.k_proj.weight", "k_proj.linear.weight")
INNER = ("ffn.key.weight", "feed_forward.key.weight", "ffn.key.linear.weight")

INERT = frozenset(
    """
    _name_or_path architectures auto_map bos_token_id context_length eos_token_id
    initializer_range max_context_length model_type pad_token_id rescale_every
    torch_dtype dtype transformers_version use_cache attn_mode fuse_norm fuse_cross_entropy
    fuse_linear_cross_entropy use_l2warp id2label label2id unk_token_id
    output_hidden_states output_attentions return_dict chunk_size_feed_forward is_decoder
    is_encoder_decoder sep_token_id task_specific_params problem_type
    """.split()  # noqa: SIM905 - shorter than a list
)


def whole(
    c: Reader, seen: Evidence, mixer: Mixer, channels: ChannelMix, inner: int
) -> RecurrentConfig:
    """What all versions have, around how one mixes."""
    eps = "norm_eps" if isinstance(mixer, Rwkv7) or c.given("norm_eps") else "layer_norm_epsilon"
    longest = c.get(int, "max_position_embeddings") or c.get(int, "context_length")
    tied = c.get(bool, "tie_word_embeddings") is True
    return RecurrentConfig(
        hidden_size=width_of(c, seen),
        num_layers=agreed(c, "num_hidden_layers", seen.layers),
        intermediate_size=agreed(c, "intermediate_size", seen.rows(*INNER), inner),
        vocab_size=agreed(c, "vocab_size", seen.rows(*EMBEDDINGS)),
        max_position_embeddings=longest or 4096,
        mixer=mixer,
        channel_mix=channels,
        previous_first=isinstance(mixer, Rwkv6 | Rwkv7),
        norm_type=NormType.Layer,
        norm_eps=real(c, eps, 1e-5),
        embedding_norm=True,
        # released checkpoints say that they are tied and store two different matrices
        tie_word_embeddings=tied and seen.shape("head.weight") is None,
        tuned_state=seen.shape(".time_state") is not None,
    )


def real(c: Reader, key: str, default: float) -> float:
    """A real number, or a default."""
    found = c.get(float, key)
    return default if found is None else found


def width_of(c: Reader, seen: Evidence) -> int:
    """The width of the residual stream."""
    return agreed(c, "hidden_size", seen.columns(*EMBEDDINGS))


def inner_of(c: Reader, seen: Evidence, key: str = "attention_hidden_size") -> int:
    """The width of all heads together."""
    return agreed(c, key, seen.rows(*KEYS), width_of(c, seen))


def read4(c: Reader, seen: Evidence) -> RecurrentConfig:
    """RWKV-4."""
    mixer = Rwkv4(width=inner_of(c, seen))
    return whole(c, seen, mixer, ChannelMix.Gated, 4 * width_of(c, seen))


def group_eps(c: Reader) -> float:
    """The epsilon of the norm over heads, for sums that are not divided by 8.

    Training divided them by `head_size_divisor`; the first runtimes of RWKV-5 did not.
    """
    said = c.get(float, "group_norm_eps")
    divisor = real(c, "head_size_divisor", 8.0)
    return 1e-5 * divisor**2 if said is None else said


def head_size(c: Reader, seen: Evidence, *names: str) -> int:
    """How many keys a head has: by the tensors, the config, or as a rule."""
    shape = seen.shape(*names)
    found = None if shape is None or len(shape) < 2 or shape[1] < 2 else shape[1]  # noqa: PLR2004
    size = agreed(c, "head_size", found, HEAD)
    said = c.get(int, "num_attention_heads")  # of a head's size, in most of these configs
    inner = inner_of(c, seen)
    if said is not None and said not in (size, inner // size):
        raise ConfigError(
            f"{c.name} has num_attention_heads = {said}, which is neither the size of a head "
            f"({size}) nor how many there are ({inner // size})"
        )
    return size


@dataclass(frozen=True)
class Version:
    """What versions of RWKV-5 differ in."""

    gated: bool
    by_channel: bool


VERSIONS = {
    "5_0": Version(gated=False, by_channel=False),
    "5_1": Version(gated=True, by_channel=False),
    "5_2": Version(gated=True, by_channel=True),
}
"""By `model_version`."""


def version5(c: Reader, seen: Evidence) -> Version:
    """Which RWKV-5 this is: by the tensors, or the config."""
    said, decay = c.get(str, "model_version"), seen.shape("time_decay")
    if said is not None and said not in VERSIONS:
        raise ConfigError(f"{c.name} has model_version = {said!r}; there are {', '.join(VERSIONS)}")
    by_config = VERSIONS[said or "5_2"]
    if decay is None:
        return by_config
    by_channel = len(decay) > 1 and decay[1] > 1
    found = Version(gated=seen.shape("gate.weight") is not None, by_channel=by_channel)
    if said is not None and found != by_config:
        raise ConfigError(
            f"{c.name} has model_version = {said!r}, but the checkpoint's tensors make it {found}"
        )
    return found


def read5(c: Reader, seen: Evidence) -> RecurrentConfig:
    """RWKV-5."""
    decay, version = seen.shape("time_decay"), version5(c, seen)
    size = head_size(c, seen, "time_faaaa", "time_decay")
    if decay is not None and not version.by_channel:
        size = shared_out(c, inner_of(c, seen), decay[0], "width")  # a number for each head
    mixer = Rwkv5(
        heads=shared_out(c, inner_of(c, seen), size, "width"),
        key_size=size,
        value_size=size,
        gated=version.gated,
        by_channel=version.by_channel,
        norm_eps=group_eps(c),
    )
    return whole(c, seen, mixer, ChannelMix.Gated, narrow(width_of(c, seen)))


def narrow(width: int) -> int:
    """The channels of RWKV-5 and 6: 3.5 times the width, in steps of 32."""
    return int(width * 3.5) // 32 * 32


def wide(c: Reader, width: int, ratio: float) -> int:
    """The channels by fla's rule, in steps of 32."""
    return -(-int(width * real(c, "hidden_ratio", ratio)) // 32) * 32


def read6(c: Reader, seen: Evidence) -> RecurrentConfig:
    """RWKV-6, as Hugging Face, its authors or fla keep it."""
    width = width_of(c, seen)
    ours = seen.shape("x_bias") is not None or c.given("expand_k")
    if ours:
        return read6_fla(c, seen)
    size = head_size(c, seen, "time_faaaa")
    mixed, decay = seen.columns("time_maa_w1"), seen.columns("time_decay_w1")
    large = 2 if width >= LARGE else 1
    mixer = Rwkv6(
        heads=shared_out(c, inner_of(c, seen), size, "width"),
        key_size=size,
        value_size=size,
        mix_rank=agreed(c, "proj_low_rank_dim", mixed and mixed // 5, 32 * large),
        decay_rank=agreed(c, "gate_low_rank_dim", decay, 64 * large),
        norm_eps=group_eps(c),
    )
    return whole(c, seen, mixer, ChannelMix.Gated, narrow(width))


def read6_fla(c: Reader, seen: Evidence) -> RecurrentConfig:
    """RWKV-6 with fla's keys."""
    width, bonus = width_of(c, seen), seen.shape("attn.bonus")
    heads = agreed(c, "num_heads", None if bonus is None else bonus[0], 4)
    keys = int(width * real(c, "expand_k", 0.5))
    values = int(width * real(c, "expand_v", 1.0))
    if keys % heads or values % heads:
        raise ConfigError(f"{c.name}: {heads} heads cannot share {keys} keys and {values} values")
    mixer = Rwkv6(
        heads=heads,
        key_size=keys // heads,
        value_size=values // heads,
        mix_rank=agreed(c, "proj_low_rank_dim", None, 32),
        decay_rank=agreed(c, "gate_low_rank_dim", seen.rows("w_proj.linear.lora.0.weight"), 64),
        norm_eps=real(c, "norm_eps", 1e-5),
    )
    return whole(c, seen, mixer, ChannelMix.Gated, wide(c, width, 3.5))


def read7(c: Reader, seen: Evidence) -> RecurrentConfig:
    """RWKV-7."""
    width, bonus = width_of(c, seen), seen.shape(".r_k")
    found = bonus[1] if bonus is not None and len(bonus) == 2 else None  # noqa: PLR2004
    heads_said = c.get(int, "num_heads")
    even = width // heads_said if heads_said and not c.get(int, "head_dim") else HEAD
    size = agreed(c, "head_dim", found, even)
    heads = agreed(c, "num_heads", shared_out(c, width, size, "width"))
    refuse_other_values(c, width)
    mixer = Rwkv7(
        heads=heads,
        key_size=size,
        value_size=size,
        decay_rank=rank(c, seen, "decay_low_rank_dim", "w"),
        rate_rank=rank(c, seen, "a_low_rank_dim", "a"),
        value_rank=rank(c, seen, "v_low_rank_dim", "v"),
        gate_rank=rank(c, seen, "gate_low_rank_dim", "g"),
        norm_eps=size * real(c, "norm_eps", 1e-5),
    )
    return whole(c, seen, mixer, ChannelMix.Plain, wide(c, width, 4.0))


def refuse_other_values(c: Reader, width: int) -> None:
    """Values as wide as keys, in every layer."""
    listed = c.holds(list, "value_dim")
    said = c.numbers("value_dim") if listed else [c.get(int, "value_dim")]
    for one in said:
        if one is not None and one != width:
            raise ConfigError(f"{c.name}: value_dim = {one} is not hidden_size = {width}")


def rank(c: Reader, seen: Evidence, key: str, letter: str) -> int:
    """One of the low ranks, by the tensors or the config."""
    ours = seen.rows(f".{letter}_lora.lora.0.weight")
    found = seen.columns(f".att.{letter}1") if ours is None else ours
    if found is None and c.get(int, key) is None and letter == "v":
        return agreed(c, key, 1) if seen.layers == 1 else agreed(c, key, None)
    return agreed(c, key, found)


def eps_assumed(raw: Mapping[str, object], cfg: RecurrentConfig) -> tuple[str, ...]:
    """Which epsilon the norm over heads has, if nothing says so."""
    if raw.keys() & {"group_norm_eps", "head_size_divisor"} or not isinstance(cfg.mixer, Rwkv5):
        return ()
    return (
        f"the norm over heads has an epsilon of {cfg.mixer.norm_eps:g}; the first runtimes of "
        'RWKV-5 had 1e-5: {"group_norm_eps": 1e-5} in config.json',
    )


FIXED = {"norm_first": (True,), "norm_bias": (True,), "attn": (), "hidden_act": ("sqrelu",)}
"""fla's keys; attention in some layers, above all, is not modelled."""
TINY: Mapping[str, object] = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "intermediate_size": 40,
    "bos_token_id": 0,
}
"""Sizes of the tiny models that no two of are equal."""

UNEVEN: Mapping[str, object] = {**TINY, "head_size": 6, "attention_hidden_size": 30}
"""Five heads beside a stream that four would fill."""

RWKV4 = RecurrentFamily(
    "rwkv", read4, RWKV4_TABLES, INERT, tiny={**TINY, "attention_hidden_size": 20}
)
RWKV5 = RecurrentFamily("rwkv5", read5, RWKV5_TABLES, INERT, assumed=eps_assumed, tiny=UNEVEN)
RWKV6 = RecurrentFamily(
    "rwkv6",
    read6,
    RWKV6_TABLES,
    INERT,
    FIXED,
    tiny={**UNEVEN, "proj_low_rank_dim": 3, "gate_low_rank_dim": 4},
)
RWKV7 = RecurrentFamily(
    "rwkv7",
    read7,
    RWKV7_TABLES,
    INERT,
    FIXED,
    buffers=("blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2"),
    tiny={
        **TINY,
        "head_dim": 6,
        "decay_low_rank_dim": 3,
        "a_low_rank_dim": 7,
        "v_low_rank_dim": 2,
        "gate_low_rank_dim": 5,
    },
)
RWKVS = (RWKV4, RWKV5, RWKV6, RWKV7)


def unnamed(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, object] | None:
    """The config of a checkpoint in the authors' names that came without one, if it is that."""
    if "emb.weight" not in shapes or "blocks.0.ln0.weight" not in shapes:
        return None
    if any(name.endswith((".ffn.s_emb", ".ffn.s0", ".ffn.s_emb.weight")) for name in shapes):
        raise ConfigError(
            "this is RWKV-7 with an embedding of every token in every layer (DeepEmbed: "
            "ffn.s_emb), which is not modelled; RWKV-7 without it is"
        )
    marks = {"att.k_k": "rwkv7", "att.time_maa_x": "rwkv6", "att.ln_x.weight": "rwkv5"}
    found = [kind for mark, kind in marks.items() if f"blocks.0.{mark}" in shapes]
    return {"model_type": found[0] if found else "rwkv"}
