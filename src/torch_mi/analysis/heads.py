# SPDX-License-Identifier: MIT OR Apache-2.0
"""Which heads do what: previous-token, duplicate-token and induction heads.

A random sequence is shown twice. A head is scored by the attention that its queries in the second
showing pay, on average, to the one key that its kind would look at (Olsson et al. 2022).
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from torch_mi.errors import ModelError
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.manifest import Manifest
from torch_mi.model import MIModel
from torch_mi.results import Result, data_frame, floats

FORM = "torch-mi heads 1"
LOOKS_BACK: dict[str, str] = {
    "induction": "the token that came after this one the first time",
    "previous_token": "the token just before",
    "duplicate_token": "the same token the first time",
}
"""What each kind of head looks at."""


@dataclass(frozen=True, eq=False, repr=False)
class HeadScores(Result):
    """The mean attention that each head [layer, head] pays to what its kind looks at."""

    form = FORM

    kind: str
    model_id: str
    scores: Tensor
    """Between 0 and 1."""
    chance: float
    """What a head gets that attends evenly to everything it may see."""
    length: int
    repeats: int
    seed: int
    manifest: Manifest

    def best(self, k: int = 5) -> list[tuple[int, int, float]]:
        """The `k` heads with the highest scores: layer, head, score."""
        heads = self.scores.shape[1]
        order = self.scores.flatten().argsort(descending=True)[:k]
        flat = floats(self.scores.flatten())
        return [(int(i) // heads, int(i) % heads, flat[int(i)]) for i in order]

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each head (needs pandas)."""
        return data_frame(
            [
                {"layer": layer, "head": head, "score": score}
                for layer, row in enumerate(self.scores)
                for head, score in enumerate(floats(row))
            ]
        )

    def to_dict(self) -> dict[str, object]:
        return {
            "format": FORM,
            "kind": self.kind,
            "model_id": self.model_id,
            "scores": [floats(row) for row in self.scores],
            "chance": self.chance,
            "length": self.length,
            "repeats": self.repeats,
            "seed": self.seed,
            "manifest": self.manifest.to_dict(),
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        return cls(
            data["kind"],
            data["model_id"],
            torch.tensor(data["scores"]),
            data["chance"],
            data["length"],
            data["repeats"],
            data["seed"],
            Manifest.from_dict(data["manifest"]),
        )


def find_heads(
    model: MIModel,
    *,
    kind: str = "induction",
    length: int = 20,
    repeats: int = 8,
    seed: int = 0,
) -> HeadScores:
    """Score every head as an "induction", "previous_token" or "duplicate_token" head.

    On `repeats` sequences of `length` distinct random tokens, each shown twice; the BOS token
    stands in front if the tokenizer adds one.
    """
    if kind not in LOOKS_BACK:
        raise ModelError(f"kind={kind!r} is not one of {', '.join(LOOKS_BACK)}")
    if length < 2 or repeats < 1:  # noqa: PLR2004 - a sequence of one has no next token
        raise ModelError(f"length={length} needs to be at least 2, repeats={repeats} at least 1")
    tokens, start = repeated(model, length, repeats, seed)
    cache = model.forward(tokens, HookSpec().capture(HookPoint.AttnPattern))
    query = torch.arange(start + length, start + 2 * length - 1, device=model.device)
    back = {"induction": length - 1, "previous_token": 1, "duplicate_token": length}[kind]
    looked = [
        cache[HookPoint.AttnPattern(layer)][:, :, query, query - back].mean((0, 2))
        for layer in range(model.num_layers)
    ]
    return HeadScores(
        kind=kind,
        model_id=model.origin.model_id,
        scores=torch.stack(looked).float().cpu(),
        chance=float((1 / (query + 1)).mean()) if model.backend.causal else 1 / tokens.shape[1],
        length=length,
        repeats=repeats,
        seed=seed,
        manifest=cache.manifest,
    )


def repeated(model: MIModel, length: int, repeats: int, seed: int) -> tuple[Tensor, int]:
    """Random sequences shown twice [repeats, start + 2 * length], and where they start."""
    tokenizer = model.tokenizer if model.has_tokenizer else None
    known = model.vocab_size if tokenizer is None else min(model.vocab_size, tokenizer.vocab_size)
    ids = [i for i in range(known) if tokenizer is None or not tokenizer.is_special(i)]
    if len(ids) < length:
        raise ModelError(f"length={length} distinct tokens of a vocabulary of {len(ids)}")
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(len(ids), generator=generator)[:length] for _ in range(repeats)]
    once = torch.tensor(ids)[torch.stack(rows)]
    bos = None if tokenizer is None else tokenizer.bos_id
    front = once[:, :0] if bos is None else torch.full((repeats, 1), bos)
    return torch.cat([front, once, once], 1).to(model.device), front.shape[1]
