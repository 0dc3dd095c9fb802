# SPDX-License-Identifier: MIT OR Apache-2.0
"""Arithmetic that tensors do not show: it counts as known only if a key of the config speaks of it.

Each feature looks at one field of a `TransformerConfig` and says in words what is special about it,
or nothing where it is the plain case that most models are.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from torch_mi.config.parts import BlockLayout, Embedding, Head, NormType, QkNorm
from torch_mi.config.rope import Rope

Values = Mapping[str, object]
"""Fields of a config, as far as they are known."""

ANY = "."
NEVER = "(?!)"

Test = Callable[[Values], bool]


@dataclass(frozen=True)
class Feature:
    """Something that a model may compute and that the shapes of its tensors do not tell."""

    words: str
    field: str
    test: Test
    evidence: str
    """A pattern of the keys that speak of it, among those that the field is read from."""
    against: str = ""
    """A pattern of keys without which the feature is plain."""


def norm_is(*types: NormType) -> Test:
    """Whether the norms are of one of these types."""
    return lambda v: v.get("norm_type") in types


def scale_of_embedding(v: Values) -> bool:
    """Whether embeddings are scaled."""
    part = v.get("embedding")
    return isinstance(part, Embedding) and part.scale is not None


def scale_of_head(v: Values) -> bool:
    """Whether logits are scaled."""
    part = v.get("head")
    return isinstance(part, Head) and part.scale is not None


def cap_of_head(v: Values) -> bool:
    """Whether logits are soft-capped."""
    part = v.get("head")
    return isinstance(part, Head) and part.softcap is not None


def ropes_of(v: Values) -> list[Rope | None]:
    """How each layer turns, as far as known."""
    return list(cast("tuple[Rope | None, ...]", v.get("ropes") or ()))


def interleaved(v: Values) -> bool:
    """Whether neighbouring dimensions turn together."""
    return any(rope is not None and rope.interleaved for rope in ropes_of(v))


def turns_in_part(v: Values) -> bool:
    """Whether some dimensions of a head do not turn."""
    width = v.get("head_dim")
    return any(rope is not None and rope.dim != width for rope in ropes_of(v))


def some_still(v: Values) -> bool:
    """Whether some layers turn and others do not."""
    ropes = ropes_of(v)
    return None in ropes and any(rope is not None for rope in ropes)


def no_positions(v: Values) -> bool:
    """Whether a model has no positions at all."""
    embedding = v.get("embedding")
    learned = isinstance(embedding, Embedding) and embedding.learned is not None
    ropes = ropes_of(v)
    still = bool(ropes) and all(rope is None for rope in ropes)
    return still and not learned and v.get("alibi") is None


def learned_and_turning(v: Values) -> bool:
    """Whether positions are learned and turn as well."""
    embedding = v.get("embedding")
    learned = isinstance(embedding, Embedding) and embedding.learned is not None
    return learned and any(rope is not None for rope in ropes_of(v))


def several_ropes(v: Values) -> bool:
    """Whether layers turn by different frequencies."""
    return len({rope for rope in ropes_of(v) if rope is not None}) > 1


def windows_of(v: Values) -> list[int | None]:
    """Each layer's window, as far as known."""
    return list(cast("tuple[int | None, ...]", v.get("windows") or ()))


def windowed(v: Values) -> bool:
    """Whether any layer has a window."""
    return any(window is not None for window in windows_of(v))


def windowed_in_part(v: Values) -> bool:
    """Whether some layers have a window and others do not."""
    return windowed(v) and None in windows_of(v)


def scaled_otherwise(v: Values) -> bool:
    """Whether scores are scaled by anything but the root of a head's width."""
    width = v.get("head_dim")
    scales = cast("tuple[float, ...]", v.get("attn_scales") or ())
    if not isinstance(width, int) or width <= 0:
        return False
    return any(not math.isclose(scale, width**-0.5) for scale in scales)


def set_at_all(field: str) -> Test:
    """Whether a field is anything but absent."""
    return lambda v: v.get(field) is not None


def qk_norm_is(*types: NormType) -> Test:
    """Whether norms of queries and keys are of one of these types."""

    def test(v: Values) -> bool:
        norm = v.get("qk_norm")
        return isinstance(norm, QkNorm) and norm.norm_type in types

    return test


def side_by_side(v: Values) -> bool:
    """Whether attention and MLP read the same residual stream through two norms."""
    return v.get("layout") is BlockLayout.ParallelTwo


FEATURES = (
    Feature("norms multiply by 1 + gain", "norm_type", norm_is(NormType.RmsPlusOne), NEVER),
    Feature(
        "norms have no parameters",
        "norm_type",
        norm_is(NormType.LayerBare, NormType.RmsBare, NormType.Absent),
        "affine",
    ),
    Feature(
        "norms take off the mean and have no bias",
        "norm_type",
        norm_is(NormType.LayerGain),
        "layer_?norm|norm_type",
    ),
    Feature(
        "norms are of root mean square and have an epsilon that is named for layer norms",
        "norm_type",
        norm_is(NormType.Rms, NormType.RmsFloat),
        NEVER,
        against="layer_?norm",
    ),
    Feature("embeddings are scaled", "embedding", scale_of_embedding, "scal|multipl"),
    Feature("rotary pairs are interleaved", "ropes", interleaved, "interleav"),
    Feature("only part of each head turns", "ropes", turns_in_part, "rotary|rope_p"),
    Feature("some layers do not turn", "ropes", some_still, "no_rope"),
    Feature("nothing tells positions apart", "ropes", no_positions, NEVER),
    Feature("learned positions turn as well", "ropes", learned_and_turning, "rope|rotary"),
    Feature("layers turn differently", "ropes", several_ropes, "local|rope_parameters|no_rope"),
    Feature("scores fall with distance (ALiBi)", "alibi", set_at_all("alibi"), "alibi|attn_config"),
    Feature("attention has a window", "windows", windowed, "window|layer_types|attention_types"),
    Feature(
        "some layers have a window",
        "windows",
        windowed_in_part,
        "layer_types|pattern|max_window|attention_types|no_rope",
    ),
    Feature(
        "scores are not divided by the root of a head's width",
        "attn_scales",
        scaled_otherwise,
        "scal|multipl|attn_config",
    ),
    Feature(
        "scores are soft-capped",
        "attn_logit_softcapping",
        set_at_all("attn_logit_softcapping"),
        ANY,
    ),
    Feature("logits are soft-capped", "head", cap_of_head, "softcap"),
    Feature("logits are scaled", "head", scale_of_head, "scal|multipl"),
    Feature("queries, keys and values are clipped", "clip_qkv", set_at_all("clip_qkv"), ANY),
    Feature("what layers add is scaled", "residual_scale", set_at_all("residual_scale"), ANY),
    Feature("attention and MLP run side by side", "layout", side_by_side, "parallel|decoder_arch"),
    Feature("tokens are sent to experts", "experts", set_at_all("experts"), NEVER),
    Feature("keys and values are squeezed", "latent", set_at_all("latent"), NEVER),
    Feature(
        "norms of queries and keys take off the mean and have no bias",
        "qk_norm",
        qk_norm_is(NormType.LayerGain, NormType.LayerBare, NormType.RmsBare),
        "layer_?norm",
    ),
)


def hidden(values: Values, keys: Mapping[str, frozenset[str]]) -> Iterator[Feature]:
    """What these values compute that neither tensors nor the keys they were read from show."""
    for feature in FEATURES:
        read = keys.get(feature.field, frozenset())
        if feature.field == "norm_type":
            read = read | keys.get("norm_eps", frozenset())
        told = any(re.search(feature.evidence, key) for key in read)
        odd = any(re.search(feature.against, key) for key in read) or not feature.against
        if odd and not told and feature.test(values):
            yield feature
