# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a checkpoint's tensors show of the arithmetic: fields of a config, inferred from names."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

from torch_mi.config.parts import BlockLayout, Embedding, Head, Learned, NormType, Over, QkNorm
from torch_mi.families.hidden import Values
from torch_mi.families.sources import Shape
from torch_mi.families.styles import Names

NORMS = {name: f"blocks.*.{name}" for name in ("norm1", "norm2", "post1", "post2")}

LAYOUTS: Mapping[frozenset[str], tuple[BlockLayout, ...]] = {
    frozenset(["norm1", "norm2"]): (BlockLayout.Pre, BlockLayout.ParallelTwo),
    frozenset(["norm1"]): (BlockLayout.Parallel,),
    frozenset(NORMS): (BlockLayout.Sandwich,),
    frozenset(["post1", "post2"]): (BlockLayout.Post,),
}
"""Which layouts have these norms, the plainest first."""


@dataclass(frozen=True)
class Shown:
    """A field that the tensors decide."""

    field: str
    value: object
    because: str


def shown(names: Names, values: Values, config: Mapping[str, object]) -> Iterator[Shown]:
    """Every field that the tensors decide, given what a family's rules make of the config."""
    for infer in (biases, gate, norms, layout, qk_norm, embedding, head, tying):
        yield from infer(names, values, config)


def biases(names: Names, _values: Values, _config: Mapping[str, object]) -> Iterator[Shown]:
    """Biases of queries, keys and values together, of the attention's output, of the MLP."""
    for field, ours in {
        "qkv_bias": "blocks.*.attn.q",
        "o_proj_bias": "blocks.*.attn.o",
        "mlp_bias": "blocks.*.mlp.down",
    }.items():
        if names.has(ours):
            there = names.has(ours, "bias")
            said = "has" if there else "has no"
            yield Shown(field, there, f"the checkpoint {said} {names.pattern(ours, 'bias')}")


def gate(names: Names, _values: Values, _config: Mapping[str, object]) -> Iterator[Shown]:
    """Whether MLPs have a gate."""
    if names.has("blocks.*.mlp.up"):
        there = names.has("blocks.*.mlp.gate")
        name = names.pattern("blocks.*.mlp.gate" if there else "blocks.*.mlp.up")
        yield Shown("gated_mlp", there, f"{name} is {'a' if there else 'without'} gate")


def norms(names: Names, values: Values, _config: Mapping[str, object]) -> Iterator[Shown]:
    """Whether norms have gains and biases."""
    found = [ours for ours in (*NORMS.values(), "norm") if names.has(ours)]
    if not found:
        return
    kind = values.get("norm_type")
    if any(names.has(ours, "bias") for ours in found):
        yield Shown("norm_type", NormType.Layer, f"{names.pattern(found[0])} comes with a bias")
    elif not isinstance(kind, NormType) or kind is NormType.Layer:
        because = f"{names.pattern(found[0])} comes without a bias"
        yield Shown("norm_type", NormType.LayerGain, because)


def layout(names: Names, values: Values, _config: Mapping[str, object]) -> Iterator[Shown]:
    """Where norms stand in a layer."""
    stand = frozenset(name for name, ours in NORMS.items() if names.has(ours))
    options = LAYOUTS.get(stand, ())
    if options and values.get("layout", BlockLayout.Pre) not in options:
        said = " and ".join(names.pattern(NORMS[name]) for name in sorted(stand))
        yield Shown("layout", options[0], f"the norms of a layer are {said}")


def qk_norm(names: Names, values: Values, _config: Mapping[str, object]) -> Iterator[Shown]:
    """Norms of queries and keys, by the shape of their gains."""
    ours, had = "blocks.*.attn.norm_q", values.get("qk_norm")
    if values.get("latent") is not None:
        return
    if not names.has(ours):
        if had is not None:
            yield Shown("qk_norm", None, "the checkpoint has no norms of queries and keys")
        return
    heads, width = values.get("num_attention_heads"), values.get("head_dim")
    if not isinstance(heads, int) or not isinstance(width, int):
        return
    shape = names.shape(ours)
    overs: dict[Shape, Over] = {(width,): Over.Head, (heads * width,): Over.Whole}
    over = overs.get(shape, Over.EachHead)
    kind = cast("NormType", values.get("norm_type", NormType.Rms))
    if names.has(ours, "bias"):
        kind = NormType.Layer
    elif kind is NormType.Layer:
        kind = NormType.LayerGain
    fits = isinstance(had, QkNorm) and (heads == 1 or had.over is over)
    if not fits or cast("QkNorm", had).norm_type.has_bias != kind.has_bias:
        because = f"{names.pattern(ours)} has the shape {list(shape)}"
        yield Shown("qk_norm", QkNorm(kind, over), because)


def embedding(names: Names, values: Values, _config: Mapping[str, object]) -> Iterator[Shown]:
    """Learned positions, and a norm after them."""
    had = values.get("embedding", Embedding())
    if not isinstance(had, Embedding):
        return
    now = replace(had, norm=names.has("norm0"))
    if not names.has("positions"):
        now = replace(now, learned=None)
    elif had.learned is None:
        now = replace(now, learned=Learned(names.shape("positions")[0]))
    if now != had:
        yield Shown("embedding", now, f"of what precedes the layers it has {before(names)}")


def before(names: Names) -> str:
    """What stands before the first layer, in words."""
    found = [names.pattern(o) for o in ("tokens", "positions", "norm0") if names.has(o)]
    return ", ".join(found) or "nothing"


def head(names: Names, values: Values, _config: Mapping[str, object]) -> Iterator[Shown]:
    """Whether the unembedding has a bias."""
    had, there = values.get("head", Head()), names.has("head", "bias")
    if isinstance(had, Head) and had.bias != there:
        said = names.pattern("head", "bias") or "bias of the unembedding"
        because = f"the checkpoint {'has' if there else 'has no'} {said}"
        yield Shown("head", replace(had, bias=there), because)


def tying(names: Names, _values: Values, config: Mapping[str, object]) -> Iterator[Shown]:
    """Where the config does not say, an unembedding of its own is one that is there."""
    if config.get("tie_word_embeddings") is None and names.has("tokens"):
        there = names.has("head")
        because = f"the checkpoint has {'an' if there else 'no'} unembedding of its own"
        yield Shown("tie_word_embeddings", not there, because)
