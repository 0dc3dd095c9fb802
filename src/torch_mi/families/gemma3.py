# SPDX-License-Identifier: MIT OR Apache-2.0
"""Gemma 3: windows in five layers of six, two rotary embeddings, norms of queries and keys.

The smallest checkpoints are text models. The larger ones see images as well; of those the text
model is read, as their text-only use computes it. The vision tower and the projector are stated in
the plan as passed over.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from torch_mi.config.parts import NormType, Over, QkNorm
from torch_mi.errors import ConfigError
from torch_mi.families.compose import head
from torch_mi.families.decoder import GEMMA2, WIDE_HEAD
from torch_mi.families.family import Family
from torch_mi.families.layers import PATTERN, ButEvery
from torch_mi.families.rope import RopeRule, RopesByKind
from torch_mi.families.rules import Reader, constant, integer, kv_heads
from torch_mi.families.sources import Source, source_name

WINDOWS = ButEvery(6)
WHOLE = RopeRule(131_072, WIDE_HEAD, theta=1_000_000.0)
WINDOWED = RopeRule(131_072, WIDE_HEAD, base="rope_local_base_freq")

GEMMA3_TEXT = GEMMA2.but(
    "gemma3_text",
    rules={
        "num_kv_heads": kv_heads(absent=4),
        "max_position_embeddings": integer("max_position_embeddings", 131_072),
        "ropes": RopesByKind(WHOLE, WINDOWED, WINDOWS),
        "windows": WINDOWS,
        "qk_norm": constant(QkNorm(NormType.RmsPlusOne, Over.Head)),
        "attn_logit_softcapping": constant(None),
        "head": head(softcap=lambda c: c.get(float, "final_logit_softcapping")),
    },
    sources={
        "blocks.*.attn.norm_q": "model.layers.*.self_attn.q_norm",
        "blocks.*.attn.norm_k": "model.layers.*.self_attn.k_norm",
    },
    inert={PATTERN, f"_{PATTERN}"},
    fixed={"attn_logit_softcapping": ()},
    tiny={
        "rope_theta": 200.0,
        "rope_local_base_freq": 20.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        "sliding_window": 4,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 7,
        "final_logit_softcapping": 3.0,
        "attention_bias": True,
    },
)

TEXT, TIED = "text_config", "tie_word_embeddings"


@dataclass(frozen=True)
class WithImages(Family):
    """A family whose config keeps the keys of its text model under one of its own."""

    text_type: str = ""
    """The `model_type` in there."""
    defaults: Mapping[str, object] = field(default_factory=dict[str, object])
    """What a text model that is silent has."""

    def respelt(self, raw: Mapping[str, object]) -> Mapping[str, object]:
        """The text model's keys, as if they were all there is; that may be so already."""
        c = Reader(raw)
        inner = cast("Mapping[str, object] | None", c.get(dict, TEXT))
        if inner is None:
            return super().respelt(raw)
        kind = Reader(inner, TEXT).get(str, "model_type") or self.text_type
        if kind != self.text_type:
            raise ConfigError(
                f"{TEXT} has model_type = {kind!r}; "
                f"in {self.model_type} only {self.text_type!r} is modelled"
            )
        tied = c.get(bool, TIED) is not False
        if tied and Reader(inner, TEXT).get(bool, TIED) is False:
            raise ConfigError(f"{TEXT} has {TIED} = False, but config.json does not say so")
        beside = {key: value for key, value in raw.items() if key not in {TEXT, TIED}}
        for key, value in beside.items():
            if value is not None and key not in self.inert | set(self.fixed):
                raise ConfigError(f"config.json has {key} beside {TEXT}; it belongs in there")
        return {**self.defaults, **beside, **super().respelt(inner), TIED: tied}


def within(sources: Mapping[str, Source], old: str, new: str) -> dict[str, Source]:
    """The same names below another module."""
    return {
        ours: f"{new}{source_name(source).removeprefix(old)}" for ours, source in sources.items()
    }


BODY = {ours: source for ours, source in GEMMA3_TEXT.sources.items() if ours != "head"}

GEMMA3 = WithImages(
    "gemma3",
    rules={**GEMMA3_TEXT.rules, "head": head()},
    sources={**within(BODY, "model", "model.language_model"), "head": "lm_head"},
    inert=GEMMA3_TEXT.inert
    | {
        "boi_token_id",
        "boi_token_index",
        "eoi_token_id",
        "eoi_token_index",
        "image_token_id",
        "image_token_index",
        "mm_tokens_per_image",
        "vision_config",
    },
    fixed={**GEMMA3_TEXT.fixed, "final_logit_softcapping": ()},
    buffers=(
        "model.vision_tower.**",
        "model.multi_modal_projector.**",
        "vision_tower.**",
        "multi_modal_projector.**",
    ),
    variants=({**within(BODY, "model", "language_model.model"), "head": "language_model.lm_head"},),
    tiny={**GEMMA3_TEXT.tiny, "final_logit_softcapping": None},
    text_type="gemma3_text",
    defaults={
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
    },
)

GEMMAS = (GEMMA3_TEXT, GEMMA3)
