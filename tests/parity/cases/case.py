# SPDX-License-Identifier: MIT OR Apache-2.0
"""One kind of model to compare with `transformers`."""

from collections.abc import Mapping
from dataclasses import dataclass, field

Config = Mapping[str, object]

COMMON: Config = {
    "hidden_size": 36,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 83,
    "max_position_embeddings": 64,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}
"""Sizes of the models whose configs call them so."""

WIDE = {"head_dim": 10}
"""Heads wider than an even share."""


@dataclass(frozen=True)
class Case:
    """One kind of model: a family, and where its config differs from `common`."""

    name: str
    family: str
    config: Config = field(default_factory=dict[str, object])
    common: Config = field(default_factory=lambda: COMMON)
    """What `config` is added to; another base for a family that calls its sizes otherwise."""
    shared: bool = True
    """Whether a model in memory can be wrapped without copying any tensor."""

    def __str__(self) -> str:
        return self.name


def rope(kind: str, **more: object) -> Config:
    """A rotary embedding, in the spelling of transformers 5."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **more}}
