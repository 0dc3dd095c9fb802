# SPDX-License-Identifier: MIT OR Apache-2.0
"""Whether a config and a checkpoint's tensors make a model here.

If not, everything that is in the way: what was expected, what was found, whose names these are.
"""

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch_mi.config.recurrent import RecurrentConfig
from torch_mi.config.transformer import TransformerConfig
from torch_mi.errors import ConfigError, ModelError
from torch_mi.families import FAMILIES, OWN, RECURRENTS, read_config, type_of
from torch_mi.families.auto import BASES, Shapes, infer
from torch_mi.families.family import Family
from torch_mi.families.names import Match, Placement, Plan, match
from torch_mi.families.own import RECURRENT
from torch_mi.families.readings import readings_of
from torch_mi.families.refusals import classes, code_of
from torch_mi.families.rules import brief
from torch_mi.families.sources import Shape, source_name
from torch_mi.families.styles import (
    LAYER,
    Kind,
    Style,
    kinds_of,
    layer_prefix,
    pattern_of,
    style_of,
)

Headers = Callable[[], Mapping[str, Shape]]
"""The shape of every tensor of a checkpoint, when asked for."""

USUAL = ("llama",)
"""Of several families with the same names, the one to speak of."""

SHOWN = 12
"""How many lines are said of one sort."""

HEADS = ("score.weight", "classifier.weight", "qa_outputs.weight", "v_head.summary.weight")
"""Tensors of models that do not predict tokens."""


@dataclass(frozen=True)
class Diagnosis:
    """What a model is here, or why it is nothing."""

    model_type: str
    family: Family | None
    config: TransformerConfig | None
    read_like: str
    """The known family whose rules and names were used, if any fits."""
    inferred: bool
    naming: str
    """Whose names the tensors have, as far as that can be told."""
    issues: tuple[str, ...]
    assumptions: tuple[str, ...] = ()

    def into_result(self) -> tuple[Family, TransformerConfig]:
        """What was found; an error that lists every issue if there is one."""
        if self.issues or self.family is None or self.config is None:
            raise ConfigError(complaint(self.model_type, self.issues))
        return self.family, self.config


def complaint(name: str, issues: Sequence[str]) -> str:
    """One message of all that is in the way."""
    lines = [f"\n- {issue}" for issue in issues]
    return f"model_type {name!r} is not compatible with the transformer here:{''.join(lines)}"


@dataclass(frozen=True)
class Understood:
    """What a config and the tensors beside it are: a model, and where its parameters lie."""

    model_type: str
    config: TransformerConfig | RecurrentConfig
    place: Callable[[Mapping[str, Shape], Collection[str]], Plan]
    """A plan for parameters of given shapes among tensors of given names."""
    assumptions: tuple[str, ...] = ()
    """What shows in neither, and was decided here: nothing if the model is known."""


Measure = Callable[[TransformerConfig | RecurrentConfig, Mapping[str, Shape]], Mapping[str, Shape]]
"""The parameters of a model of a config, given what a checkpoint stores."""


def understand(raw: Mapping[str, object], headers: Headers, measure: Measure) -> Understood:
    """What a model is; an error that lists all that is in the way if it is none here."""
    name = type_of(raw)
    if name in RECURRENTS:
        of = RECURRENTS[name]
        recurrent = of.config(raw, headers())
        return Understood(name, recurrent, partial(of.place, recurrent), of.assumed(raw, recurrent))
    if name == OWN.model_type and RECURRENT in raw:
        own = OWN.recurrent(raw)
        return Understood(name, own, partial(OWN.place, own))
    if name in FAMILIES or name == OWN.model_type:
        family, cfg = read_config(raw)
        return Understood(name, cfg, partial(family.place, cfg))
    found = diagnose(raw, headers(), measure)
    family, cfg = found.into_result()
    return Understood(family.model_type, cfg, partial(family.place, cfg), found.assumptions)


def diagnose_recurrent(
    raw: Mapping[str, object], shapes: Mapping[str, Shape], measure: Measure
) -> Diagnosis:
    """The same of a recurrent model."""
    name, issues = str(raw["model_type"]), list[str]()
    try:
        found = understand(raw, lambda: shapes, measure)
        if shapes:
            plan = found.place(measure(found.config, shapes), list(shapes))
            issues += misshapen(plan.placements, shapes)
    except (ConfigError, ModelError) as error:
        issues.append(str(error))
    return Diagnosis(name, None, None, name, inferred=False, naming=name, issues=tuple(issues))


def diagnose(raw: Mapping[str, object], shapes: Mapping[str, Shape], measure: Measure) -> Diagnosis:
    """What a config and the shapes of a checkpoint's tensors amount to."""
    style = style_of(kinds_of(shapes), BASES, [str(raw.get("model_type")), *USUAL])
    naming = "" if style is None else style.family
    try:
        name = type_of(raw)
    except ConfigError as error:
        said = str(raw.get("model_type", ""))
        return Diagnosis(said, None, None, "", inferred=False, naming=naming, issues=(str(error),))
    if name in RECURRENTS or (name == OWN.model_type and RECURRENT in raw):
        return diagnose_recurrent(raw, shapes, measure)
    if name not in FAMILIES and name != OWN.model_type:
        return unknown(raw, shapes, measure)
    family = FAMILIES.get(name, OWN)
    cfg, issues = None, list[str]()
    try:
        cfg = family.config(raw)
    except ConfigError as error:
        issues += config_issues(family, raw) or [str(error)]
    if cfg is not None:
        issues += tensor_issues(family, cfg, shapes, measure, style, classes(raw))
    return Diagnosis(name, family, cfg, name, inferred=False, naming=naming, issues=tuple(issues))


def unknown(
    raw: Mapping[str, object],
    shapes: Mapping[str, Shape],
    measure: Shapes,
) -> Diagnosis:
    """The same for a `model_type` that nobody wrote a family for."""
    found = infer(raw, shapes, measure)
    style = style_of(kinds_of(shapes), BASES, [found.base])
    issues = list(found.issues)
    if issues:
        issues += recognised(style, shapes)
        issues += [code_of(raw).removeprefix("; ")] if code_of(raw) else []
    return Diagnosis(
        str(raw.get("model_type")),
        found.family,
        found.config,
        found.base,
        inferred=True,
        naming="" if style is None else style.family,
        issues=tuple(issues),
        assumptions=found.assumptions,
    )


def config_issues(family: Family, raw: Mapping[str, object]) -> list[str]:
    """Everything that is wrong with a config, not only what is wrong first."""
    if type(family) is not Family:
        return []
    readings = readings_of(family, raw)
    issues = [reading.error for reading in readings.fields.values() if reading.error]
    issues += readings.wrong
    issues += [
        f"config.json has {key} = {brief(value)}, which has no meaning in {family.model_type}"
        for key, value in readings.unread.items()
    ]
    return list(dict.fromkeys(issues))


def tensor_issues(
    family: Family,
    cfg: TransformerConfig,
    shapes: Mapping[str, Shape],
    measure: Shapes,
    style: Style | None,
    architectures: Sequence[str],
) -> Iterator[str]:
    """Tensors that are missing, misshapen or without meaning, by kind."""
    try:
        wanted = measure(cfg, shapes)
        if family is OWN:
            family.place(cfg, wanted, list(shapes))
            return
        matches = [match(cfg, wanted, t, family.buffers, list(shapes)) for t in family.tables()]
    except ModelError as error:
        yield str(error)
        return
    best = min(matches, key=lambda m: len(m.missing) + len(m.extra))
    yield from missing_kinds(best, family, shapes, style, architectures)
    extra = kinds_of({name: shapes[name] for name in best.extra})
    yield from few([f"{kind} has no meaning here{head_of(kind)}" for kind in extra.values()])
    yield from few(misshapen(best.placements, shapes))


def missing_kinds(
    found: Match,
    family: Family,
    shapes: Mapping[str, Shape],
    style: Style | None,
    architectures: Sequence[str],
) -> Iterator[str]:
    """What was expected and is not there, with what is there instead."""
    if not found.missing:
        return
    yield from few(list(expected(found.missing, shapes)))
    bare = [name for name in architectures if name.endswith("Model")]
    if bare and f"{source_name(family.sources['head'])}.weight" in found.missing:
        yield f"architectures is {bare[0]}: a model without its unembedding, made to encode texts"
    theirs = layer_prefix(kinds_of(shapes))
    ours = next((prefix for prefix in prefixes([family])), "")
    if theirs and f"{theirs}.*" != ours:
        yield f"its layers are called {theirs}.*; those of {family.model_type} are {ours}"
    if style is None or style.family != family.model_type:
        yield from recognised(style, shapes)


def expected(missing: Sequence[str], shapes: Mapping[str, Shape]) -> Iterator[str]:
    """A line for each kind of module of which tensors are missing."""
    have = dict.fromkeys(pattern_of(name).rpartition(".")[0] for name in shapes)
    modules = dict[str, list[str]]()
    for name in missing:
        modules.setdefault(pattern_of(name).rpartition(".")[0], []).append(name)
    for module, names in modules.items():
        if module in have:
            yield f"expected {', '.join(few(names))}, which is not there"
            continue
        leaves = " and ".join(dict.fromkeys(name.rpartition(".")[2] for name in names))
        near = difflib.get_close_matches(module, list(have), n=2, cutoff=0.6)
        seen = f"; there is {' and '.join(near)}" if near else ""
        yield f"expected {module} ({leaves}), which is not there{seen}"


def misshapen(found: Sequence[Placement], shapes: Mapping[str, Shape]) -> list[str]:
    """Tensors whose shapes are not what the config makes them, one line for each kind."""
    lines = dict[str, str]()
    for p in found:
        for name in p.theirs:
            if name in shapes and not p.source.fits(tuple(shapes[name]), tuple(p.stored)):
                kind = re.sub(r"\.\d+\.", LAYER, name)
                lines.setdefault(
                    kind,
                    f"{kind} has the shape {list(shapes[name])}; config.json makes it "
                    f"{list(p.stored)}",
                )
    return list(lines.values())


def head_of(kind: Kind) -> str:
    """A remark on the head of a classifier."""
    return ": it is the head of a classifier" if kind.pattern in HEADS else ""


def recognised(style: Style | None, shapes: Mapping[str, Shape]) -> Iterator[str]:
    """A line on the naming scheme: the known one that is nearest, or the first names."""
    known = ", ".join(dict.fromkeys(prefixes(BASES)))
    if style is not None:
        more = "" if style.share > ALIKE else f"; layers of known families are called {known}"
        yield (
            f"{style.share:.0%} of the kinds of tensors are named as in {style.family} "
            f"({style.prefix}.*){more}"
        )
    elif shapes:
        yield (
            f"its naming scheme is unknown: the first tensors are {', '.join(list(shapes)[:5])}; "
            f"layers of known families are called {known}"
        )


ALIKE = 0.5
"""The share of names from which on a scheme counts as recognised."""


def prefixes(families: Sequence[Family]) -> Iterator[str]:
    """What families call their layers."""
    for family in families:
        named = [name for name in map(source_name, family.sources.values()) if LAYER in name]
        if named:
            yield f"{named[0].partition(LAYER)[0]}.*"


def few(lines: Sequence[str]) -> Iterator[str]:
    """The first lines of many, and how many more there are."""
    yield from lines[:SHOWN]
    if len(lines) > SHOWN:
        yield f"and {len(lines) - SHOWN} more of this sort"
