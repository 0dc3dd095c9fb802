# SPDX-License-Identifier: MIT OR Apache-2.0
"""What an edit changed: the logits at one position before and after it."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_mi.errors import InterventionError, ModelError
from torch_mi.hooks.spec import HookSpec
from torch_mi.manifest import Manifest
from torch_mi.model import MIModel, batch_of
from torch_mi.prompts import Prompt
from torch_mi.results import Result, data_frame, floats, pieces_of, position_in
from torch_mi.types import numbers

NAMED = 64
"""How many of the tokens that changed most have their texts kept."""
FAINT = 1e-10


@dataclass(frozen=True)
class ChangedToken:
    """A token whose probability changed."""

    token_id: int
    before: float
    after: float

    @property
    def change(self) -> float:
        """How much the probability changed, without its sign."""
        return abs(self.before - self.after)


@dataclass(frozen=True, eq=False)
class Contrast:
    """The logits [vocab] at one position of one prompt, before and after an edit."""

    model_id: str
    tokens: tuple[str, ...]
    """The prompt."""
    position: int
    before: Tensor
    after: Tensor
    names: Mapping[int, str]
    """The texts of the tokens that changed most."""
    manifest: Manifest

    def to_dict(self) -> dict[str, object]:
        """This, as JSON values."""
        return {
            "model_id": self.model_id,
            "tokens": list(self.tokens),
            "position": self.position,
            "before": floats(self.before),
            "after": floats(self.after),
            "names": {str(i): name for i, name in self.names.items()},
            "manifest": self.manifest.to_dict(),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Contrast":
        """The contrast that `to_dict` took apart."""
        return Contrast(
            data["model_id"],
            tuple(data["tokens"]),
            data["position"],
            torch.tensor(data["before"]),
            torch.tensor(data["after"]),
            {int(i): name for i, name in data["names"].items()},
            Manifest.from_dict(data["manifest"]),
        )


@dataclass(frozen=True, eq=False, repr=False)
class Changed(Result):
    """What an edit did to the model's answer at one position."""

    contrast: Contrast

    @property
    def baseline_logits(self) -> Tensor:
        """The logits [vocab] without the edit."""
        return self.contrast.before

    def kl_divergence(self) -> float:
        """KL(baseline ‖ edited) in nats, exact."""
        return kl_divergence(self.contrast.before, self.contrast.after)

    def logit_diff(self, token: int) -> float:
        """How far the edit lowered a token's logit."""
        size = len(self.contrast.before)
        if not 0 <= token < size:
            raise InterventionError(
                f"token id {token} is out of range: there are {size} logits (0 … {size - 1})"
            )
        return float(self.contrast.before[token] - self.contrast.after[token])

    def top_changed_tokens(self, k: int = 10) -> list[ChangedToken]:
        """The `k` tokens whose probability changed most, the most changed first."""
        return top_changed(self.contrast.before, self.contrast.after, k)

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each of the tokens that changed most (needs pandas)."""
        return data_frame(self._rows(NAMED))

    def _rows(self, k: int) -> list[dict[str, object]]:
        return [
            {
                "token_id": changed.token_id,
                "token": self.contrast.names[changed.token_id],
                "before": changed.before,
                "after": changed.after,
                "change": changed.change,
            }
            for changed in self.top_changed_tokens(k)
        ]

    def to_dict(self) -> dict[str, object]:
        return {
            "format": self.form,
            **self._made_by(),
            "kl_divergence": self.kl_divergence(),
            "top_changed": self._rows(10),
            "contrast": self.contrast.to_dict(),
        }

    @abstractmethod
    def _made_by(self) -> dict[str, object]:
        """The edit, as JSON values."""


def contrast(model: MIModel, prompt: Prompt, spec: HookSpec, position: int) -> Contrast:
    """One prompt run with `spec` and without it."""
    ids = one_prompt(model, prompt)
    at = position_in(len(ids), position)
    tokens = torch.tensor([ids])
    plain, edited = model.forward(tokens), model.forward(tokens, spec)
    before, after = (run.output[0, at].float().cpu() for run in (plain, edited))
    most = [changed.token_id for changed in top_changed(before, after, NAMED)]
    return Contrast(
        model.origin.model_id,
        pieces_of(model, ids),
        at,
        before,
        after,
        dict(zip(most, pieces_of(model, most, output=True), strict=True)),
        edited.manifest,
    )


def one_prompt(model: MIModel, prompt: Prompt) -> list[int]:
    """The token ids of the only prompt."""
    rows = batch_of(model, prompt).rows()
    if len(rows) != 1:
        raise ModelError(f"this takes one prompt, not {len(rows)}")
    return rows[0]


def kl_divergence(baseline: Tensor, other: Tensor) -> float:
    """KL(baseline ‖ other) in nats, exact, of logits [vocab]."""
    if baseline.ndim != 1 or baseline.shape != other.shape:
        raise InterventionError(
            f"kl_divergence compares logits [vocab] at one position, "
            f"not {list(baseline.shape)} with {list(other.shape)}"
        )
    ours, theirs = baseline.double().log_softmax(-1), other.double().log_softmax(-1)
    lost = torch.where(ours == -torch.inf, 0, ours.exp() * (ours - theirs))
    return float(lost.sum().clamp(min=0))


def truncated_kl_divergence(baseline: Tensor, other: Tensor) -> float:
    """The same without the tokens that either finds less likely than 1e-10, to repeat old figures.

    It is less than the whole, and may fall below zero.
    """
    p, q = baseline.float().softmax(-1), other.float().softmax(-1)
    both = (p > FAINT) & (q > FAINT)
    return float((p[both] * (p[both] / q[both]).log()).sum())


def top_changed(before: Tensor, after: Tensor, k: int) -> list[ChangedToken]:
    """The `k` tokens whose probability changed most, the most changed first."""
    p, q = before.float().softmax(-1), after.float().softmax(-1)
    order = (p - q).abs().argsort(descending=True, stable=True)[:k]
    return [
        ChangedToken(i, was, now)
        for i, was, now in zip(numbers(order), floats(p[order]), floats(q[order]), strict=True)
    ]
