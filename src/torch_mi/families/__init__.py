# SPDX-License-Identifier: MIT OR Apache-2.0
"""Model families: from a `config.json` to arithmetic, from checkpoint tensors to parameters."""

import dataclasses
from collections.abc import Mapping
from typing import cast

from torch_mi.config.transformer import TransformerConfig
from torch_mi.errors import ConfigError, did_you_mean
from torch_mi.families.decoder import DECODERS
from torch_mi.families.family import Family
from torch_mi.families.gemma3 import GEMMAS, TEXT
from torch_mi.families.gpt import GPTS
from torch_mi.families.linear_attention import LINEAR_ATTENTIONS
from torch_mi.families.linear_bias import LINEAR_BIASES
from torch_mi.families.modern import MODERN
from torch_mi.families.moe import MIXTURES
from torch_mi.families.names import Placement, Plan
from torch_mi.families.own import OWN
from torch_mi.families.parallel import PARALLEL
from torch_mi.families.recurrent import RecurrentFamily
from torch_mi.families.refusals import code_of, foreign, headless, no_model
from torch_mi.families.remote import REMOTE
from torch_mi.families.rwkv import RWKVS
from torch_mi.families.state_space import STATE_SPACES

__all__ = [
    "FAMILIES",
    "RECURRENTS",
    "Family",
    "Placement",
    "Plan",
    "RecurrentFamily",
    "eos_token_ids",
    "find_family",
    "read_config",
    "register",
]

FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in sorted(
        (*DECODERS, *GPTS, *PARALLEL, *LINEAR_BIASES, *MODERN, *GEMMAS, *REMOTE, *MIXTURES),
        key=lambda f: f.model_type,
    )
}
"""By `model_type`."""


RECURRENTS: Mapping[str, RecurrentFamily] = {
    family.model_type: family for family in (*RWKVS, *STATE_SPACES, *LINEAR_ATTENTIONS)
}
"""Families of recurrent models, by `model_type`."""


def register(family: Family) -> None:
    """Make a family known, as if it were one of those here; its `model_type` must be new."""
    name = family.model_type
    if name in FAMILIES or name in RECURRENTS or name == OWN.model_type:
        raise ConfigError(f"there is a family {name!r} already; give this one another model_type")
    fields = {field.name: field for field in dataclasses.fields(TransformerConfig)}
    if unknown := [rule for rule in family.rules if rule not in fields]:
        raise ConfigError(
            f"{name} has a rule for {unknown[0]!r}, which no TransformerConfig has"
            f"{did_you_mean(unknown[0], fields)}"
        )
    must = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
    if missing := [field for field in must if field not in family.rules]:
        raise ConfigError(f"{name} has no rule for {', '.join(missing)}")
    cast("dict[str, Family]", FAMILIES)[name] = family


def find_family(raw: Mapping[str, object]) -> Family:
    """The family that a parsed `config.json` names."""
    name = type_of(raw)
    if name == OWN.model_type:
        return OWN
    if name in RECURRENTS:
        raise ConfigError(
            f"{name!r} is recurrent, and no transformer: RECURRENTS[{name!r}].config reads it"
        )
    if name not in FAMILIES:
        known = [*FAMILIES, *RECURRENTS]
        raise ConfigError(
            f"unsupported model_type: {name!r}; supported are {', '.join(known)}"
            f"{did_you_mean(name, known)}{code_of(raw)}"
        )
    return FAMILIES[name]


def type_of(raw: Mapping[str, object]) -> str:
    """The `model_type` of a config that may be of a language model, be it known here or not."""
    if wrong := no_model(raw):
        raise ConfigError(wrong)
    name = raw.get("model_type")
    if not isinstance(name, str):
        raise ConfigError("config.json is missing 'model_type'")
    known = name in FAMILIES or name in RECURRENTS
    wrong = "" if known else foreign(raw, name)
    if wrong := wrong or headless(raw):
        raise ConfigError(wrong)
    return name


def read_config(raw: Mapping[str, object]) -> tuple[Family, TransformerConfig]:
    """The family of a parsed `config.json`, and what its model computes."""
    family = find_family(raw)
    return family, family.config(raw)


def eos_token_ids(raw: Mapping[str, object]) -> tuple[int, ...]:
    """The tokens that end a text, by a `config.json` or `generation_config.json`."""
    value = raw.get("eos_token_id")
    text = raw.get(TEXT)
    if value is None and isinstance(text, dict):
        value = cast("dict[str, object]", text).get("eos_token_id")
    ids = cast("list[object]", value if isinstance(value, list) else [value])
    ids = [each for each in ids if each is not None]
    for each in ids:
        if type(each) is not int:
            raise ConfigError(f"eos_token_id = {value!r} is not a token id or a list of them")
    return cast("tuple[int, ...]", tuple(ids))
