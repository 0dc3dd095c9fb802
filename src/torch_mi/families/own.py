# SPDX-License-Identifier: MIT OR Apache-2.0
"""Models saved by this library: the config is our own, and every tensor has our own name."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import cast

from torch_mi.config.recurrent import RecurrentConfig
from torch_mi.config.saving import config_from_json, config_to_json, recurrent_from_json
from torch_mi.config.transformer import TransformerConfig
from torch_mi.errors import ConfigError, ModelError
from torch_mi.families.family import Family
from torch_mi.families.names import Placement, Plan, Tying, extra_message, missing_message
from torch_mi.families.rules import brief
from torch_mi.families.sources import Shape, Whole

MODEL_TYPE = "torch_mi"
CONFIG, RECURRENT, VERSION, FORM = "transformer", "recurrent", "format", 1


@dataclass(frozen=True)
class OwnFamily(Family):
    """What `MIModel.save` writes."""

    def config(self, raw: Mapping[str, object]) -> TransformerConfig:
        return config_from_json(self.inside(raw, CONFIG))

    def recurrent(self, raw: Mapping[str, object]) -> RecurrentConfig:
        """The config of a recurrent model."""
        return recurrent_from_json(self.inside(raw, RECURRENT))

    def inside(self, raw: Mapping[str, object], key: str) -> dict[str, object]:
        """The config within `config.json`, once all around it is as it should be."""
        if raw.get(VERSION) != FORM:
            raise ConfigError(
                f"config.json has {VERSION} = {brief(raw.get(VERSION))}; only {FORM} is known here"
            )
        found = raw.get(key)
        if not isinstance(found, dict):
            raise ConfigError(f"config.json has no object {key!r}")
        left = sorted(set(raw) - {"model_type", VERSION, key, *self.inert})
        if left:
            raise ConfigError(f"config.json: {self.model_type} has no use for {', '.join(left)}")
        return cast("dict[str, object]", found)

    def place(self, cfg: Tying, shapes: Mapping[str, Shape], names: Collection[str]) -> Plan:
        missing = [name for name in shapes if name not in names]
        extra = [name for name in names if name not in shapes]
        if missing:
            raise ModelError(missing_message(missing, names))
        if extra:
            raise ModelError(extra_message(extra))
        placements = [
            Placement(name, (name,), shape, shape, Whole(name), cfg)
            for name, shape in shapes.items()
        ]
        return Plan(tuple(placements), {}, ())


OWN = OwnFamily(
    MODEL_TYPE,
    rules={},
    sources={},
    inert=frozenset(
        ["bos_token_id", "eos_token_id", "pad_token_id", "torch_mi_version", "vocab_size"]
    ),
    fixed={},
)


def own_config(cfg: TransformerConfig | RecurrentConfig) -> dict[str, object]:
    """The `config.json` of a model of this config."""
    key = RECURRENT if isinstance(cfg, RecurrentConfig) else CONFIG
    return {"model_type": MODEL_TYPE, VERSION: FORM, key: config_to_json(cfg)}
