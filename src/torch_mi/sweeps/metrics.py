# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a run is judged by: values that turn logits [... vocab] into one score a row.

A word may be given for each prompt of a dataset, as a list; a KL divergence without logits of its
own is taken from the plain run.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from torch_mi.errors import ModelError

if TYPE_CHECKING:
    from torch_mi.model import MIModel

Word = str | int
Words = Word | Sequence[Word]
Judge = Callable[[Tensor], Tensor]
"""A function from logits [row vocab] to scores [row]."""


class Metric(ABC):
    """A score for the logits at one position; words are resolved by the model it is used on."""

    @abstractmethod
    def score(self, model: "MIModel", logits: Tensor) -> Tensor:
        """Scores [...] of logits [... vocab]."""

    def of(self, prompt: int, prompts: int, plain: Tensor) -> "Metric":  # noqa: ARG002
        """This for one prompt of so many, whose plain run ends in the logits `plain` [vocab]."""
        return self


@dataclass(frozen=True)
class OfWords(Metric):
    """A metric about one token, or about one for each prompt."""

    token: Word | tuple[Word, ...]

    def of(self, prompt: int, prompts: int, plain: Tensor) -> Self:  # noqa: ARG002
        return replace(self, token=_pick(self.token, prompt, prompts))


class Logit(OfWords):
    """The logit of `token`."""

    def score(self, model: "MIModel", logits: Tensor) -> Tensor:
        return logits[..., _id(model, self.token)]


@dataclass(frozen=True)
class LogitDiff(OfWords):
    """How much higher the logit of `token` is than that of `other`."""

    other: Word | tuple[Word, ...]

    def of(self, prompt: int, prompts: int, plain: Tensor) -> Self:
        other = _pick(self.other, prompt, prompts)
        return replace(super().of(prompt, prompts, plain), other=other)

    def score(self, model: "MIModel", logits: Tensor) -> Tensor:
        return logits[..., _id(model, self.token)] - logits[..., _id(model, self.other)]


class LogProb(OfWords):
    """The natural logarithm of the probability of `token`."""

    def score(self, model: "MIModel", logits: Tensor) -> Tensor:
        return logits.float().log_softmax(-1)[..., _id(model, self.token)]


class Prob(OfWords):
    """The probability of `token`."""

    def score(self, model: "MIModel", logits: Tensor) -> Tensor:
        return logits.float().softmax(-1)[..., _id(model, self.token)]


class Rank(OfWords):
    """The rank of `token`: 1 is the likeliest."""

    def score(self, model: "MIModel", logits: Tensor) -> Tensor:
        own = logits[..., _id(model, self.token)]
        return 1.0 + (logits > own[..., None]).sum(-1).float()


@dataclass(frozen=True, eq=False)
class Kl(Metric):
    """KL(baseline ‖ run) in nats, exact, from the logits [vocab] of a baseline or the plain run."""

    baseline: Tensor | None = None

    def of(self, prompt: int, prompts: int, plain: Tensor) -> "Kl":  # noqa: ARG002
        return Kl(plain) if self.baseline is None else self

    def score(self, model: "MIModel", logits: Tensor) -> Tensor:  # noqa: ARG002
        size = logits.shape[-1]
        if self.baseline is None:
            raise ModelError("kl without baseline logits compares with the plain run of a sweep")
        if self.baseline.shape != (size,):
            raise ModelError(f"kl needs baseline logits [{size}], got {list(self.baseline.shape)}")
        ours = self.baseline.to(logits.device).double().log_softmax(-1)
        theirs = logits.double().log_softmax(-1)
        # where the baseline gives no chance at all nothing is lost, whatever the run gives
        lost = torch.where(ours == -torch.inf, 0, ours.exp() * (ours - theirs))
        return lost.sum(-1).clamp(min=0).to(torch.float32)

    def __repr__(self) -> str:
        return "Kl()" if self.baseline is None else f"Kl(baseline={list(self.baseline.shape)})"


@dataclass(frozen=True)
class Own(Metric):
    """A function of the user's from logits [row vocab] to scores [row]."""

    fn: Judge

    def score(self, model: "MIModel", logits: Tensor) -> Tensor:  # noqa: ARG002
        flat = logits.reshape(-1, logits.shape[-1])
        found = self.fn(flat)
        if not isinstance(found, Tensor) or found.shape != flat.shape[:1]:  # pyright: ignore[reportUnnecessaryIsInstance] - user code
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__  # pyright: ignore[reportUnnecessaryIsInstance] - user code
            raise ModelError(
                f"a metric turns logits [row vocab] into scores [row]; {self!r} turned "
                f"{list(flat.shape)} into {shape}"
            )
        return found.reshape(logits.shape[:-1])

    def __repr__(self) -> str:
        named: object = vars(type(self.fn)).get("__name__") or vars(self).get("name")
        return str(named or self.fn)


def logit(token: Words) -> Metric:
    """The logit of a token: a word that is one token, or an id; or one for each prompt."""
    return Logit(_words(token))


def logit_diff(token: Words, other: Words) -> Metric:
    """The logit of `token` minus that of `other`."""
    return LogitDiff(_words(token), _words(other))


def log_prob(token: Words) -> Metric:
    """The natural logarithm of a token's probability."""
    return LogProb(_words(token))


def prob(token: Words) -> Metric:
    """A token's probability."""
    return Prob(_words(token))


def rank(token: Words) -> Metric:
    """A token's rank; the likeliest has rank 1."""
    return Rank(_words(token))


def kl(baseline: Tensor | None = None) -> Metric:
    """KL(baseline ‖ run) in nats, from baseline logits [vocab]; from the plain run's without."""
    return Kl(baseline)


def as_metric(metric: Metric | Judge) -> Metric:
    """A metric, or a function of logits as one."""
    if isinstance(metric, Metric):
        return metric
    if not callable(metric):
        raise ModelError(f"{metric!r} is neither a metric nor a function of logits [row vocab]")
    return Own(metric)


def _words(token: Words) -> Word | tuple[Word, ...]:
    return token if isinstance(token, str | int) else tuple(token)


def _pick(token: Word | tuple[Word, ...], prompt: int, prompts: int) -> Word:
    if not isinstance(token, tuple):
        return token
    if len(token) != prompts:
        raise ModelError(f"the metric has {len(token)} words for {prompts} prompts")
    return token[prompt]


def _id(model: "MIModel", token: Word | tuple[Word, ...]) -> int:
    if isinstance(token, tuple):
        raise ModelError(f"{token!r} is a word for each prompt of a dataset, not for one prompt")
    return model.token_id(token, output=True)
