# SPDX-License-Identifier: MIT OR Apache-2.0
"""The backend of a config of either kind."""

import torch

from torch_mi.backends.recurrent import Recurrent
from torch_mi.backends.transformer import Transformer
from torch_mi.config.recurrent import RecurrentConfig
from torch_mi.config.transformer import TransformerConfig

Config = TransformerConfig | RecurrentConfig


def build(cfg: Config) -> Transformer | Recurrent:
    """A model of this config, with weights that mean nothing yet."""
    return Recurrent(cfg) if isinstance(cfg, RecurrentConfig) else Transformer(cfg)


def shapes_of(cfg: Config) -> dict[str, tuple[int, ...]]:
    """Every parameter that a model of this config owns, in module order; a tied head is not one."""
    with torch.device("meta"):
        backend = build(cfg)
    return {name: tuple(p.shape) for name, p in backend.named_parameters()}
