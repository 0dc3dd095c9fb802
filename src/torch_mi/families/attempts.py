# SPDX-License-Identifier: MIT OR Apache-2.0
"""One known family as the base of an unknown model: its reading, put right where it can be.

A key that the base does not know is read as the families do that know it; where the tensors say
otherwise than the rules, the tensors are believed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from torch_mi.config.transformer import TransformerConfig
from torch_mi.families.evidence import shown
from torch_mi.families.family import Family
from torch_mi.families.hidden import Feature
from torch_mi.families.readings import STRUCTURAL, Reading, Readings, harmless, plain_part
from torch_mi.families.rules import brief
from torch_mi.families.styles import Names


@dataclass
class Attempt:
    """One base's reading of a config and of a checkpoint's names."""

    raw: Mapping[str, object]
    readings: Readings
    names: Names
    buffers: list[str]
    """Patterns of tensors that are not parameters."""
    changes: list[str] = field(default_factory=list[str])
    issues: list[str] = field(default_factory=list[str])
    config: TransformerConfig | None = None

    @property
    def base(self) -> Family:
        return self.readings.family

    @property
    def exact(self) -> bool:
        """Whether every key and name is the base's own."""
        return not (self.issues or self.changes or self.names.borrowed)

    @property
    def unclear(self) -> tuple[Feature, ...]:
        """What is computed and does not show."""
        return self.readings.unclear


def explain_keys(attempt: Attempt, others: list[Readings]) -> None:
    """Find a meaning for keys that the base does not know: as families have it that do."""
    for key, value in attempt.readings.unread.items():
        if key in STRUCTURAL:
            continue
        lent = lent_by(others, key, attempt.readings.values.get("head_dim"))
        composed = [r for r in lent if r.field in ("embedding", "head")]
        free = all(plain_part(attempt.readings.values.get(r.field)) for r in composed)
        if lent and free:
            attempt.readings = attempt.readings.but({r.field: r for r in lent}, [key])
            attempt.changes += [f"{key} = {brief(value)} is read for {r.field}" for r in lent]
        elif not any(key in each.known for each in others) and (
            whose := harmless([r.family for r in others], key, value)
        ):
            attempt.readings = attempt.readings.but({}, [key])
            attempt.changes.append(f"{key} = {brief(value)} changes nothing, as in {whose}")


def lent_by(others: list[Readings], key: str, width: object) -> list[Reading]:
    """The fields that other families read from a key, if they agree on them."""
    found = dict[str, Reading]()
    for readings in others:
        unclear = {feature.field for feature in readings.unclear}
        alike = readings.values.get("head_dim") == width
        for name, reading in readings.fields.items() if alike else ():
            if key not in reading.keys or reading.error or name in unclear:
                continue
            if name in found and found[name].value != reading.value:
                return []
            found.setdefault(name, reading)
    return list(found.values())


def mend(attempt: Attempt, others: list[Readings]) -> None:
    """Read what the base's rules refuse as other families do, if those that can all agree."""
    for name, reading in attempt.readings.fields.items():
        if not reading.error:
            continue
        able = [
            each
            for each in others
            if name in each.fields
            and not each.fields[name].error
            and each.fields[name].keys >= reading.keys
            and each.values.get("head_dim") == attempt.readings.values.get("head_dim")
            and name not in {feature.field for feature in each.unclear}
        ]
        values = [each.fields[name].value for each in able]
        if able and all(value == values[0] for value in values):
            attempt.readings = attempt.readings.but({name: able[0].fields[name]})
            attempt.changes.append(f"{name} is read as in {able[0].family.model_type}")


def believe_tensors(attempt: Attempt) -> None:
    """Put right what the tensors show to be otherwise, unless a key says it in so many words."""
    readings = attempt.readings
    for each in shown(attempt.names, readings.values, attempt.raw):
        reading = readings.fields.get(each.field)
        if reading is not None and not reading.error and reading.value == each.value:
            continue
        default = TransformerConfig.__dict__.get(each.field)
        if reading is None and default == each.value:
            continue
        told = attempt.raw.get(SAID_BY.get(each.field, each.field))
        said = reading is not None and reading.keys and not reading.error
        said = said or (isinstance(told, bool) and told is not each.value)
        biased = attempt.readings.values.get("qkv_bias") is True
        if said and each.field in OUTRIGHT and not (each.field == "o_proj_bias" and biased):
            continue
        new = Reading(each.field, each.value, reading.keys if reading else frozenset())
        attempt.readings = attempt.readings.but({each.field: new})
        if reading is not None or each.value is not None:
            attempt.changes.append(f"{each.field} is {wording(each.value)}: {each.because}")


OUTRIGHT = ("qkv_bias", "o_proj_bias", "mlp_bias", "gated_mlp", "layout", "tie_word_embeddings")
"""Fields that a key can settle: tensors that say otherwise are then missing or without meaning."""

SAID_BY = {"qkv_bias": "attention_bias", "o_proj_bias": "attention_bias"}
"""Keys that speak of fields by other names, whatever a base makes of them."""


def wording(value: object) -> str:
    """A field's value in words."""
    if value is None or isinstance(value, bool):
        return {True: "on", False: "off", None: "absent"}[value]
    return str(value.value) if isinstance(value, Enum) else str(value)
