# SPDX-License-Identifier: MIT OR Apache-2.0
"""Where each of a model's parameters lies in a checkpoint: exactly one place for every tensor.

Names here are compared, nothing is read: a `Placement` says which tensors a loader should fetch,
and how ours is taken from them.
"""

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from torch import Tensor

from torch_mi.errors import ModelError
from torch_mi.families.sources import Shape, Source, Whole, source_name, source_of

SHOWN = 5
"""How many names an error message lists."""


@runtime_checkable
class Tying(Protocol):
    """What is asked of the config of any kind of model."""

    @property
    def tie_word_embeddings(self) -> bool: ...


@dataclass(frozen=True)
class Placement:
    """One of our parameters, and what it is filled from."""

    ours: str
    theirs: tuple[str, ...]
    shape: Shape
    """Of our parameter."""
    stored: Shape
    """Of each tensor in the checkpoint."""
    source: Whole
    cfg: Tying

    def take(self, tensors: Sequence[Tensor]) -> Tensor:
        """Our parameter, from their tensors."""
        return self.source.shaped(self.source.take(tensors, self.cfg), self.shape)


@dataclass(frozen=True)
class Plan:
    """A checkpoint's tensors, every one accounted for."""

    placements: tuple[Placement, ...]
    duplicates: Mapping[str, str]
    """Their second copy of a tied tensor -> our parameter; the two ought to be equal."""
    ignored: tuple[str, ...]
    """Their tensors that are computed here, not stored, or belong to no part of a text model."""


@dataclass(frozen=True)
class Match:
    """A checkpoint's names against a table: what is placed, what is missing, what is left over."""

    placements: tuple[Placement, ...]
    duplicates: Mapping[str, str]
    ignored: tuple[str, ...]
    missing: tuple[str, ...]
    """Names that the table asks for and the checkpoint has not."""
    extra: tuple[str, ...]
    """Names that the checkpoint has and the table does not."""


def match(
    cfg: Tying,
    shapes: Mapping[str, Shape],
    sources: Mapping[str, Source],
    buffers: Collection[str],
    names: Collection[str],
) -> Match:
    """Find every one of our parameters, whose `shapes` are given, among `names`.

    `sources` maps our modules to theirs; `buffers` are patterns of names that may be passed over.
    """
    found = qualified(names, sources)
    placements = [placement(ours, shape, cfg, sources) for ours, shape in shapes.items()]
    duplicates = dict[str, str]()
    if cfg.tie_word_embeddings:
        placements, duplicates = tie(placements, sources, found)
    wanted = [name for p in placements for name in p.theirs]
    used = {*wanted, *duplicates}
    rest = [name for name in found if name not in used]
    return Match(
        tuple(renamed(p, [found.get(name, name) for name in p.theirs]) for p in placements),
        {found[theirs]: ours for theirs, ours in duplicates.items()},
        tuple(found[name] for name in rest if is_buffer(name, buffers)),
        tuple(name for name in wanted if name not in found),
        tuple(sorted(found[name] for name in rest if not is_buffer(name, buffers))),
    )


def place(
    cfg: Tying,
    shapes: Mapping[str, Shape],
    tables: Sequence[Mapping[str, Source]],
    buffers: Collection[str],
    names: Collection[str],
) -> Plan:
    """A place for every parameter and every one of `names`, or an error that lists what has none.

    Of the `tables` of sources, the one that fits best is used.
    """
    matches = [match(cfg, shapes, sources, buffers, names) for sources in tables]
    best = min(matches, key=lambda m: len(m.missing) + len(m.extra))
    if best.missing:
        raise ModelError(missing_message(best.missing, names))
    if best.extra:
        raise ModelError(extra_message(best.extra))
    return Plan(best.placements, best.duplicates, best.ignored)


def placement(ours: str, shape: Shape, cfg: Tying, sources: Mapping[str, Source]) -> Placement:
    """Where one of our parameters lies, by the table."""
    leaf = ours.rpartition(".")[2]
    layer = re.search(r"\.(\d+)\.", ours)
    number = layer.group(1) if layer else ""
    whole = ours.replace(f".{number}.", ".*.") if layer else ours
    key = whole if whole in sources else whole.rpartition(".")[0]
    if key not in sources:
        raise ModelError(f"this model_type has no {key}, which its config.json asks for")
    source = source_of(sources[key])
    theirs = tuple(name.replace("*", number) for name in source.names(leaf, cfg))
    return Placement(ours, theirs, shape, source.stored(shape, cfg), source, cfg)


def renamed(p: Placement, theirs: Sequence[str]) -> Placement:
    """The same placement under the names that the checkpoint uses."""
    return replace(p, theirs=tuple(theirs))


def tie(
    placements: list[Placement], sources: Mapping[str, Source], found: Collection[str]
) -> tuple[list[Placement], dict[str, str]]:
    """One matrix embeds and unembeds; a checkpoint may store either copy of it, or both."""
    tokens, head = f"{source_name(sources['tokens'])}.weight", None
    if "head" in sources:
        head = f"{source_name(sources['head'])}.weight"
    if head is None or head not in found:
        return placements, {}
    if tokens in found:
        return placements, {head: "tokens.weight"}
    return [renamed(p, [head]) if p.theirs == (tokens,) else p for p in placements], {}


def qualified(names: Collection[str], sources: Mapping[str, Source]) -> dict[str, str]:
    """Their names as the table has them -> as the checkpoint has them.

    A checkpoint of the bare model, without its head, leaves out the prefix of all its names.
    """
    tops = {source_name(source).partition(".")[0] for source in sources.values()}
    prefix = source_name(sources["tokens"]).partition(".")[0]
    if any(name.startswith(f"{prefix}.") for name in names):
        return {name: name for name in names}
    return {name if name.partition(".")[0] in tops else f"{prefix}.{name}": name for name in names}


def is_buffer(name: str, buffers: Collection[str]) -> bool:
    """Whether `name` fits one of the patterns, where `*` is a number and `**` anything."""
    patterns = (re.escape(b).replace(r"\*\*", ".+").replace(r"\*", r"\d+") for b in buffers)
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def missing_message(missing: Sequence[str], found: Collection[str]) -> str:
    """Which tensor is not there, and what is there instead."""
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    near = difflib.get_close_matches(missing[0], list(found), n=3, cutoff=0.5)
    seen = ", ".join(near) if near else "nothing like it"
    return f"the checkpoint lacks {missing[0]}{more}; it has {seen}"


def extra_message(extra: Sequence[str]) -> str:
    """Which tensors would be left unused."""
    shown = ", ".join(extra[:SHOWN])
    more = f" and {len(extra) - SHOWN} more" if len(extra) > SHOWN else ""
    return f"{len(extra)} of the checkpoint's tensors have no place in this model: {shown}{more}"
