# SPDX-License-Identifier: MIT OR Apache-2.0
"""What transformers makes of a config, and whether every tensor of it has a place here."""

import copy
import os
from pathlib import Path
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from torch_mi.backends.transformer import parameter_shapes
from torch_mi.config.transformer import TransformerConfig

HERE = Path(__file__).resolve().parents[2]
CONFIGS = Path(os.environ.get("TORCH_MI_SHARED", HERE.parent / "shared")) / "data" / "configs"

Raw = dict[str, Any]


def reference(raw: Raw) -> Any:
    """The config object of transformers."""
    return CONFIG_MAPPING[raw["model_type"]].from_dict(copy.deepcopy(raw))


def placed(family: Any, cfg: TransformerConfig, model: Any) -> Any:
    """A plan by which every tensor of the reference has a place of the right shape."""
    theirs = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    plan = family.place(cfg, parameter_shapes(cfg), theirs)
    for p in plan.placements:
        assert {theirs[name] for name in p.theirs} == {p.stored}
    assert {name for p in plan.placements for name in p.theirs} | set(plan.duplicates) == set(
        theirs
    )
    assert not plan.ignored
    return plan
