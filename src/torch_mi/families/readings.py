# SPDX-License-Identifier: MIT OR Apache-2.0
"""A config read by one family's rules, field by field: what each says, and from which keys."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch_mi.config.parts import Embedding, Head
from torch_mi.errors import ConfigError
from torch_mi.families.decoder import FIXED, INERT
from torch_mi.families.family import Family, same
from torch_mi.families.hidden import Feature, hidden
from torch_mi.families.rules import Reader, brief

SIZES = """
    head_dim hidden_size intermediate_size max_position_embeddings model_type num_attention_heads
    num_hidden_layers num_key_value_heads vocab_size
"""

STRUCTURAL = frozenset(SIZES.split())
"""Keys that count things, and speak of no arithmetic."""

PLAINLY_INERT = re.compile(
    r".*dropout.*|.*_pdrop|.*_drop_prob|.*token_ids?|init.*|.*_init|.*initializer.*|.*_version|.*_loss"
    r"|.*_loss_coef.*|.*router_aux.*|output_router_logits|gradient_.*|train.*|pretrain.*|license"
    r"|language|tokenizer.*|use_cache|.*flash_attn.*|.*flash_attention.*|fused_.*|unsloth_.*"
    r"|_.*|max_sequence_length|seq_length|bf16|fp16|fp32|torch_.*|dtype|use_return_dict|wandb.*"
)
"""Keys whose names say that they are about provenance, training or running."""


@dataclass(frozen=True)
class Reading:
    """What one rule says, and which keys of the config it looked at."""

    field: str
    value: object
    keys: frozenset[str]
    """Those that are set, as the config spells them, but not the structural ones."""
    error: str = ""


@dataclass(frozen=True)
class Readings:
    """A whole config, read by one family."""

    family: Family
    fields: Mapping[str, Reading]
    unread: Mapping[str, object]
    """Keys that are set and that the family does not know, as the config spells them."""
    absent: int
    """How many keys the family asked for in vain."""
    own: frozenset[str] = frozenset()
    """Keys that are set and have a meaning in this family."""
    known: frozenset[str] = frozenset()
    """Those, sizes, and what changes nothing."""
    wrong: tuple[str, ...] = ()
    """Keys whose values the family refuses."""

    @property
    def values(self) -> dict[str, object]:
        """The fields that could be read."""
        return {name: r.value for name, r in self.fields.items() if not r.error}

    @property
    def keys(self) -> dict[str, frozenset[str]]:
        """The keys that each field was read from."""
        return {name: r.keys for name, r in self.fields.items()}

    @cached_property
    def unclear(self) -> tuple[Feature, ...]:
        """What these fields compute that neither tensors nor keys show."""
        return tuple(hidden(self.values, self.keys))

    def but(self, readings: Mapping[str, Reading], explained: Sequence[str] = ()) -> "Readings":
        """These, with other readings of some fields and other keys explained."""
        unread = {key: value for key, value in self.unread.items() if key not in explained}
        return replace(self, fields={**self.fields, **readings}, unread=unread)


def readings_of(family: Family, raw: Mapping[str, object]) -> Readings:
    """What a family's rules make of a config, as far as they can."""
    try:
        respelt = family.respelt(raw)
    except ConfigError as error:
        return Readings(family, {}, {}, 0, wrong=(str(error),))
    spelt = {family.aliases.get(key, key): key for key in raw}
    fields, asked = dict[str, Reading](), set[str]()
    for name, rule in family.rules.items():
        c = Reader(respelt)
        value, error = None, ""
        try:
            value = rule(c)
        except ConfigError as cause:
            error = str(cause)
        given = {key for key in c.asked if respelt.get(key) is not None}
        asked |= c.asked
        keys = frozenset(spelt[key] for key in given - STRUCTURAL)
        fields[name] = Reading(name, value, keys, error)
    known = asked | family.inert | set(family.fixed)
    left = {spelt[k]: v for k, v in respelt.items() if v is not None and k not in known}
    unread = {k: v for k, v in left.items() if not PLAINLY_INERT.fullmatch(k)}
    absent = len([key for key in asked if respelt.get(key) is None])
    there = {key for key, value in respelt.items() if value is not None}
    special = there & (asked | set(family.fixed)) - set(FIXED) - STRUCTURAL - INERT
    own, all_known = (frozenset(spelt[k] for k in each) for each in (special, there & known))
    return Readings(family, fields, unread, absent, own, all_known, tuple(refused(family, respelt)))


def refused(family: Family, respelt: Mapping[str, object]) -> Iterator[str]:
    """Keys that the family models with other values only."""
    for key, values in family.fixed.items():
        value = respelt.get(key)
        if value is not None and not any(same(value, each) for each in values):
            modelled = " or ".join(repr(each) for each in values) or "no value"
            yield f"{key} = {brief(value)} is not modelled; {modelled} is"


def harmless(families: Sequence[Family], key: str, value: object) -> str:
    """The family by which a key changes nothing, if no family reads it and one lists it."""
    found = ""
    for family in families:
        name = family.aliases.get(key, key)
        if name in family.fixed:
            if not any(same(value, each) for each in family.fixed[name]):
                return ""
            found = found or family.model_type
        elif name in family.inert:
            found = found or family.model_type
    return found


def plain_part(value: object) -> bool:
    """Whether a field has nothing to lose by being replaced."""
    return value is None or value in (Embedding(), Head())
