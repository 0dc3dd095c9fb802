# SPDX-License-Identifier: MIT OR Apache-2.0
"""The tour of a model with attention: a head at work, and the edge that an answer depends on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_mi.analysis.heads import HeadScores, find_heads, repeated
from torch_mi.analysis.tour_steps import (
    PAIRS,
    Cut,
    Pair,
    Paths,
    Tour,
    known_pairs,
    lens_of,
    patched_stream,
    worst_cut,
)
from torch_mi.hooks.coordinates import At
from torch_mi.hooks.interventions import Knockout
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.model import MIModel
from torch_mi.results import floats, pieces_of, special_in
from torch_mi.types import numbers

CLEAR = 0.4
"""A head that pays this much attention to what its kind looks at is one of that kind."""
LONG = 3
"""A word to show has more letters than this, its space included."""
SHOWN = 8
"""Tokens in the sequence whose attention pattern is shown twice."""


@dataclass(frozen=True, eq=False)
class HeadPattern:
    """What one head does with a sequence shown twice."""

    kind: str
    layer: int
    head: int
    score: float
    """Its score on random tokens, by which it was found."""
    here: float
    """Its score on the words shown."""
    tokens: tuple[str, ...]
    special: tuple[bool, ...]
    pattern: Tensor
    """Attention [query key]."""

    def to_dict(self) -> dict[str, object]:
        """This, as JSON values."""
        return {
            "kind": self.kind,
            "layer": self.layer,
            "head": self.head,
            "score": self.score,
            "score_here": self.here,
            "tokens": list(self.tokens),
            "pattern": [floats(row) for row in self.pattern],
        }


@dataclass(frozen=True, eq=False)
class AttentionTour(Tour):
    """All that is seen on the way through a model with attention."""

    form = "torch-mi tour 1"

    heads: HeadScores
    head: HeadPattern

    def _own(self) -> dict[str, object]:
        return {"heads": self.heads.to_dict(), "head": self.head.to_dict()}


def attention_tour(model: MIModel, pairs: Sequence[tuple[str, str]] = PAIRS) -> AttentionTour:
    """The tour of a model with attention."""
    shown = known_pairs(model, pairs)
    heads, head = clearest_head(model)
    return AttentionTour(
        model_id=model.origin.model_id,
        lenses=tuple(lens_of(model, pair) for pair in shown),
        pair=shown[0],
        cut=cut_edges(model, shown[0]),
        patched=patched_stream(model, shown[0]),
        heads=heads,
        head=head,
    )


def clearest_head(model: MIModel) -> tuple[HeadScores, HeadPattern]:
    """An induction head if there is one, else the best previous-token head, at work on words."""
    scored = [find_heads(model, kind=kind) for kind in ("induction", "previous_token")]
    seen = [(scores, at_work(model, scores)) for scores in scored]
    for scores, pattern in seen:
        if min(pattern.score, pattern.here) >= CLEAR:
            return scores, pattern
    return max(seen, key=lambda found: found[1].here)


def at_work(model: MIModel, scores: HeadScores) -> HeadPattern:
    """The head with the highest score, reading words shown twice."""
    layer, head, score = scores.best(1)[0]
    point = HookPoint.AttnPattern(layer)
    ids = words_twice(model)
    run = model.forward(torch.tensor([ids]), HookSpec().capture(point), stop=layer + 1)
    pattern = run[point][0, head]
    back = {"induction": SHOWN - 1, "previous_token": 1}[scores.kind]
    queries = torch.arange(len(ids) - SHOWN, len(ids) - 1, device=pattern.device)
    return HeadPattern(
        kind=scores.kind,
        layer=layer,
        head=head,
        score=score,
        here=float(pattern[queries, queries - back].mean()),
        tokens=pieces_of(model, ids),
        special=special_in(model, ids),
        pattern=pattern.float().cpu(),
    )


def words_twice(model: MIModel, seed: int = 1) -> list[int]:
    """Random whole words of the vocabulary, twice; random tokens if it has too few words."""
    tokens, start = repeated(model, SHOWN, 1, seed)
    random = numbers(tokens[0])
    pieces = model.tokenizer.to_str_tokens(range(model.tokenizer.vocab_size))
    words = [i for i, piece in enumerate(pieces) if _is_word(piece)]
    if len(words) < SHOWN:
        return random
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(seed))
    return random[:start] + 2 * [words[i] for i in numbers(order[:SHOWN])]


def _is_word(piece: str) -> bool:
    return piece.startswith(" ") and piece.strip().isalpha() and len(piece) > LONG


def cut_edges(model: MIModel, pair: Pair) -> Cut:
    """Cut each attention edge from the last token; keep the one that the answer misses most."""
    title = "attention from the last token cut, in all heads of a layer"
    return worst_cut(model, pair, Paths(knockout, model.num_heads, title, "key", {"query": -1}))


def knockout(layer: int, pos: int, head: int | None = None) -> HookSpec:
    """A spec that keeps the last token of a prompt from looking at another one."""
    at = At(query=-1, key=pos, head=head)
    return HookSpec().intervene(HookPoint.AttnScores(layer), Knockout(at=at))
