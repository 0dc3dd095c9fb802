# SPDX-License-Identifier: MIT OR Apache-2.0
"""GLA, RetNet, HGRN2 and DeltaNet, as flash-linear-attention keeps them."""

from collections.abc import Callable
from typing import Any, cast

from torch_mi.config.activation import Activation
from torch_mi.config.linear import Conv, DeltaNet, Gla, Hgrn2, KeyActivation, KeyNorm, RetNet
from torch_mi.config.parts import NormType, member
from torch_mi.config.recurrent import ChannelMix, Mixer, RecurrentConfig
from torch_mi.errors import ConfigError
from torch_mi.families.evidence_recurrent import Evidence, agreed, shared_out
from torch_mi.families.recurrent import Names, RecurrentFamily
from torch_mi.families.rules import Reader, flag, number
from torch_mi.families.rwkv import INERT
from torch_mi.families.sources import Named, Rows, Source

MIX, ATTN, MLP = "blocks.*.mix", "model.layers.*.attn", "model.layers.*.mlp"
DIVISOR = 16.0
"""What GLA's logarithms of decays are divided by; no config says otherwise."""
THETA = 10000.0
"""The base of RetNet's rotary embedding."""
STEP = 256
"""The channels of an MLP are a multiple of it, unless a config says how many there are."""
NORM = 1e-5
"""HGRN2's norm of what is read has this epsilon, whatever `norm_eps` is for the others."""

FLA = frozenset(
    """
    attn_mode conv_bias fuse_swiglu powglu_power use_output_norm
    """.split()  # noqa: SIM905 - shorter than a list
)
FIXED = {
    "attn": (),
    "attnres_block_size": (),
    "elementwise_affine": (True,),
    "hidden_act": ("swish",),
}
"""Attention in some layers, above all, is not modelled."""
ACTIVATIONS = {"relu": Activation.Relu, "silu": Activation.Silu, "swish": Activation.Silu}


def model(c: Reader, seen: Evidence, mixer: Mixer, ratio: float = 4.0) -> RecurrentConfig:
    """What all have around their mixing."""
    wide, ratio = width(c, seen), real(c, "hidden_ratio", ratio)
    inner = -(-int(wide * ratio * 2 / 3) // STEP) * STEP
    return RecurrentConfig(
        hidden_size=wide,
        num_layers=agreed(c, "num_hidden_layers", seen.layers),
        intermediate_size=agreed(
            c, "intermediate_size", seen.columns("mlp.down_proj.weight"), inner
        ),
        vocab_size=agreed(c, "vocab_size", seen.rows("embeddings.weight")),
        max_position_embeddings=c.get(int, "max_position_embeddings") or 2048,
        mixer=mixer,
        channel_mix=ChannelMix.Swiglu,
        previous_first=False,
        norm_type=NormType.RmsFloat,
        norm_eps=eps(c),
        embedding_norm=False,
        tie_word_embeddings=truth(c, "tie_word_embeddings", default=False),
    )


def width(c: Reader, seen: Evidence) -> int:
    """The width of the residual stream."""
    return agreed(c, "hidden_size", seen.columns("embeddings.weight"))


def real(c: Reader, key: str, default: float) -> float:
    """A real number, or a default."""
    return cast("float", number(key, default)(c))


def truth(c: Reader, key: str, *, default: bool) -> bool:
    """A truth value, or a default."""
    return cast("bool", flag(key, default=default)(c))


def eps(c: Reader) -> float:
    """What norms add to the mean square."""
    return real(c, "norm_eps", 1e-6)


def heads(c: Reader, seen: Evidence, expand: tuple[float, float], default: int) -> dict[str, Any]:
    """How many heads there are, and the sizes of their keys and values."""
    wide = width(c, seen)
    keys = int(wide * real(c, "expand_k", expand[0]))
    values = int(wide * real(c, "expand_v", expand[1]))
    size = seen.rows("g_norm_swish_gate.weight", "g_norm.weight", "o_norm.weight")
    found = None if size is None else shared_out(c, values, size, "width of values")
    count = agreed(c, "num_heads", found, default)
    return {
        "heads": count,
        "key_size": keys // count if keys % count == 0 else shared_out(c, keys, count, "width"),
        "value_size": values // count
        if values % count == 0
        else shared_out(c, values, count, "width"),
    }


def conv(c: Reader, seen: Evidence, *, default: bool) -> Conv | None:
    """The short convolution, if there is one."""
    size = agreed(c, "conv_size", seen.columns("q_conv1d.weight"), 4)
    used = truth(c, "use_short_conv", default=default)
    return Conv(size=size, bias=False) if used else None


def feature(c: Reader) -> Activation | None:
    """What queries and keys go through."""
    name = c.get(str, "feature_map")
    if name is not None and name not in ACTIVATIONS:
        raise ConfigError(
            f"{c.name}: feature_map {name!r} is not modelled; known are {', '.join(ACTIVATIONS)}"
        )
    return None if name is None else ACTIVATIONS[name]


def read_gla(c: Reader, seen: Evidence) -> RecurrentConfig:
    """Gated linear attention."""
    sizes = heads(c, seen, (0.5, 1.0), 4)
    mixer = Gla(
        **sizes,
        kv_heads=c.get(int, "num_kv_heads") or sizes["heads"],
        decay_rank=agreed(c, "gate_low_rank_dim", seen.rows("gk_proj.0.weight"), 16),
        decay_divisor=real(c, "gate_logit_normalizer", DIVISOR),
        least_decay=c.get(float, "clamp_min"),
        activation=feature(c),
        conv=conv(c, seen, default=False),
        gated=truth(c, "use_output_gate", default=True),
        norm_eps=eps(c),
    )
    return model(c, seen, mixer)


def read_retnet(c: Reader, seen: Evidence) -> RecurrentConfig:
    """Retention."""
    sizes = heads(c, seen, (1.0, 2.0), 8)
    mixer = RetNet(
        **sizes,
        kv_heads=c.get(int, "num_kv_heads") or sizes["heads"],
        theta=THETA,
        activation=feature(c),
        gated=truth(c, "use_output_gate", default=True),
        norm_eps=eps(c),
    )
    return model(c, seen, mixer, ratio=2.0)


def read_hgrn2(c: Reader, seen: Evidence) -> RecurrentConfig:
    """HGRN2: `expand_ratio` keys for each head, and as many heads as the width has room for."""
    wide, said = width(c, seen), c.get(int, "num_heads")
    size = c.get(int, "expand_ratio") or (
        128 if said is None else shared_out(c, wide, said, "width")
    )
    count = agreed(c, "num_heads", shared_out(c, wide, size, "width"))
    mixer = Hgrn2(
        heads=count,
        key_size=size,
        value_size=wide // count,
        conv=conv(c, seen, default=False),
        bounded=truth(c, "use_lower_bound", default=True),
        norm_eps=NORM,
    )
    return model(c, seen, mixer)


def read_delta_net(c: Reader, seen: Evidence) -> RecurrentConfig:
    """The delta rule."""
    mixer = DeltaNet(
        **heads(c, seen, (1.0, 1.0), 16),
        conv=conv(c, seen, default=True),
        gated=truth(c, "use_gate", default=False),
        activation=member(KeyActivation, c.get(str, "qk_activation") or "silu"),
        norm=member(KeyNorm, c.get(str, "qk_norm") or "l2"),
        rated=truth(c, "use_beta", default=True),
        most_rate=2.0 if truth(c, "allow_neg_eigval", default=False) else 1.0,
        norm_eps=eps(c),
    )
    return model(c, seen, mixer)


def halves(cfg: Any) -> tuple[int, int]:
    """Older exports keep both ways into the MLP in one matrix."""
    return (cfg.intermediate_size, cfg.intermediate_size)


def names(letters: str, norm: str, own: dict[str, Source]) -> tuple[Names, ...]:
    """The names of all; `letters` are what this one calls queries, keys and values."""
    common: dict[str, Source] = {
        "tokens": "model.embeddings",
        "norm": "model.norm",
        "head": "lm_head",
        "blocks.*.norm1": "model.layers.*.attn_norm",
        "blocks.*.norm2": "model.layers.*.mlp_norm",
        **{f"{MIX}.qkv.{o}": f"{ATTN}.{t}_proj" for o, t in zip("qkv", letters, strict=True)},
        **{
            f"{MIX}.qkv.convs.{o}": f"{ATTN}.{t}_conv1d"
            for o, t in zip("qkv", letters, strict=True)
        },
        f"{MIX}.g": f"{ATTN}.g_proj",
        f"{MIX}.o": f"{ATTN}.o_proj",
        f"{MIX}.norm": f"{ATTN}.{norm}",
        "blocks.*.channels.down": f"{MLP}.down_proj",
        **own,
    }
    apart: dict[str, Source] = {x: f"{MLP}.{x}_proj" for x in ("gate", "up")}
    one: dict[str, Source] = {
        x: Rows(f"{MLP}.gate_proj", halves, i) for i, x in enumerate(("gate", "up"))
    }
    return tuple(
        common | {f"blocks.*.channels.{x}": source for x, source in into.items()}
        for into in (apart, one)
    )


LOW: dict[str, Source] = {
    f"{MIX}.decay.down": f"{ATTN}.gk_proj.0",
    f"{MIX}.decay.up": f"{ATTN}.gk_proj.1",
}
NORMS = ("g_norm_swish_gate", "g_norm")
"""Where the norm and the gate are one kernel, and where they are two."""
Read = Callable[[Reader, Evidence], RecurrentConfig]
TINY = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "intermediate_size": 40,
    "bos_token_id": 0,
}

GLA = RecurrentFamily(
    "gla",
    read_gla,
    tuple(table for norm in NORMS for table in names("qkv", norm, LOW)),
    INERT | FLA,
    FIXED | {"use_gk": (True,), "use_gv": (False,)},
    tiny=TINY | {"num_heads": 4, "num_kv_heads": 2, "expand_v": 1.5, "gate_low_rank_dim": 5},
)
RETNET = RecurrentFamily(
    "retnet",
    read_retnet,
    tuple(table for norm in NORMS for table in names("qkv", norm, {})),
    INERT | FLA | {"use_short_conv", "conv_size"},
    FIXED,
    tiny=TINY | {"num_heads": 3, "expand_k": 0.5, "expand_v": 1.5},
)
HGRN2 = RecurrentFamily(
    "hgrn2",
    read_hgrn2,
    names("qfi", "g_norm", {"bounds": Named("model.lower_bounds")}),
    INERT | FLA,
    FIXED,
    tiny=TINY | {"expand_ratio": 6},
)
DELTA_NET = RecurrentFamily(
    "delta_net",
    read_delta_net,
    names("qkv", "o_norm", {f"{MIX}.rate": f"{ATTN}.b_proj"}),
    INERT | FLA,
    FIXED | {"share_conv_kernel": (False,), "use_elu": (False,), "use_rope": (False,)},
    tiny=TINY | {"num_heads": 4, "expand_v": 1.5, "use_gate": True, "allow_neg_eigval": True},
)
LINEAR_ATTENTIONS = (GLA, RETNET, HGRN2, DELTA_NET)
