# SPDX-License-Identifier: MIT OR Apache-2.0
"""A family for a `model_type` nobody wrote one for, from its config and its tensors' names.

Every known family is tried as a base: its rules read the config, its names are looked for under
whatever prefix the checkpoint has. Where the tensors say otherwise than the rules, the tensors are
believed; a key that the base does not know is read as the families do that know it. What then has
no explanation is an issue, and so is arithmetic that shows in neither. The base with the fewest
issues wins; if it has any, the model is refused.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

from torch_mi.config.transformer import TransformerConfig
from torch_mi.errors import ConfigError, ModelError
from torch_mi.families import FAMILIES
from torch_mi.families.attempts import Attempt, believe_tensors, explain_keys, mend, wording
from torch_mi.families.family import Family
from torch_mi.families.hidden import Feature
from torch_mi.families.hints import hinted
from torch_mi.families.names import match
from torch_mi.families.readings import (
    Readings,
    readings_of,
)
from torch_mi.families.rules import brief, constant
from torch_mi.families.sources import Shape, Source, source_name, source_of
from torch_mi.families.styles import (
    Kind,
    is_buffer,
    kinds_of,
    pattern_of,
    read_names,
    shared_pool,
    suffix_of,
)

Shapes = Callable[[TransformerConfig, Mapping[str, Shape]], Mapping[str, Shape]]
"""The shape of every parameter of a model of some config; an error if the stored ones rule it out.
"""

BASES = tuple(family for family in FAMILIES.values() if type(family) is Family)

UNSEEN = (
    "what shows in neither tensors nor keys is taken to be the plain case: norms multiply by their "
    "gain and not by 1 + gain, embeddings, scores, logits and what layers add are not scaled, "
    "rotary pairs lie half a head apart, and attention has no window; prove it with torch-mi verify"
)
"""What is said of every inferred model."""


@dataclass(frozen=True)
class Inferred:
    """What an unknown model was found to be, or why it was not."""

    family: Family
    config: TransformerConfig | None
    base: str
    """The known family it is read like."""
    issues: tuple[str, ...]
    assumptions: tuple[str, ...]


def infer(raw: Mapping[str, object], shapes: Mapping[str, Shape], measure: Shapes) -> Inferred:
    """What a model of an unknown `model_type` is, by its config and its tensors' shapes."""
    kinds = kinds_of(shapes)
    others = [readings_of(base, raw) for base in BASES]
    attempts = [
        attempted(raw, readings, table, kinds, others) for readings, table in likely(others, kinds)
    ]
    told = set(hinted(raw, BASES))
    attempts.sort(key=lambda a: cost(a, told))
    for each in attempts[:SERIOUS]:
        settle(each, shapes, measure)
        if not each.issues and not each.unclear:
            break
    best = min(attempts[:SERIOUS], key=lambda a: cost(a, told))
    for each in attempts:
        if best.names.borrowed and each.exact and each.config is None:
            settle(each, shapes, measure)
    doubts = doubts_of(best, attempts, others, told)
    issues = tuple(dict.fromkeys([*best.issues, *doubts]))
    return Inferred(
        family_of(best, str(raw.get("model_type"))),
        None if issues else best.config,
        best.base.model_type,
        issues,
        tuple(assumptions(best)),
    )


LIKELY, SERIOUS = 20, 12
"""How many bases are tried at all, and how many are measured against every tensor."""


def likely(
    others: list[Readings], kinds: Mapping[str, Kind]
) -> list[tuple[Readings, Mapping[str, Source]]]:
    """The bases that have most of the names, and of those the ones that know most keys."""
    present = {suffix_of(pattern.rpartition(".")[0]) for pattern in kinds}
    ranked = [
        (len(present - suffixes), len(each.unread), len(suffixes - present), each.absent, i, table)
        for i, each in enumerate(others)
        for table, suffixes in tables_of(each.family.model_type)
    ]
    ranked.sort(key=lambda rank: rank[:-1])
    return [(others[i], table) for *_, i, table in ranked[:LIKELY]]


@cache
def tables_of(name: str) -> tuple[tuple[Mapping[str, Source], frozenset[str]], ...]:
    """A family's tables, and the names within layers that each has."""
    return tuple(
        (table, frozenset(suffix_of(source_name(source)) for source in table.values()))
        for table in FAMILIES[name].tables()
    )


def cost(attempt: Attempt, told: set[str]) -> tuple[int, int, int, bool, int, int]:
    """How badly a base fits: the first difference decides."""
    missing = len([ours for ours in attempt.names.sources if not attempt.names.has(ours)])
    unhinted = attempt.base.model_type not in told
    return (
        len(attempt.issues),
        len(attempt.unclear),
        len(attempt.changes),
        unhinted,
        attempt.readings.absent,
        missing,
    )


@cache
def pool() -> Mapping[str, tuple[str, Source]]:
    """What names mean that mean one thing only."""
    return shared_pool(BASES)


@cache
def spellings() -> Mapping[str, str]:
    """What families call keys otherwise, where all that do so agree."""
    meant = dict[str, set[str]]()
    for family in BASES:
        for theirs, ours in family.aliases.items():
            meant.setdefault(theirs, set()).add(ours)
    return {theirs: ours.pop() for theirs, ours in meant.items() if len(ours) == 1}


def attempted(
    raw: Mapping[str, object],
    readings: Readings,
    table: Mapping[str, Source],
    kinds: Mapping[str, Kind],
    others: list[Readings],
) -> Attempt:
    """One base's reading, put right by the tensors and by other families' rules."""
    base = readings.family
    foreign = {k: v for k, v in spellings().items() if k in readings.unread and v not in raw}
    if foreign:
        base = replace(base, aliases={**foreign, **base.aliases})
        readings = readings_of(base, raw)
    buffers = [pattern for pattern in kinds if is_buffer(pattern, list(base.buffers))]
    stored = {pattern: kind for pattern, kind in kinds.items() if pattern not in buffers}
    attempt = Attempt(raw, readings, read_names(table, pool(), stored), buffers)
    explain_keys(attempt, others)
    mend(attempt, others)
    believe_tensors(attempt)
    attempt.issues += readings.wrong
    attempt.issues += dict.fromkeys(r.error for r in attempt.readings.fields.values() if r.error)
    attempt.issues += [
        f"config.json has {key} = {brief(value)}, which has no meaning here"
        for key, value in attempt.readings.unread.items()
    ]
    attempt.issues += [f"{kind} has no meaning here" for kind in attempt.names.unexplained()]
    return attempt


def settle(attempt: Attempt, shapes: Mapping[str, Shape], measure: Shapes) -> None:
    """Build the config and find a place for every tensor, shapes included."""
    if any(reading.error for reading in attempt.readings.fields.values()):
        return
    try:
        cfg = TransformerConfig(**cast("dict[str, Any]", attempt.readings.values))
        wanted = measure(cfg, shapes)
        found = match(cfg, wanted, attempt.names.sources, attempt.buffers, list(shapes))
    except (ConfigError, ModelError) as error:
        attempt.issues.append(str(error))
        return
    attempt.config = cfg
    attempt.issues += lacking(found.missing, attempt)
    extra = kinds_of({name: shapes[name] for name in found.extra}).values()
    said = {kind.pattern for kind in attempt.names.unexplained()}
    attempt.issues += [f"{kind} has no meaning here" for kind in extra if kind.pattern not in said]
    unlike = dict[str, str]()
    for p in found.placements:
        for name in p.theirs:
            if name in shapes and tuple(shapes[name]) != tuple(p.stored):
                kind = f"{name} has the shape {list(shapes[name])}; the config makes it"
                unlike.setdefault(p.ours.rpartition(".")[0][-12:], f"{kind} {list(p.stored)}")
    attempt.issues += unlike.values()


def lacking(missing: tuple[str, ...], attempt: Attempt) -> Iterator[str]:
    """Modules that the config asks for, by kind."""
    modules = dict[str, list[str]]()
    for name in missing:
        modules.setdefault(pattern_of(name).rpartition(".")[0], []).append(name)
    for module, names in modules.items():
        leaves = " and ".join(dict.fromkeys(name.rpartition(".")[2] for name in names))
        yield f"expected {module} ({leaves}), as in {attempt.base.model_type}; it is not there"


NAMED = "its names are those of"


def doubts_of(
    best: Attempt, attempts: list[Attempt], others: list[Readings], told: set[str]
) -> Iterator[str]:
    """Arithmetic that shows in nothing, and that a kinship suggests."""
    whole = {a.base.model_type for a in attempts if not a.issues}
    if best.unclear:
        yield doubt(best.base.model_type, best.unclear, NAMED, whole)
        return
    exact = [a for a in attempts if a.config is not None and a.exact]
    if best.names.borrowed and exact and exact[0].unclear:
        yield doubt(exact[0].base.model_type, exact[0].unclear, NAMED, whole)
        return
    stems = set[str]()
    for readings in sorted(others, key=lambda r: (len(r.unread), r.absent)):
        name = readings.family.model_type
        because = hint_of(readings, others, best.raw, told)
        more = readings.unclear
        if because and more and stem(name) not in stems and name != best.base.model_type:
            stems.add(stem(name))
            yield doubt(name, more, because, whole)


def doubt(name: str, features: Sequence[Feature], because: str, whole: set[str]) -> str:
    """What a known family would compute, and how to say that this model does so too."""
    words = ", ".join(feature.words for feature in features)
    fits = "; read so, every key and tensor has a meaning" if name in whole else ""
    return (
        f"{because} {name}, where {words}, and neither keys nor tensors show whether it is so "
        f"here; if this model computes what {name} does, set model_type to {name!r} in its "
        f"config.json{fits}"
    )


def hint_of(
    readings: Readings, others: list[Readings], raw: Mapping[str, object], told: set[str]
) -> str:
    """What makes one think of a family: its name, or a key that only its kin knows."""
    if readings.family.model_type in told:
        return f"the name {raw.get('model_type')!r} hints at"
    name = stem(readings.family.model_type)
    rest = [each.known for each in others if stem(each.family.model_type) != name]
    special = sorted(readings.own - frozenset().union(*rest))
    return f"the key {special[0]} hints at" if special else ""


def stem(name: str) -> str:
    """What versions of one family have in common."""
    return re.split(r"[\d_]", name)[0]


def assumptions(attempt: Attempt) -> Iterator[str]:
    """What was taken for granted, to be read by whoever uses the model."""
    base = attempt.base.model_type
    yield f"it is read like {base}"
    yield from attempt.changes
    for ours, theirs in attempt.names.borrowed.items():
        yield f"{theirs} is {ours}"
    parts = [s for s in map(source_of, attempt.names.sources.values()) if type(s).__name__ in FUSED]
    for theirs in dict.fromkeys(source.theirs for source in parts):
        if any(p.startswith(f"{theirs}.") for p in attempt.names.kinds):
            yield f"the parts of {theirs} lie in it as they do in {base}"
    for name, label in TOLD.items():
        reading = attempt.readings.fields.get(name)
        if reading is not None and not reading.keys and not reading.error:
            said = wording(reading.value)
            yield f"{label} is that of {base}, {said}: the config does not say"
    yield UNSEEN


FUSED = ("Rows", "Columns", "Grouped")
TOLD = {"norm_eps": "the epsilon of norms", "activation": "the nonlinearity"}
"""Fields whose absence from a config is worth a line."""


def family_of(attempt: Attempt, name: str) -> Family:
    """A family of one: what was found, as data."""
    values = attempt.readings.values
    return Family(
        name,
        rules={field: constant(value) for field, value in values.items()},
        sources=attempt.names.sources,
        inert=frozenset(attempt.raw),
        fixed={},
        buffers=attempt.buffers,
    )
