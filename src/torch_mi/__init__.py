# SPDX-License-Identifier: MIT OR Apache-2.0
"""torch-mi: mechanistic interpretability for language models.

Public names load on first use, so that `import torch_mi` costs nothing and the names cost torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from torch_mi.cache import HookCache, Prefix, Residual
    from torch_mi.config.transformer import TransformerConfig
    from torch_mi.errors import (
        ConfigError,
        DownloadError,
        FileError,
        HookError,
        InterventionError,
        MemoryForecastError,
        MIError,
        ModelError,
        TokenizerError,
    )
    from torch_mi.generate import GenerationResult, stream
    from torch_mi.hooks.coordinates import At, Span, Token
    from torch_mi.hooks.interventions import (
        Add,
        Apply,
        Intervention,
        Knockout,
        Replace,
        Scale,
        Zero,
    )
    from torch_mi.hooks.point import Hook, HookPoint
    from torch_mi.hooks.spec import HookSpec
    from torch_mi.hooks.states import StateKnockoutSpec, StateSteeringSpec
    from torch_mi.manifest import Manifest
    from torch_mi.model import MIModel
    from torch_mi.sampling import extract_token_prob, sample_token

_HOME = {
    "cache": ["HookCache", "Prefix", "Residual"],
    "config.transformer": ["TransformerConfig"],
    "errors": [
        "ConfigError",
        "DownloadError",
        "FileError",
        "HookError",
        "InterventionError",
        "MIError",
        "MemoryForecastError",
        "ModelError",
        "TokenizerError",
    ],
    "generate": ["GenerationResult", "stream"],
    "hooks.coordinates": ["At", "Span", "Token"],
    "hooks.interventions": [
        "Add",
        "Apply",
        "Intervention",
        "Knockout",
        "Replace",
        "Scale",
        "Zero",
    ],
    "hooks.point": ["Hook", "HookPoint"],
    "hooks.spec": ["HookSpec"],
    "hooks.states": ["StateKnockoutSpec", "StateSteeringSpec"],
    "manifest": ["Manifest"],
    "model": ["MIModel"],
    "sampling": ["extract_token_prob", "sample_token"],
}
_WHERE = {name: f"torch_mi.{home}" for home, names in _HOME.items() for name in names}

__all__ = ["__version__", *sorted(_WHERE)]  # noqa: PLE0604 - read off the table above


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        from torch_mi.errors import did_you_mean  # noqa: PLC0415 - only for the message

        raise AttributeError(f"torch_mi has no {name!r}{did_you_mean(name, _WHERE)}")
    value = globals()[name] = vars(import_module(_WHERE[name]))[name]
    return value


def __dir__() -> list[str]:
    return __all__
