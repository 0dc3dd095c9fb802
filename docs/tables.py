# SPDX-License-Identifier: MIT OR Apache-2.0
"""The parts of `docs/` that are read off the declarations: `python -m docs.tables` writes them.

A page marks such a part with `<!-- generated: NAME -->` and `<!-- end of NAME -->`; the prose
around it is written by hand.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from docs import verbs
from torch_mi.config.parts import BlockLayout, Over
from torch_mi.config.transformer import TransformerConfig
from torch_mi.families import FAMILIES, RECURRENTS, Family, RecurrentFamily
from torch_mi.families.evidence_recurrent import Evidence
from torch_mi.families.rules import Reader
from torch_mi.families.sources import Rows, Source, source_name, source_of
from torch_mi.hooks.point import HookPoint
from torch_mi.storage import write_text
from torch_mi.testing import tiny

DOCS = Path(__file__).parent

BARE: Mapping[str, object] = {
    "hidden_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 32,
    "intermediate_size": 1024,
    "vocab_size": 1000,
}
"""A config that says nothing but sizes, so that what is read is what a family takes for granted."""

NEEDED: Mapping[str, Mapping[str, object]] = {"deepseek_v2": {"num_experts_per_tok": 6}}
"""What a family cannot do without."""

LAYOUTS = {
    BlockLayout.Pre: "before",
    BlockLayout.Sandwich: "before and after",
    BlockLayout.Post: "after",
    BlockLayout.Parallel: "one for both, in parallel",
    BlockLayout.ParallelTwo: "one each, in parallel",
}

OVER = {Over.Head: "by head", Over.EachHead: "by head, each its own gain", Over.Whole: "as a whole"}

LAYOUT_WORDS = {
    "Whole": "",
    "Named": "",
    "Kept": "",
    "Transposed": ", transposed",
    "Rows": ", part{part} of a stack",
    "Columns": ", part{part} of a stack, transposed",
    "Grouped": ", part{part}, taking turns",
    "Stack": ", one tensor for each expert",
    "Slabs": ", part{part} of a stack for each expert",
    "Flat": "",
    "RowOf": ", one row of a stack",
    "Exponential": ", as a logarithm",
    "NamedTransposed": ", transposed",
    "MixDown": ", transposed, the five in another order",
    "MixUp": ", transposed, the five in another order",
}


def row(cells: Iterable[str]) -> str:
    """One row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rule = "|" + "---|" * len(header)
    return "\n".join([row(header), rule, *map(row, rows)])


def code(words: Iterable[str]) -> str:
    """Words as code, separated by commas."""
    return ", ".join(f"`{word}`" for word in words)


def hooks(points: Iterable[HookPoint]) -> str:
    """Hook points with their paths, axes, meanings and other spellings."""
    rows: list[list[str]] = []
    for point in points:
        path = point.replace("*", "{i}")
        others = [alias.replace("*", "{i}") for alias in point.aliases]
        meaning = point.meaning + (f" (also {code(others)})" if others else "")
        axes = " ".join("1" if axis == "one" else axis for axis in point.axes)
        rows.append([f"`{point.name}`", f"`{path}`", axes, meaning])
    return table(("member", "path", "axes", "meaning"), rows)


def hooks_outside() -> str:
    """The points that are not inside a layer."""
    return hooks(point for point in HookPoint if not point.per_layer)


def hooks_inside() -> str:
    """The points of every layer, in the order in which a run comes to them."""
    return hooks(point for point in HookPoint if point.per_layer)


def availability() -> str:
    """The points that not every transformer has, and which families have them."""
    others = {point for name in RECURRENTS for point in tiny(name).backend.hook_points}
    ours = {point for name in FAMILIES for point in tiny(name).backend.hook_points}
    return absent(FAMILIES, [p for p in HookPoint if p in ours or p not in others])


def recurrent_availability() -> str:
    """The points of recurrent models: those of all, and those of some."""
    has = [tiny(name).backend.hook_points for name in RECURRENTS]
    everywhere = [p for p in HookPoint if all(p in points for points in has)]
    some = [p for p in HookPoint if any(p in points for points in has)]
    return f"- {code(p.name for p in everywhere)}: in all.\n{absent(RECURRENTS, some)}"


def absent(families: Iterable[str], points: Iterable[HookPoint]) -> str:
    """Which of some points not every one of some families has, and which have them."""
    models = {name: tiny(name) for name in families}
    found: dict[str, list[HookPoint]] = {}
    for point in points:
        has = [n for n, model in models.items() if point in model.backend.hook_points]
        lacks = [name for name in models if name not in has]
        where = f"in {code(has)}" if len(has) <= len(lacks) else f"not in {code(lacks)}"
        where = where if has else "in models written by hand alone"
        if lacks:
            found.setdefault(where, []).append(point)
    return "\n".join(f"- {code(p.name for p in group)}: {w}." for w, group in found.items())


def silent(family: Family) -> Reader:
    """A config of the family that says nothing but sizes."""
    name = family.model_type
    return Reader({"model_type": name, **BARE, **NEEDED.get(name, {})})


def bare(family: Family) -> TransformerConfig:
    """What a family computes where its config says nothing but sizes."""
    reader = silent(family)
    fields: dict[str, Any] = {name: rule(reader) for name, rule in family.rules.items()}
    return TransformerConfig(**fields)


def norms(cfg: TransformerConfig) -> str:
    """Which norms there are, and where they stand."""
    return f"{cfg.norm_type.value}, {LAYOUTS[cfg.layout]}"


def positions(cfg: TransformerConfig) -> str:
    """How a layer knows where a token stands."""
    found: list[str] = []
    if cfg.embedding.learned is not None:
        found.append("learned")
    if cfg.alibi is not None:
        found.append("by distance")
    ropes = [rope for rope in cfg.ropes if rope is not None]
    if ropes:
        bases = dict.fromkeys(f"{rope.theta:g}" for rope in ropes)
        words = f"rotary {' and '.join(bases)}"
        words += ", neighbours paired" if ropes[0].interleaved else ""
        turning = cfg.head_dim if cfg.latent is None else cfg.latent.rope_dim
        words += f", {ropes[0].dim / turning:.0%} of a head" if ropes[0].dim < turning else ""
        words += f", not in {len(cfg.ropes) - len(ropes)} of {len(cfg.ropes)} layers" * (
            len(ropes) < len(cfg.ropes)
        )
        found.append(words)
    return "; ".join(found)


def heads(cfg: TransformerConfig) -> str:
    """Shared keys and values, head width, norms of queries and keys, windows."""
    found: list[str] = []
    if cfg.latent is not None:
        found.append(f"keys and values unfold from {cfg.latent.kv_rank}")
    elif cfg.num_kv_heads != cfg.num_attention_heads:
        found.append(f"{cfg.num_kv_heads} for keys and values")
    if cfg.head_dim != cfg.hidden_size // cfg.num_attention_heads and cfg.latent is None:
        found.append(f"{cfg.head_dim} wide")
    if cfg.qk_norm is not None:
        found.append(f"queries and keys normed {OVER[cfg.qk_norm.over]}")
    seen = [window for window in cfg.windows if window is not None]
    if seen:
        some = f" in {len(seen)} of {len(cfg.windows)} layers"
        found.append(f"window {seen[0]}" + some * (len(seen) < len(cfg.windows)))
    return "; ".join(found) or "plain"


def mlp(cfg: TransformerConfig) -> str:
    """The MLP or the experts."""
    words = f"{cfg.activation.value}{', gated' if cfg.gated_mlp else ''}"
    if cfg.experts is None:
        return words
    how = cfg.experts
    words += f"; {how.chosen} of {how.count} experts by {how.scoring.value}"
    words += f" in {sum(how.layers)} of {len(how.layers)} layers" * (not all(how.layers))
    return words + (", one shared" if how.shared_width else "")


def bias(cfg: TransformerConfig) -> list[str]:
    """Which linear maps have a bias."""
    flags = {"q, k, v": cfg.qkv_bias, "o": cfg.o_proj_bias, "MLP": cfg.mlp_bias}
    flags["logits"] = cfg.head.bias
    return [name for name, has in flags.items() if has]


def notes(cfg: TransformerConfig) -> str:
    """What is left to say."""
    found: list[str] = []
    if biases := bias(cfg):
        found.append(f"biases: {', '.join(biases)}")
    numbers = {
        "scores capped at": cfg.attn_logit_softcapping,
        "logits capped at": cfg.head.softcap,
        "logits ×": cfg.head.scale,
        "branches ×": cfg.residual_scale,
        "q, k, v clipped at": cfg.clip_qkv,
    }
    found += [f"{name} {value:g}" for name, value in numbers.items() if value is not None]
    scale = cfg.embedding.scale
    if scale is not None:
        root = round(scale**2) == cfg.hidden_size
        found.append(f"embeddings × {'√hidden_size' if root else f'{scale:g}'}")
    found += ["embeddings normed"] if cfg.embedding.norm else []
    found += ["tied"] if cfg.tie_word_embeddings else []
    return "; ".join(found)


def arithmetic() -> str:
    """What each family computes where its config is silent."""
    rows: list[list[str]] = []
    for name, family in FAMILIES.items():
        cfg = bare(family)
        parts = (norms, positions, heads, mlp, notes)
        rows.append([f"`{name}`", *(part(cfg) for part in parts)])
    return table(("family", "norms", "positions", "heads", "MLP", "and"), rows)


def keys(family: Family) -> dict[str, frozenset[str]]:
    """The config keys that each field is read from, as the family calls them."""
    theirs = {ours: name for name, ours in family.aliases.items()}
    found: dict[str, frozenset[str]] = {}
    for name, rule in family.rules.items():
        reader = silent(family)
        rule(reader)
        found[name] = frozenset(theirs.get(key, key) for key in reader.asked)
    return found


def differences() -> str:
    """Each family by its table: what it reads and calls differently from Llama."""
    return "\n\n".join(section(family) for family in FAMILIES.values())


def section(family: Family) -> str:
    """One family, its names folded away."""
    base = FAMILIES["llama"]
    known: frozenset[str] = frozenset()
    if family is not base:
        known = known.union(*keys(base).values())
    read = sorted(frozenset[str]().union(*keys(family).values()) - known)
    what = "Reads" if family is base else "Also reads"
    parts = [f"### `{family.model_type}`"]
    parts += [f"{what} {code(read)}."] if read else []
    parts += refused(family, base)
    theirs: Mapping[str, Source] = dict[str, Source]() if family is base else base.sources
    sources = {ours: s for ours, s in family.sources.items() if theirs.get(ours) != s}
    if sources:
        named = table(
            ("our module", "in the checkpoint"),
            [(f"`{ours}`", written(source)) for ours, source in sources.items()],
        )
        parts.append(f"<details><summary>names</summary>\n\n{named}\n\n</details>")
    return "\n\n".join(parts)


def refused(family: Family, base: Family) -> list[str]:
    """The values without which a family's config is refused, where llama's is not."""
    asked = frozenset[str]().union(*keys(family).values())
    only = {
        key: values
        for key, values in family.fixed.items()
        if key not in asked and (family is base or base.fixed.get(key) != values)
    }
    if not only:
        return []
    values = [f"`{key}` = {code(map(repr, said)) or 'null'}" for key, said in only.items()]
    return ["Refused unless: " + "; ".join(values) + "."]


def written(source: Source) -> str:
    """Where a module's tensors lie in a checkpoint."""
    layout, name = source_of(source), f"`{source_name(source)}`"
    kind = type(layout).__name__
    part = f" {layout.part + 1}" if isinstance(layout, Rows) else ""
    return name + LAYOUT_WORDS.get(kind, f", {kind.lower()}").format(part=part)


SPELLINGS = {
    "rwkv.": "Hugging Face",
    "backbone.": "Hugging Face",
    "model.": "fla",
    "": "the authors",
}
"""Whose names a table has, by how they begin."""


def recurrent() -> str:
    """Each recurrent family: the keys that it reads, and its names in every spelling."""
    return "\n\n".join(recurrent_section(family) for family in RECURRENTS.values())


def recurrent_section(family: RecurrentFamily) -> str:
    """One recurrent family, its names folded away."""
    reader = Reader({"model_type": family.model_type, "vocab_size": 10, **family.tiny})
    family.read(reader, Evidence())
    parts = [f"### `{family.model_type}`", f"Reads {code(sorted(reader.asked))}."]
    only = [f"`{key}` = {code(map(repr, said)) or 'null'}" for key, said in family.fixed.items()]
    parts += ["Refused unless: " + "; ".join(only) + "."] if only else []
    seen = set[str]()
    for names in family.tables:
        outside = source_name(names["tokens"])
        whose = next(who for start, who in SPELLINGS.items() if outside.startswith(start))
        rows = [(f"`{ours}`", written(source)) for ours, source in names.items()]
        more = ", otherwise stored" if whose in seen else ""
        seen.add(whose)
        named = table(("our module", "in the checkpoint"), rows)
        title = f"names of {whose}{more}"
        parts.append(f"<details><summary>{title}</summary>\n\n{named}\n\n</details>")
    return "\n\n".join(parts)


PARTS: Mapping[str, Callable[[], str]] = {
    "hooks outside the layers": hooks_outside,
    "hooks of a layer": hooks_inside,
    "absent hooks": availability,
    "hooks of recurrent models": recurrent_availability,
    "arithmetic": arithmetic,
    "differences": differences,
    "recurrent families": recurrent,
    "common options": verbs.common,
    "verbs": verbs.reference,
}

MARKED = re.compile(r"(<!-- generated: (.+?) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)


def refreshed(page: str) -> str:
    """A page with its generated parts made anew."""
    return MARKED.sub(lambda m: f"{m[1]}\n{PARTS[m[2]]()}\n\n{m[3]}", page)


def pages() -> dict[Path, str]:
    """Every page that has a generated part, as it ought to be."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))}
    return {path: refreshed(text) for path, text in texts.items() if MARKED.search(text)}


if __name__ == "__main__":
    for path, text in pages().items():
        write_text(path, text)
