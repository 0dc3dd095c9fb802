# SPDX-License-Identifier: MIT OR Apache-2.0
"""Every error this library raises on purpose.

MIError
├── ConfigError          a config.json says something this library does not model
├── ModelError           weights: a missing, extra or misshapen tensor; a run that cannot be
├── HookError            a hook point is misspelt, absent from this model, or was not captured
├── InterventionError    an edit does not fit the activation it is aimed at
├── TokenizerError       text or token ids that this tokenizer cannot serve
├── FileError            a file is absent, broken or would be half-written
├── DownloadError        the Hub could not be reached, or refused
└── MemoryForecastError  the machine does not have the memory this would need
"""

import difflib
from collections.abc import Iterable


class MIError(Exception):
    """Base class: `except MIError` catches everything the library raises on purpose."""


class ConfigError(MIError):
    """A model's `config.json` says something this library does not model."""


class ModelError(MIError):
    """Weights do not fit the model, or a run was asked for that the model cannot make."""


class HookError(MIError):
    """A hook point was misspelt, is absent from this model, or was not captured."""


class InterventionError(MIError):
    """An edit does not fit the activation it was aimed at."""


class TokenizerError(MIError):
    """Text or token ids that this tokenizer cannot serve."""


class FileError(MIError):
    """A file is absent, broken, or not what it should be."""


class DownloadError(MIError):
    """The Hub could not be reached, or refused."""


class MemoryForecastError(MIError):
    """The machine does not have the memory that this would need."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the choice nearest to `name`, or nothing if none is near.

    >>> did_you_mean("hook_embd", ["hook_embed", "hook_logits"])
    "; did you mean 'hook_embed'?"
    """
    near = difflib.get_close_matches(name, list(choices), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
