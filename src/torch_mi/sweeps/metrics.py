# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a run is judged by: values that turn logits [... vocab] into one score a row."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torch_mi.errors import ModelError

if TYPE_CHECKING:
    from torch_mi.model import MIModel

Word = str | int


class Metric(ABC):
    """A score for the logits at one position; words are resolved by the model it is used on."""

    @abstractmethod
    def score(self, model: "MIModel", logits: Tensor) -> Tensor:
        """Scores [...] of logits [... vocab]."""


@dataclass(frozen=True)
class Logit(Metric):
    """The logit of `token`."""

    token: Word

    def score(self, model: "MIModel", logits: Tensor) -> Tensor:
        return logits[..., model.token_id(self.token)]


@dataclass(frozen=True)
class LogitDiff(Metric):
    """How much higher the logit of `token` is than that of `other`."""

    token: Word
    other: Word

    def score(self, model: "MIModel", logits: Tensor) -> Tensor:
        return logits[..., model.token_id(self.token)] - logits[..., model.token_id(self.other)]


@dataclass(frozen=True)
class LogProb(Metric):
    """The natural logarithm of the probability of `token`."""

    token: Word

    def score(self, model: "MIModel", logits: Tensor) -> Tensor:
        return logits.float().log_softmax(-1)[..., model.token_id(self.token)]


@dataclass(frozen=True)
class Prob(Metric):
    """The probability of `token`."""

    token: Word

    def score(self, model: "MIModel", logits: Tensor) -> Tensor:
        return logits.float().softmax(-1)[..., model.token_id(self.token)]


@dataclass(frozen=True, eq=False)
class Kl(Metric):
    """KL(baseline ‖ run) in nats, exact, from the logits [vocab] of a baseline."""

    baseline: Tensor

    def score(self, model: "MIModel", logits: Tensor) -> Tensor:
        if self.baseline.shape != (model.vocab_size,):
            raise ModelError(
                f"kl needs baseline logits [{model.vocab_size}], got {list(self.baseline.shape)}"
            )
        ours = self.baseline.to(logits.device).double().log_softmax(-1)
        theirs = logits.double().log_softmax(-1)
        return (ours.exp() * (ours - theirs)).sum(-1).clamp(min=0).to(torch.float32)


def logit(token: Word) -> Metric:
    """The logit of a token: a word that is one token, or an id."""
    return Logit(token)


def logit_diff(token: Word, other: Word) -> Metric:
    """The logit of `token` minus that of `other`."""
    return LogitDiff(token, other)


def log_prob(token: Word) -> Metric:
    """The natural logarithm of a token's probability."""
    return LogProb(token)


def prob(token: Word) -> Metric:
    """A token's probability."""
    return Prob(token)


def kl(baseline: Tensor) -> Metric:
    """KL(baseline ‖ run) in nats, from baseline logits [vocab]."""
    return Kl(baseline)
