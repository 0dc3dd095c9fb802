# SPDX-License-Identifier: MIT OR Apache-2.0
"""Choosing a token from logits."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_mi.errors import ModelError


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; greedy at temperature 0, where nothing else matters."""

    temperature: float = 0.0
    top_k: int | None = None
    """Only the k likeliest tokens, after the temperature."""
    top_p: float | None = None
    """Only the fewest likeliest tokens that have this probability together (Holtzman 2019)."""
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ModelError(f"temperature is a number from 0 upwards, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ModelError(f"top_k is a count from 1 upwards, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ModelError(f"top_p is a probability above 0 and up to 1, got {self.top_p}")

    def choose(self, logits: Tensor, generator: torch.Generator | None = None) -> int:
        """A token for logits [vocab]; the lowest id among equally likely greedy choices."""
        row = logits.detach().cpu().double()
        best = row.max()
        if not bool(best.isfinite()):
            raise ModelError(f"no token can be chosen: the largest logit is {float(best)}")
        if self.temperature == 0:
            return int((row == best).nonzero()[0])
        probs = ((row - best) / self.temperature).softmax(-1)
        order = probs.argsort(descending=True, stable=True)
        kept = probs[order]
        if self.top_k is not None:
            kept = kept[: self.top_k]
        if self.top_p is not None:
            before = kept.cumsum(-1) - kept
            kept = kept[before < self.top_p]
        return int(order[torch.multinomial(kept, 1, generator=generator)])


def sample_token(
    logits: Tensor,
    temperature: float = 0.0,
    *,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> int:
    """A token id drawn from logits [vocab], or from the last of [pos vocab] or [1 pos vocab]."""
    sampling = Sampling(temperature, top_k, top_p, seed)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return sampling.choose(_last_row(logits), generator)


def extract_token_prob(logits: Tensor, token_id: int) -> float:
    """A token's probability by logits [vocab], or by the last of [pos vocab] or [1 pos vocab]."""
    row = _last_row(logits)
    if not 0 <= token_id < len(row):
        raise ModelError(f"token id {token_id} is out of range: the logits have 0 … {len(row) - 1}")
    return float(row.detach().float().softmax(-1)[token_id])


def _last_row(logits: Tensor) -> Tensor:
    if logits.numel() == 0:
        raise ModelError(f"empty logits: shape {list(logits.shape)}")
    if logits.ndim == 3 and len(logits) != 1:  # noqa: PLR2004
        raise ModelError(f"logits of {len(logits)} prompts; choose a row first")
    if logits.ndim not in (1, 2, 3):
        raise ModelError(
            f"logits are [vocab], [pos vocab] or [1 pos vocab], got {list(logits.shape)}"
        )
    return logits.reshape(-1, logits.shape[-1])[-1]
