# SPDX-License-Identifier: MIT OR Apache-2.0
"""What checkpoints call the parameters of RWKV: Hugging Face's names, the authors', and fla's."""

from torch_mi.families.recurrent import Names
from torch_mi.families.rwkv_layouts import MixDown, MixUp
from torch_mi.families.sources import (
    Exponential,
    Flat,
    Named,
    NamedTransposed,
    RowOf,
    Source,
    ValueMajor,
)

Table = dict[str, Source]
MIX, CHANNELS = "blocks.*.mix", "blocks.*.channels"
SIX = "rwkvag"
"""The order in which older exports of RWKV-7 stack the mixing coefficients."""
FIVE = "rwkvg"
"""The order in which fla stacks those of RWKV-6."""


def outside(prefix: str, embedding: str, first: str, last: str, head: str) -> Table:
    """The names outside the layers, and that of the norm before the first."""
    return {
        "tokens": f"{prefix}{embedding}",
        "norm0": f"{prefix}{first}",
        "norm": f"{prefix}{last}",
        "head": head,
    }


HF_OUTSIDE = outside("rwkv.", "embeddings", "blocks.0.pre_ln", "ln_out", "head")
AUTHORS_OUTSIDE = outside("", "emb", "blocks.0.ln0", "ln_out", "head")
FLA_OUTSIDE = outside("model.", "embeddings", "layers.0.pre_norm", "norm", "lm_head")
HF, AUTHORS = ("rwkv.blocks.*", "attention", "feed_forward"), ("blocks.*", "att", "ffn")


def common(block: str, att: str, ffn: str) -> Table:
    """What versions 4 to 6 share, in Hugging Face's spelling or the authors'."""
    return {
        "blocks.*.norm1": f"{block}.ln1",
        "blocks.*.norm2": f"{block}.ln2",
        f"{MIX}.r": f"{block}.{att}.receptance",
        f"{MIX}.k": f"{block}.{att}.key",
        f"{MIX}.v": f"{block}.{att}.value",
        f"{MIX}.o": f"{block}.{att}.output",
        f"{CHANNELS}.key": f"{block}.{ffn}.key",
        f"{CHANNELS}.value": f"{block}.{ffn}.value",
        f"{CHANNELS}.receptance": f"{block}.{ffn}.receptance",
    }


def mixes(ours: str, theirs: str, letters: dict[str, str]) -> Table:
    """Mixing coefficients, whatever axes of one they are stored with."""
    return {f"{ours}.mix_{ours_}": Flat(f"{theirs}{name}") for ours_, name in letters.items()}


LONG = {"r": "receptance", "k": "key", "v": "value", "g": "gate"}
SHORT = {"r": "r", "k": "k", "v": "v", "g": "g"}


def first(place: tuple[str, str, str], top: Table, said: dict[str, str]) -> Table:
    """RWKV-4; `said` is how the mixing coefficients are spelt."""
    block, att, ffn = place
    at = f"{block}.{att}"
    return {
        **top,
        **common(*place),
        **mixes(MIX, f"{at}.time_mix_", {k: said[k] for k in "rkv"}),
        **mixes(CHANNELS, f"{block}.{ffn}.time_mix_", {k: said[k] for k in "rk"}),
        f"{MIX}.decay": Flat(f"{at}.time_decay"),
        f"{MIX}.bonus": Flat(f"{at}.time_first"),
    }


def head_norm(at: str, name: str) -> Table:
    """The norm of what each head reads, stored for all heads in a row."""
    return {f"{MIX}.norm.{leaf}": Flat(f"{at}.{name}.{leaf}") for leaf in ("weight", "bias")}


def second(place: tuple[str, str, str], top: Table, said: dict[str, str], bonus: Source) -> Table:
    """RWKV-5, with or without a gate."""
    at = f"{place[0]}.{place[1]}"
    return {
        **first(place, top, said),
        **mixes(MIX, f"{at}.time_mix_", said),
        **head_norm(at, "ln_x"),
        f"{MIX}.start": ValueMajor(f"{at}.time_state"),
        f"{MIX}.g": f"{at}.gate",
        f"{MIX}.bonus": bonus,
    }


def third(place: tuple[str, str, str], top: Table) -> Table:
    """RWKV-6."""
    block, att, ffn = place
    at = f"{block}.{att}"
    return {
        **top,
        **common(*place),
        **mixes(MIX, f"{at}.time_maa_", {letter: letter for letter in "xwkvrg"}),
        **mixes(CHANNELS, f"{block}.{ffn}.time_maa_", {"r": "r", "k": "k"}),
        **head_norm(at, "ln_x"),
        f"{MIX}.start": ValueMajor(f"{at}.time_state"),
        f"{MIX}.g": f"{at}.gate",
        f"{MIX}.mix_down": Named(f"{at}.time_maa_w1"),
        f"{MIX}.mix_up": Named(f"{at}.time_maa_w2"),
        f"{MIX}.decay.up.bias": Flat(f"{at}.time_decay"),
        f"{MIX}.decay.down.weight": NamedTransposed(f"{at}.time_decay_w1"),
        f"{MIX}.decay.up.weight": NamedTransposed(f"{at}.time_decay_w2"),
        f"{MIX}.bonus": Flat(f"{at}.time_faaaa"),
    }


def third_fla() -> Table:
    """RWKV-6 as fla keeps it."""
    block = "model.layers.*"
    at, ffn = f"{block}.attn", f"{block}.ffn"
    return {
        **FLA_OUTSIDE,
        "blocks.*.norm1": f"{block}.attn_norm",
        "blocks.*.norm2": f"{block}.ffn_norm",
        **{f"{MIX}.{letter}": f"{at}.{letter}_proj.linear" for letter in "rkvg"},
        f"{MIX}.o": f"{at}.o_proj",
        f"{MIX}.mix_x": Flat(f"{at}.x_proj.0.mu"),
        **{
            f"{MIX}.mix_{letter}": RowOf(f"{at}.x_bias", i, len("rwkvg"))
            for i, letter in enumerate("rwkvg")
        },
        f"{MIX}.mix_down": MixDown(f"{at}.x_proj.0.linear.weight"),
        f"{MIX}.mix_up": MixUp(f"{at}.x_proj.2.weight"),
        f"{MIX}.decay.down": f"{at}.w_proj.linear.lora.0",
        f"{MIX}.decay.up": f"{at}.w_proj.linear.lora.2",
        f"{MIX}.bonus": Flat(f"{at}.bonus"),
        **head_norm(at, "g_norm"),
        f"{MIX}.start": ValueMajor(f"{at}.time_state"),
        f"{CHANNELS}.mix_k": Flat(f"{ffn}.key.mu"),
        f"{CHANNELS}.mix_r": Flat(f"{ffn}.receptance.mu"),
        f"{CHANNELS}.key": f"{ffn}.key.linear",
        f"{CHANNELS}.receptance": f"{ffn}.receptance.linear",
        f"{CHANNELS}.value": f"{ffn}.value",
    }


LOW = {"decay": "w", "rate": "a", "value": "v", "gate": "g"}
"""Our low ranks and their letters."""


def fourth_fla(*, stacked: bool) -> Table:
    """RWKV-7 as fla keeps it; older exports stack the mixing coefficients."""
    block = "model.layers.*"
    at, ffn = f"{block}.attn", f"{block}.ffn"
    each: Table = {f"{MIX}.mix_{letter}": Flat(f"{at}.x_{letter}") for letter in SIX}
    if stacked:
        each = {f"{MIX}.mix_{x}": RowOf(f"{at}.x_x", i, len(SIX)) for i, x in enumerate(SIX)}
    return {
        **FLA_OUTSIDE,
        "blocks.*.norm1": f"{block}.attn_norm",
        "blocks.*.norm2": f"{block}.ffn_norm",
        **{f"{MIX}.{letter}": f"{at}.{letter}_proj" for letter in "rkvo"},
        **each,
        **{f"{MIX}.{ours}.down": f"{at}.{x}_lora.lora.0" for ours, x in LOW.items()},
        **{f"{MIX}.{ours}.up": f"{at}.{x}_lora.lora.2" for ours, x in LOW.items()},
        f"{MIX}.erased": Flat(f"{at}.k_k"),
        f"{MIX}.kept": Flat(f"{at}.k_a"),
        f"{MIX}.bonus": Flat(f"{at}.r_k"),
        **head_norm(at, "g_norm"),
        f"{MIX}.start": ValueMajor(f"{at}.time_state"),
        f"{CHANNELS}.mix_k": Flat(f"{ffn}.x_k"),
        f"{CHANNELS}.key": f"{ffn}.key",
        f"{CHANNELS}.value": f"{ffn}.value",
    }


def fourth_authors() -> Table:
    """RWKV-7 as its authors keep it."""
    block = "blocks.*"
    at, ffn = f"{block}.att", f"{block}.ffn"
    names = {"r": "receptance", "k": "key", "v": "value", "o": "output"}
    return {
        **AUTHORS_OUTSIDE,
        "blocks.*.norm1": f"{block}.ln1",
        "blocks.*.norm2": f"{block}.ln2",
        **{f"{MIX}.{letter}": f"{at}.{name}" for letter, name in names.items()},
        **{f"{MIX}.mix_{letter}": Flat(f"{at}.x_{letter}") for letter in SIX},
        **{f"{MIX}.{o}.down.weight": NamedTransposed(f"{at}.{x}1") for o, x in LOW.items()},
        **{f"{MIX}.{o}.up.weight": NamedTransposed(f"{at}.{x}2") for o, x in LOW.items()},
        **{f"{MIX}.{o}.up.bias": Flat(f"{at}.{x}0") for o, x in LOW.items() if x != "g"},
        f"{MIX}.erased": Flat(f"{at}.k_k"),
        f"{MIX}.kept": Flat(f"{at}.k_a"),
        f"{MIX}.bonus": Flat(f"{at}.r_k"),
        **head_norm(at, "ln_x"),
        f"{MIX}.start": ValueMajor(f"{at}.time_state"),
        f"{CHANNELS}.mix_k": Flat(f"{ffn}.x_k"),
        f"{CHANNELS}.key": f"{ffn}.key",
        f"{CHANNELS}.value": f"{ffn}.value",
    }


def bonuses(at: str) -> tuple[Source, Source]:
    """RWKV-5's bonus: as it is, or under an older name and as a logarithm."""
    return Flat(f"{at}.time_faaaa"), Exponential(f"{at}.time_first")


PLACES = ((HF, HF_OUTSIDE, LONG), (AUTHORS, AUTHORS_OUTSIDE, SHORT))
RWKV4_TABLES: tuple[Names, ...] = tuple(first(*each) for each in PLACES)
RWKV5_TABLES: tuple[Names, ...] = tuple(
    second(place, top, said, bonus)
    for place, top, said in PLACES
    for bonus in bonuses(f"{place[0]}.{place[1]}")
)
RWKV6_TABLES: tuple[Names, ...] = (
    third(HF, HF_OUTSIDE),
    third(AUTHORS, AUTHORS_OUTSIDE),
    third_fla(),
)
RWKV7_TABLES: tuple[Names, ...] = (
    fourth_fla(stacked=False),
    fourth_fla(stacked=True),
    fourth_authors(),
)
