# SPDX-License-Identifier: MIT OR Apache-2.0
"""The parts of `docs/` that are read off the declarations: `python -m docs.tables` writes them.

A page marks such a part with `<!-- generated: NAME -->` and `<!-- end of NAME -->`; the prose
around it is written by hand.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from docs import verbs
from torch_mi.config.transformer import TransformerConfig
from torch_mi.families import FAMILIES, Family
from torch_mi.families.decoder import LLAMA
from torch_mi.families.names import Source, source_name
from torch_mi.families.rope import RopeRule
from torch_mi.families.rules import Reader
from torch_mi.hooks.point import HookPoint
from torch_mi.storage import write_text
from torch_mi.testing import tiny

DOCS = Path(__file__).parent

LAYERS, HEADS, WIDTH, HEAD = 4, 64, 3072, 40
BARE: Mapping[str, object] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 1024,
    "vocab_size": 1000,
}
"""A config that says nothing but sizes, so that what is read is what a family takes for granted."""

T = TypeVar("T")


class Listening(Reader):
    """A reader that tells which keys it was asked for."""

    def __init__(self, raw: Mapping[str, object]) -> None:
        super().__init__(raw)
        self.asked: list[str] = []

    def get(self, kind: type[T], key: str) -> T | None:
        self._hear(key)
        return super().get(kind, key)

    def given(self, key: str) -> bool:
        self._hear(key)
        return super().given(key)

    def _hear(self, key: str) -> None:
        if key not in self.asked:
            self.asked.append(key)


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
    """The points that some families do not have."""
    models = {name: tiny(name) for name in FAMILIES}
    lines: list[str] = []
    for point in HookPoint:
        absent = [n for n, model in models.items() if point not in model.backend.hook_points]
        if absent == list(models):
            lines.append(f"- `{point.name}`: no family of this version has it.")
        elif absent:
            lines.append(f"- `{point.name}`: not in {code(absent)}.")
    return "\n".join(lines)


def config(family: Family, **said: object) -> TransformerConfig:
    """What a family makes of the bare config."""
    return family.config({"model_type": family.model_type, **BARE, **said})


def fraction(scale: float) -> str:
    """A scale of attention scores as one over a root."""
    squared = round(scale**-2)
    return "1/√head_dim" if squared == HEAD else f"1/√{squared}"


def windows(found: tuple[int | None, ...]) -> str:
    """Windows of four layers, in words."""
    if set(found) == {None}:
        return "none"
    if len(set(found)) == 1:
        return f"{found[0]}, every layer"
    return ", ".join("none" if window is None else str(window) for window in found) + ", …"


def yes(value: object) -> str:
    """A truth, or a number that may be none, in words."""
    if value is None or value is False:
        return "no"
    return "yes" if value is True else str(value)


def width(family: Family) -> str:
    """A head's width where the config is silent."""
    found = config(family).head_dim
    return "hidden_size / heads" if found == WIDTH // HEADS else str(found)


def bias(cfg: TransformerConfig) -> str:
    """Which linear maps have a bias."""
    flags = {"q, k, v": cfg.qkv_bias, "o": cfg.o_proj_bias, "MLP": cfg.mlp_bias}
    return ", ".join(name for name, has in flags.items() if has) or "none"


def scalings(family: Family) -> str:
    """The kinds of rotary scaling that a family reads."""
    rule = family.rules["rope"]
    kinds = list(rule.kinds) if isinstance(rule, RopeRule) else []
    return ", ".join(kind for kind in kinds if kind != "default")


def embedding(cfg: TransformerConfig) -> str:
    """What embeddings are multiplied by."""
    scale = cfg.embedding_scale
    return "no" if scale is None else "√hidden_size" if round(scale**2) == WIDTH else str(scale)


AXES: Mapping[str, Callable[[Family, TransformerConfig], str]] = {
    "norm": lambda _, cfg: cfg.norm_type.value,
    "norm_eps": lambda _, cfg: f"{cfg.norm_eps:g}",
    "norms on outputs too": lambda _, cfg: yes(cfg.use_post_norms),
    "activation": lambda _, cfg: cfg.activation.value,
    "gated MLP": lambda _, cfg: yes(cfg.gated_mlp),
    "biases": lambda _, cfg: bias(cfg),
    "key/value heads": lambda _, cfg: (
        "as heads" if cfg.num_kv_heads == HEADS else str(cfg.num_kv_heads)
    ),
    "head width": lambda family, _: width(family),
    "score scale": lambda _, cfg: fraction(cfg.attn_scale),
    "score soft-cap": lambda _, cfg: yes(cfg.attn_logit_softcapping),
    "logit soft-cap": lambda _, cfg: yes(cfg.final_logit_softcapping),
    "sliding window": lambda _, cfg: windows(cfg.windows),
    "rotary base": lambda _, cfg: f"{cfg.rope.theta:g}",
    "rotary scaling read": lambda family, _: scalings(family),
    "embeddings scaled": lambda _, cfg: embedding(cfg),
    "tied unembedding": lambda _, cfg: yes(cfg.tie_word_embeddings),
}


def arithmetic() -> str:
    """What each family computes where its config is silent."""
    kinds = [(family, config(family, head_dim=HEAD)) for family in FAMILIES.values()]
    rows = [[name, *(show(f, cfg) for f, cfg in kinds)] for name, show in AXES.items()]
    return table(("", *(f"`{name}`" for name in FAMILIES)), rows)


def keys(family: Family) -> dict[str, list[str]]:
    """The config keys that each field is read from."""
    raw = {"model_type": family.model_type, **BARE}
    found: dict[str, list[str]] = {}
    for name, rule in family.rules.items():
        listening = Listening(raw)
        rule(listening)
        found[name] = listening.asked
    return found


def differences() -> str:
    """Each family by its table: what it reads and calls differently from Llama."""
    return "\n\n".join(section(family) for family in FAMILIES.values())


def section(family: Family) -> str:
    """One family."""
    if family is LLAMA:
        parts = ["The table that the others differ from.", *described(family, keys(family))]
        return "\n\n".join([f"### `{family.model_type}`", *parts])
    theirs = keys(LLAMA)
    read = {
        field: asked
        for field, asked in keys(family).items()
        if field not in theirs or set(asked) - set(BARE) != set(theirs[field]) - set(BARE)
    }
    parts = ["As `llama`, but:", *described(family, read)]
    return "\n\n".join([f"### `{family.model_type}`", *parts])


def described(family: Family, read: Mapping[str, list[str]]) -> list[str]:
    """What a family reads, what it calls things, and what it refuses."""
    base: dict[str, object] = {}
    if family is not LLAMA:
        base = {**LLAMA.sources, **LLAMA.fixed}
    parts: list[str] = []
    rows = [(f"`{name}`", code(asked) or "nothing: it is fixed") for name, asked in read.items()]
    if rows:
        parts.append(table(("field", "read from"), rows))
    sources = {ours: source for ours, source in family.sources.items() if base.get(ours) != source}
    if sources:
        named = [(f"`{ours}`", written(source)) for ours, source in sources.items()]
        parts.append(table(("our module", "in the checkpoint"), named))
    asked = {key for listed in keys(family).values() for key in listed}
    refused = {
        key: values
        for key, values in family.fixed.items()
        if key not in asked and base.get(key) != values
    }
    if refused:
        values = [f"`{key}` = {code(map(repr, only))}" for key, only in refused.items()]
        parts.append("Refused unless: " + "; ".join(values) + ".")
    return parts


def written(source: Source) -> str:
    """Where a module's tensors lie in a checkpoint."""
    name = f"`{source_name(source)}`"
    return name if isinstance(source, str) else f"{name}, part {source.part + 1}"


PARTS: Mapping[str, Callable[[], str]] = {
    "hooks outside the layers": hooks_outside,
    "hooks of a layer": hooks_inside,
    "absent hooks": availability,
    "arithmetic": arithmetic,
    "differences": differences,
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
