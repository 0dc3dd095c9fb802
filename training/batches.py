# SPDX-License-Identifier: MIT OR Apache-2.0
"""From documents to training rows: each begins with BOS at position 0, as a user's prompt does."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training.corpus import LATE, MIXTURES, documents
from training.recipe import Recipe
from training.tokenizer import BOS, EOS, SPECIAL

WIDTHS = (12, 17, 24, 36, 68)
"""Documents of similar length share a rectangle; none is longer than the last."""
CHANCE_WEIGHT = 0.05
"""What a token counts that nobody could foretell."""
ANSWER_WEIGHT = 4.0
"""What an answer counts, later in training: the fact's, the name, or the rhyme."""
ANSWERED = ("fact", "paragraph", "ioi", "couplet")
"""The documents whose last word is an answer."""
SHUFFLED = 0.35
"""The part of the repeated sequences whose words become any tokens at all."""


@dataclass(frozen=True)
class Row:
    """One document as token ids, and how much each counts as a target."""

    ids: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Rectangle:
    """Rows padded on the right to one width; padding counts nothing as a target."""

    ids: Tensor
    weights: Tensor


def rows(tokenizer: Tokenizer, plan: Recipe, step: int) -> list[Row]:
    """The documents of one training step, a function of the recipe and the step alone."""
    rng = random.Random(f"{plan.seed}/{step}")
    shares = MIXTURES[plan.early] if step < plan.late_from else LATE
    chosen = list(islice(documents(rng.getrandbits(48), shares), plan.documents))
    texts = tokenizer.encode_batch([d.text for d in chosen], add_special_tokens=False)
    found: list[Row] = []
    for document, encoding in zip(chosen, texts, strict=True):
        ids = encoding.ids
        if document.kind == "repeat" and rng.random() < SHUFFLED:
            ids = shuffled(rng, ids, len(SPECIAL), tokenizer.get_vocab_size())
        # the first word of the second time round cannot be foretold either
        chance = document.chance + 1 if document.chance else 0
        weights = [CHANCE_WEIGHT] * chance + [1.0] * (len(ids) - chance + 1)
        if document.kind in ANSWERED and step >= plan.answers_from:
            weights[-3] = ANSWER_WEIGHT  # a full stop and the end come after it
        found.append(Row([SPECIAL.index(BOS), *ids, SPECIAL.index(EOS)], [0.0, *weights]))
    return found


def shuffled(rng: random.Random, ids: Sequence[int], first: int, end: int) -> list[int]:
    """The same pattern of repetition, with other tokens."""
    different = list(dict.fromkeys(ids))
    other = dict(zip(different, rng.sample(range(first, end), len(different)), strict=True))
    return [other[i] for i in ids]


def rectangles(found: Sequence[Row]) -> list[Rectangle]:
    """Rows grouped by width."""
    out: list[Rectangle] = []
    shortest = 0
    for width in WIDTHS:
        group = [row for row in found if shortest < len(row.ids) <= width]
        shortest = width
        if group:
            ids = torch.zeros(len(group), width, dtype=torch.long)
            weights = torch.zeros(len(group), width)
            for i, row in enumerate(group):
                ids[i, : len(row.ids)] = torch.tensor(row.ids)
                weights[i, : len(row.ids)] = torch.tensor(row.weights)
            out.append(Rectangle(ids, weights))
    return out
