# SPDX-License-Identifier: MIT OR Apache-2.0
"""Mamba and Mamba-2, as Hugging Face keeps them."""

import math
from typing import cast

from torch_mi.config.linear import Conv, Mamba, Mamba2
from torch_mi.config.parts import NormType
from torch_mi.config.recurrent import ChannelMix, Mixer, RecurrentConfig
from torch_mi.errors import ConfigError
from torch_mi.families.evidence_recurrent import Evidence, agreed
from torch_mi.families.recurrent import Names, RecurrentFamily
from torch_mi.families.rules import Reader, brief, flag, integer, number
from torch_mi.families.rwkv import INERT
from torch_mi.families.sources import Named

MIX, THEIRS = "blocks.*.mix", "backbone.layers.*.mixer"
WIDTH = 16
"""So many dimensions of the stream for each of the step size's, unless something says otherwise."""

BOTH = frozenset(
    """
    d_inner d_model fused_add_norm n_layer pad_vocab_size_multiple rescale_prenorm_residual
    residual_in_fp32 ssm_cfg time_step_floor time_step_init_scheme time_step_max time_step_min
    time_step_scale use_associative_scan use_mambapy layer_types
    """.split()  # noqa: SIM905 - shorter than a list
)
"""How weights were drawn, how kernels run, and what was read off other keys before."""
FIXED = {"hidden_act": ("silu", "swish"), "rms_norm": (True,)}


def model(c: Reader, seen: Evidence, mixer: Mixer, *, tied: bool) -> RecurrentConfig:
    """What both have around their mixing."""
    rows = seen.rows("embeddings.weight", "embedding.weight")
    return RecurrentConfig(
        hidden_size=width(c, seen),
        num_layers=agreed(c, "num_hidden_layers", seen.layers),
        intermediate_size=0,
        vocab_size=agreed(c, "vocab_size", rows),
        max_position_embeddings=c.get(int, "max_position_embeddings") or 2048,
        mixer=mixer,
        channel_mix=ChannelMix.Absent,
        previous_first=False,
        norm_type=NormType.Rms,
        norm_eps=eps(c),
        embedding_norm=False,
        tie_word_embeddings=cast("bool", flag("tie_word_embeddings", default=tied)(c)),
    )


def width(c: Reader, seen: Evidence) -> int:
    """The width of the residual stream."""
    return agreed(c, "hidden_size", seen.columns("embeddings.weight", "embedding.weight"))


def eps(c: Reader) -> float:
    """What every norm adds to the mean square."""
    return cast("float", number("layer_norm_epsilon", 1e-5)(c))


def conv(c: Reader, seen: Evidence) -> Conv:
    """The short convolution."""
    return Conv(
        size=agreed(c, "conv_kernel", seen.columns("conv1d.weight"), 4),
        bias=cast("bool", flag("use_conv_bias", default=True)(c)),
    )


def inner(c: Reader, seen: Evidence) -> int:
    """The channels that are mixed."""
    found = seen.columns("out_proj.weight")
    wide = math.floor(cast("float", number("expand", 2.0)(c)) * width(c, seen))
    if found is not None and found != wide:
        raise ConfigError(
            f"{c.name} has expand = {c.get(float, 'expand') or 2:g}, {wide} channels, but the "
            f"checkpoint's tensors have {found}"
        )
    return agreed(c, "intermediate_size", wide)


def read1(c: Reader, seen: Evidence) -> RecurrentConfig:
    """Mamba."""
    found = seen.columns("dt_proj.weight")
    if c.holds(str, "time_step_rank"):
        if c.get(str, "time_step_rank") != "auto":
            raise ConfigError(f"{c.name}: time_step_rank is neither a whole number nor 'auto'")
        rank = found or math.ceil(width(c, seen) / WIDTH)
    else:
        rank = agreed(c, "time_step_rank", found, math.ceil(width(c, seen) / WIDTH))
    mixer = Mamba(
        heads=inner(c, seen),
        key_size=agreed(c, "state_size", seen.columns("A_log"), 16),
        step_rank=rank,
        conv=conv(c, seen),
        bias=cast("bool", flag("use_bias", default=False)(c)),
    )
    return model(c, seen, mixer, tied=True)


def read2(c: Reader, seen: Evidence) -> RecurrentConfig:
    """Mamba-2."""
    wide = inner(c, seen)
    heads = agreed(c, "num_heads", seen.rows("A_log"), 128)
    size = agreed(c, "head_dim", None, wide // heads)
    if heads * size != wide:
        raise ConfigError(
            f"{c.name}: {heads} heads of {size} are not the {wide} channels there are"
        )
    least, most = limits(c)
    mixer = Mamba2(
        heads=heads,
        key_size=agreed(c, "state_size", None, 128),
        value_size=size,
        groups=cast("int", integer("n_groups", 8)(c)),
        conv=conv(c, seen),
        bias=cast("bool", flag("use_bias", default=False)(c)),
        norm_eps=eps(c),
        least_step=least,
        most_step=most,
    )
    return model(c, seen, mixer, tied=False)


def limits(c: Reader) -> tuple[float, float | None]:
    """Between what the step size stays; the upper end may be infinite, however that is spelled."""
    said = cast("list[object]", c.get(list, "time_step_limit") or [0.0, math.inf])
    ends = [math.inf if each == {"__float__": "Infinity"} else each for each in said]
    numbers = [float(each) for each in ends if isinstance(each, int | float)]
    if len(numbers) != 2 or len(ends) != 2 or not 0 <= numbers[0] <= numbers[1]:  # noqa: PLR2004
        raise ConfigError(f"{c.name} has time_step_limit = {brief(said)}, which are no two bounds")
    return numbers[0], None if math.isinf(numbers[1]) else numbers[1]


def names(embedding: str, own: Names) -> Names:
    """The names of both, and what only one has."""
    return {
        "tokens": f"backbone.{embedding}",
        "norm": "backbone.norm_f",
        "head": "lm_head",
        "blocks.*.norm1": "backbone.layers.*.norm",
        f"{MIX}.enter": f"{THEIRS}.in_proj",
        f"{MIX}.conv": f"{THEIRS}.conv1d",
        f"{MIX}.decay": Named(f"{THEIRS}.A_log"),
        f"{MIX}.skip": Named(f"{THEIRS}.D"),
        f"{MIX}.o": f"{THEIRS}.out_proj",
        **own,
    }


FIRST: Names = {f"{MIX}.select": f"{THEIRS}.x_proj", f"{MIX}.step": f"{THEIRS}.dt_proj"}
SECOND: Names = {f"{MIX}.step_bias": Named(f"{THEIRS}.dt_bias"), f"{MIX}.norm": f"{THEIRS}.norm"}
TINY = {"hidden_size": 24, "num_hidden_layers": 3, "bos_token_id": 0}

MAMBA = RecurrentFamily(
    "mamba",
    read1,
    tuple(names(embedding, FIRST) for embedding in ("embeddings", "embedding")),
    INERT | BOTH,
    FIXED,
    tiny=TINY | {"state_size": 5, "time_step_rank": 7, "use_bias": True},
)
MAMBA2 = RecurrentFamily(
    "mamba2",
    read2,
    tuple(names(embedding, SECOND) for embedding in ("embeddings", "embedding")),
    INERT | BOTH | {"chunk_size", "time_step_rank", "norm_before_gate"},
    FIXED,
    tiny=TINY
    | {
        "num_heads": 6,
        "head_dim": 8,
        "state_size": 5,
        "n_groups": 2,
        "time_step_limit": [0.01, 2.0],
    },
)
STATE_SPACES = (MAMBA, MAMBA2)
