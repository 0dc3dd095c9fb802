# SPDX-License-Identifier: MIT OR Apache-2.0
"""torch-mi: mechanistic interpretability for language models.

Public names load on first use, so that `import torch_mi` costs nothing and the names cost torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from torch_mi.analysis.attribution import Attribution as Attribution
    from torch_mi.analysis.attribution import attribute as attribute
    from torch_mi.analysis.gradients import gradients as gradients
    from torch_mi.analysis.heads import HeadScores as HeadScores
    from torch_mi.analysis.heads import find_heads as find_heads
    from torch_mi.analysis.lens import LogitLensResult as LogitLensResult
    from torch_mi.analysis.lens import logit_lens as logit_lens
    from torch_mi.analysis.patching import patch as patch
    from torch_mi.cache import HookCache as HookCache
    from torch_mi.cache import Prefix as Prefix
    from torch_mi.cache import Residual as Residual
    from torch_mi.compatibility import CompatibilityReport as CompatibilityReport
    from torch_mi.compatibility import check as check
    from torch_mi.config.transformer import TransformerConfig as TransformerConfig
    from torch_mi.errors import ConfigError as ConfigError
    from torch_mi.errors import DownloadError as DownloadError
    from torch_mi.errors import FileError as FileError
    from torch_mi.errors import HookError as HookError
    from torch_mi.errors import InterventionError as InterventionError
    from torch_mi.errors import MemoryForecastError as MemoryForecastError
    from torch_mi.errors import MIError as MIError
    from torch_mi.errors import ModelError as ModelError
    from torch_mi.errors import TokenizerError as TokenizerError
    from torch_mi.forecasting import forecast as forecast
    from torch_mi.generate import GenerationResult as GenerationResult
    from torch_mi.generate import stream as stream
    from torch_mi.hooks.coordinates import At as At
    from torch_mi.hooks.coordinates import Span as Span
    from torch_mi.hooks.coordinates import Token as Token
    from torch_mi.hooks.interventions import Add as Add
    from torch_mi.hooks.interventions import Apply as Apply
    from torch_mi.hooks.interventions import Intervention as Intervention
    from torch_mi.hooks.interventions import Knockout as Knockout
    from torch_mi.hooks.interventions import Replace as Replace
    from torch_mi.hooks.interventions import Scale as Scale
    from torch_mi.hooks.interventions import Zero as Zero
    from torch_mi.hooks.point import Hook as Hook
    from torch_mi.hooks.point import HookPoint as HookPoint
    from torch_mi.hooks.spec import HookSpec as HookSpec
    from torch_mi.hooks.states import StateKnockoutSpec as StateKnockoutSpec
    from torch_mi.hooks.states import StateSteeringSpec as StateSteeringSpec
    from torch_mi.making import from_transformer_lens as from_transformer_lens
    from torch_mi.manifest import Manifest as Manifest
    from torch_mi.model import MIModel as MIModel
    from torch_mi.sampling import extract_token_prob as extract_token_prob
    from torch_mi.sampling import sample_token as sample_token
    from torch_mi.sweeps.grid import Grid as Grid
    from torch_mi.sweeps.metrics import Metric as Metric
    from torch_mi.sweeps.metrics import kl as kl
    from torch_mi.sweeps.metrics import log_prob as log_prob
    from torch_mi.sweeps.metrics import logit as logit
    from torch_mi.sweeps.metrics import logit_diff as logit_diff
    from torch_mi.sweeps.metrics import prob as prob
    from torch_mi.sweeps.result import SweepResult as SweepResult
    from torch_mi.sweeps.run import sweep as sweep
    from torch_mi.tokens.positions import convert_positions as convert_positions
    from torch_mi.tokens.tokenizer import MITokenizer as MITokenizer
    from torch_mi.verification import Verification as Verification
    from torch_mi.verification import verify as verify

_HOME = {
    "analysis.lens": ["LogitLensResult", "logit_lens"],
    "analysis.attribution": ["Attribution", "attribute"],
    "analysis.gradients": ["gradients"],
    "analysis.heads": ["HeadScores", "find_heads"],
    "analysis.patching": ["patch"],
    "sweeps.grid": ["Grid"],
    "sweeps.metrics": ["Metric", "kl", "log_prob", "logit", "logit_diff", "prob"],
    "sweeps.result": ["SweepResult"],
    "sweeps.run": ["sweep"],
    "tokens.positions": ["convert_positions"],
    "tokens.tokenizer": ["MITokenizer"],
    "verification": ["Verification", "verify"],
    "cache": ["HookCache", "Prefix", "Residual"],
    "compatibility": ["CompatibilityReport", "check"],
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
    "forecasting": ["forecast"],
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
    "making": ["from_transformer_lens"],
    "manifest": ["Manifest"],
    "model": ["MIModel"],
    "sampling": ["extract_token_prob", "sample_token"],
}
_WHERE = {name: f"torch_mi.{home}" for home, names in _HOME.items() for name in names}

__all__ = ["__version__", *sorted(_WHERE)]  # noqa: PLE0604  # pyright: ignore[reportUnsupportedDunderAll] - read off the table above


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        from torch_mi.errors import did_you_mean  # noqa: PLC0415 - only for the message

        raise AttributeError(f"torch_mi has no {name!r}{did_you_mean(name, _WHERE)}")
    value = globals()[name] = vars(import_module(_WHERE[name]))[name]
    return value


def __dir__() -> list[str]:
    return __all__
