# SPDX-License-Identifier: MIT OR Apache-2.0
"""Naming schemes: a checkpoint's tensors by kind, and one family's names told from another's."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch_mi.families.family import Family
from torch_mi.families.sources import Named, Shape, Source, Stack, Whole, source_name, source_of

LEAVES = ("weight", "bias")
LAYER = ".*."


@dataclass(frozen=True)
class Kind:
    """Tensors whose names differ by their layer (`*`) or expert (`#`) alone."""

    pattern: str
    names: tuple[str, ...]
    shape: Shape
    """Of the first."""

    def __str__(self) -> str:
        many = f", {len(self.names)} times" if len(self.names) > 1 else ""
        return f"{self.pattern} {list(self.shape)}{many}"


def pattern_of(name: str) -> str:
    """A tensor's name without the numbers of its layer and its expert."""
    parts, marks = list[str](), ["*", "#"]
    for part in name.split("."):
        numbered = part.isdecimal()
        parts.append(marks[0] if numbered else part)
        marks = marks[1:] or marks if numbered else marks
    return ".".join(parts)


def kinds_of(shapes: Mapping[str, Shape]) -> dict[str, Kind]:
    """A checkpoint's tensors, by pattern."""
    names = dict[str, list[str]]()
    for name in shapes:
        names.setdefault(pattern_of(name), []).append(name)
    return {p: Kind(p, tuple(n), tuple(shapes[n[0]])) for p, n in names.items()}


def patterns(source: Source) -> Iterator[str]:
    """The patterns of names that a source may draw from."""
    if isinstance(source, Named):
        yield source.theirs
        return
    for leaf in LEAVES:
        yield f"{source_name(source)}.{leaf}"


def renamed(source: Source, theirs: str) -> Source:
    """The same layout under another name."""
    return theirs if isinstance(source, str) else replace(source, theirs=theirs)


@dataclass(frozen=True)
class Names:
    """Where a family's modules lie in a checkpoint, whatever its prefixes are."""

    sources: Mapping[str, Source]
    kinds: Mapping[str, Kind]
    borrowed: Mapping[str, str]
    """Modules that other families' tables named -> their name here."""

    def has(self, ours: str, leaf: str = "weight") -> bool:
        """Whether the checkpoint has this parameter of ours."""
        return self.pattern(ours, leaf) in self.kinds

    def pattern(self, ours: str, leaf: str = "weight") -> str:
        """What the parameter is called there, or nothing if the family has none."""
        if ours not in self.sources:
            return ""
        source = source_of(self.sources[ours])
        return source.theirs if isinstance(source, Named) else f"{source.theirs}.{leaf}"

    def shape(self, ours: str, leaf: str = "weight") -> Shape:
        """The shape it is stored in; one more axis where each expert or head has its own."""
        kind = self.kinds[self.pattern(ours, leaf)]
        stacked = isinstance(source_of(self.sources[ours]), Stack)
        return (0, *kind.shape) if stacked else kind.shape

    def unexplained(self) -> list[Kind]:
        """Kinds of tensors that no module draws from."""
        used = {pattern for source in self.sources.values() for pattern in patterns(source)}
        return [kind for pattern, kind in self.kinds.items() if pattern not in used]


def read_names(
    table: Mapping[str, Source],
    pool: Mapping[str, tuple[str, Source]],
    kinds: Mapping[str, Kind],
) -> Names:
    """A family's table, its prefixes as this checkpoint has them, and what the pool adds."""
    prefix = layer_prefix(kinds)
    modules = {pattern.rpartition(".")[0] for pattern in kinds}
    found = {ours: here(source, prefix, modules) for ours, source in table.items()}
    names = Names(found, kinds, {})
    borrowed = dict[str, Source]()
    for kind in names.unexplained():
        ours, source = pool.get(suffix_of(kind.pattern.rpartition(".")[0]), ("", ""))
        if ours and not names.has(ours) and ours not in borrowed:
            borrowed[ours] = here(source, prefix, modules)
    lent = {ours: source_name(source) for ours, source in borrowed.items()}
    return Names({**found, **borrowed}, kinds, lent)


def suffix_of(module: str) -> str:
    """A module's name within its layer, or the last part of one that is in none."""
    return module.partition(LAYER)[2] or module.rpartition(".")[2]


def layer_prefix(kinds: Mapping[str, Kind]) -> str:
    """What stands before the number of most layers' tensors."""
    prefixes = [p.partition(LAYER)[0] for p in kinds if LAYER in p]
    return max(dict.fromkeys(prefixes), key=prefixes.count, default="")


def here(source: Source, prefix: str, modules: set[str]) -> Source:
    """A source under the prefix that this checkpoint uses."""
    theirs = source_name(source)
    if LAYER in theirs:
        return renamed(source, f"{prefix}{LAYER}{theirs.partition(LAYER)[2]}")
    if theirs in modules:
        return source
    last = theirs.rpartition(".")[2]
    like = [m for m in modules if m.rpartition(".")[2] == last and "*" not in m]
    return renamed(source, like[0]) if len(like) == 1 else source


def shared_pool(families: Sequence[Family]) -> dict[str, tuple[str, Source]]:
    """What a name within a layer means to every family that has it."""
    meant = dict[str, dict[str, Source]]()
    for family in families:
        for table in family.tables():
            for ours, source in table.items():
                meant.setdefault(suffix_of(source_name(source)), {}).setdefault(ours, source)
    return {
        suffix: (ours, source)
        for suffix, candidates in meant.items()
        if len(candidates) == 1
        for ours, source in candidates.items()
        if type(source_of(source)) in (Whole, Stack)
    }


@dataclass(frozen=True)
class Style:
    """A naming scheme: a family, and how much of a checkpoint it accounts for."""

    family: str
    prefix: str
    """What its layers are called."""
    share: float


def style_of(
    kinds: Mapping[str, Kind], families: Sequence[Family], rather: Sequence[str] = ()
) -> Style | None:
    """The naming scheme of most kinds of tensors; `rather` that of one of these families."""
    best: Style | None = None
    for family in families:
        for table in family.tables():
            known = {pattern for source in table.values() for pattern in patterns(source)}
            hits = len(known & set(kinds))
            # of two tables that know as much, the one that asks for less is the nearer
            share = hits / max(len(kinds), 1) - len(table) * 1e-6
            share += 1e-3 * (family.model_type in rather)
            if hits and (best is None or share > best.share):
                layered = next((n for n in map(source_name, table.values()) if LAYER in n), "")
                best = Style(family.model_type, layered.partition(LAYER)[0], share)
    return best


def is_buffer(pattern: str, buffers: Sequence[str]) -> bool:
    """Whether a pattern is that of a buffer; prefixes aside."""
    endings = [buffer.partition(LAYER)[2] or buffer for buffer in buffers]
    return any(pattern == b or pattern.endswith(f".{b}") for b in endings) or bool(
        re.search(r"(^|\.)rotary_emb\.inv_freq$", pattern)
    )
