# SPDX-License-Identifier: MIT OR Apache-2.0
"""Where each of a model's parameters lies in a checkpoint: exactly one place for every tensor.

Names here are compared, nothing is read: a `Placement` says which tensor, and which of its rows,
a loader should fetch.
"""

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from torch_mi.config.transformer import NormType, TransformerConfig
from torch_mi.errors import ModelError

Shape = tuple[int, ...]

SHOWN = 5
"""How many names an error message lists."""


@dataclass(frozen=True)
class Rows:
    """Part of a checkpoint tensor that stacks several of ours along its first dimension."""

    theirs: str
    sizes: Callable[[TransformerConfig], tuple[int, ...]]
    part: int

    def within(self, cfg: TransformerConfig) -> tuple[int, int, int]:
        """First row, row after the last, and how many rows the whole tensor has."""
        sizes = self.sizes(cfg)
        start = sum(sizes[: self.part])
        return start, start + sizes[self.part], sum(sizes)


Source = str | Rows
"""Their module, or rows of its tensors; `*` is the layer."""


@dataclass(frozen=True)
class Placement:
    """One of our parameters, and what it is filled from."""

    ours: str
    theirs: str
    shape: Shape
    """Of our parameter."""
    stored: Shape
    """Of the whole tensor in the checkpoint."""
    rows: tuple[int, int] | None = None
    """Which rows of the stored tensor are ours; `None` is all of them."""


@dataclass(frozen=True)
class Plan:
    """A checkpoint's tensors, every one accounted for."""

    placements: tuple[Placement, ...]
    duplicates: Mapping[str, str]
    """Their second copy of a tied tensor -> our parameter; the two ought to be equal."""
    ignored: tuple[str, ...]
    """Their buffers that are computed here, not stored."""


def expected_shapes(cfg: TransformerConfig) -> dict[str, Shape]:
    """Every parameter that a model of this config owns, in module order; a tied head is not one."""
    shapes: dict[str, Shape] = {"tokens.weight": (cfg.vocab_size, cfg.hidden_size)}
    for layer in range(cfg.num_layers):
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in block_shapes(cfg).items()}
    shapes |= norm_shapes("norm", cfg)
    if not cfg.tie_word_embeddings:
        shapes["head.weight"] = (cfg.vocab_size, cfg.hidden_size)
    return shapes


def block_shapes(cfg: TransformerConfig) -> dict[str, Shape]:
    """The parameters of one layer."""
    width, inner = cfg.hidden_size, cfg.intermediate_size
    queries, keys = cfg.num_attention_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
    shapes = norm_shapes("norm1", cfg)
    for name, rows in {"q": queries, "k": keys, "v": keys}.items():
        shapes |= linear_shapes(f"attn.{name}", (rows, width), bias=cfg.qkv_bias)
    shapes |= linear_shapes("attn.o", (width, queries), bias=cfg.o_proj_bias)
    if cfg.use_post_norms:
        shapes |= norm_shapes("post1", cfg)
    shapes |= norm_shapes("norm2", cfg)
    for name in ("gate", "up") if cfg.gated_mlp else ("up",):
        shapes |= linear_shapes(f"mlp.{name}", (inner, width), bias=cfg.mlp_bias)
    shapes |= linear_shapes("mlp.down", (width, inner), bias=cfg.mlp_bias)
    if cfg.use_post_norms:
        shapes |= norm_shapes("post2", cfg)
    return shapes


def norm_shapes(name: str, cfg: TransformerConfig) -> dict[str, Shape]:
    """A gain, and a bias if the norm has one."""
    leaves = ("weight", "bias") if cfg.norm_type is NormType.Layer else ("weight",)
    return {f"{name}.{leaf}": (cfg.hidden_size,) for leaf in leaves}


def linear_shapes(name: str, weight: Shape, *, bias: bool) -> dict[str, Shape]:
    """A weight, and a bias if there is one."""
    shapes = {f"{name}.weight": weight}
    if bias:
        shapes[f"{name}.bias"] = weight[:1]
    return shapes


def place(
    cfg: TransformerConfig,
    sources: Mapping[str, Source],
    buffers: Collection[str],
    names: Collection[str],
) -> Plan:
    """A place for every parameter and every one of `names`, or an error that lists what has none.

    `sources` maps our modules to theirs; `buffers` are patterns of names that may be passed over.
    """
    found = qualified(names, sources)
    shapes = expected_shapes(cfg)
    placements = [placement(ours, shape, cfg, sources) for ours, shape in shapes.items()]
    duplicates = dict[str, str]()
    if cfg.tie_word_embeddings:
        placements, duplicates = tie(placements, sources, found)
    missing = [p.theirs for p in placements if p.theirs not in found]
    if missing:
        raise ModelError(missing_message(missing, found))
    used = {p.theirs for p in placements} | set(duplicates)
    ignored = [name for name in found if name not in used and is_buffer(name, buffers)]
    if extra := sorted(set(found) - used - set(ignored)):
        raise ModelError(extra_message([found[name] for name in extra]))
    return Plan(
        tuple(renamed(p, found[p.theirs]) for p in placements),
        {found[theirs]: ours for theirs, ours in duplicates.items()},
        tuple(found[name] for name in ignored),
    )


def placement(
    ours: str, shape: Shape, cfg: TransformerConfig, sources: Mapping[str, Source]
) -> Placement:
    """Where one of our parameters lies, by the table."""
    module, _, leaf = ours.rpartition(".")
    layer = re.search(r"\.(\d+)\.", ours)
    number = layer.group(1) if layer else ""
    source = sources[module.replace(f".{number}.", ".*.") if layer else module]
    if isinstance(source, str):
        return Placement(ours, f"{source}.{leaf}".replace("*", number), shape, shape)
    start, stop, rows = source.within(cfg)
    theirs = f"{source.theirs}.{leaf}".replace("*", number)
    return Placement(ours, theirs, shape, (rows, *shape[1:]), (start, stop))


def renamed(p: Placement, theirs: str) -> Placement:
    """The same placement under the name that the checkpoint uses."""
    return replace(p, theirs=theirs)


def tie(
    placements: list[Placement], sources: Mapping[str, Source], found: Collection[str]
) -> tuple[list[Placement], dict[str, str]]:
    """One matrix embeds and unembeds; a checkpoint may store either copy of it, or both."""
    tokens, head = f"{sources['tokens']}.weight", f"{sources['head']}.weight"
    if head not in found:
        return placements, {}
    if tokens in found:
        return placements, {head: "tokens.weight"}
    return [renamed(p, head) if p.theirs == tokens else p for p in placements], {}


def qualified(names: Collection[str], sources: Mapping[str, Source]) -> dict[str, str]:
    """Their names as the table has them -> as the checkpoint has them.

    A checkpoint of the bare model, without its head, leaves out the prefix of all its names.
    """
    tops = {source_name(source).partition(".")[0] for source in sources.values()}
    prefix = source_name(sources["tokens"]).partition(".")[0]
    if any(name.startswith(f"{prefix}.") for name in names):
        return {name: name for name in names}
    return {name if name.partition(".")[0] in tops else f"{prefix}.{name}": name for name in names}


def source_name(source: Source) -> str:
    """Their module."""
    return source if isinstance(source, str) else source.theirs


def is_buffer(name: str, buffers: Collection[str]) -> bool:
    """Whether `name` fits one of the patterns, where `*` is a number."""
    return any(re.fullmatch(re.escape(b).replace(r"\*", r"\d+"), name) for b in buffers)


def missing_message(missing: list[str], found: Mapping[str, str]) -> str:
    """Which tensor is not there, and what is there instead."""
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    near = difflib.get_close_matches(missing[0], list(found), n=3, cutoff=0.5)
    seen = ", ".join(found[name] for name in near) if near else "nothing like it"
    return f"the checkpoint lacks {missing[0]}{more}; it has {seen}"


def extra_message(extra: list[str]) -> str:
    """Which tensors would be left unused."""
    shown = ", ".join(extra[:SHOWN])
    more = f" and {len(extra) - SHOWN} more" if len(extra) > SHOWN else ""
    return f"{len(extra)} of the checkpoint's tensors have no place in this model: {shown}{more}"
