# SPDX-License-Identifier: MIT OR Apache-2.0
"""A tour of a model: what it knows, where that shows, and what carries it. All of it is measured.

Of the prompts below, those that the model has an answer to are looked at. The pair that it tells
apart best is taken to pieces: attention edges are cut, and activations of one prompt are put into
the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from torch_mi.analysis.heads import HeadScores, find_heads, repeated
from torch_mi.analysis.lens import LogitLensResult, TokenPrediction, logit_lens
from torch_mi.analysis.patching import patch
from torch_mi.errors import ModelError
from torch_mi.hooks.coordinates import At
from torch_mi.hooks.interventions import Knockout
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.model import MIModel, batch_of
from torch_mi.results import floats, pieces_of, special_in
from torch_mi.sweeps.grid import Grid
from torch_mi.sweeps.metrics import prob
from torch_mi.sweeps.run import score_cells
from torch_mi.types import numbers

PAIRS = (
    ("The capital of France is", "The capital of Italy is"),
    (
        "When Mary and John went to the store, John gave a drink to",
        "When Mary and John went to the store, Mary gave a drink to",
    ),
    ("The opposite of hot is", "The opposite of big is"),
    (
        "Once upon a time, there was a little girl named",
        "Once upon a time, there was a little boy named",
    ),
)
"""Prompts that differ in what matters to their answers, for models of many kinds."""
SURE = 0.5
"""A prompt is shown if the model's answer has this probability."""
CLEAR = 0.4
"""A head that pays this much attention to what its kind looks at is one of that kind."""
LONG = 3
"""A word to show has more letters than this, its space included."""
SHOWN = 8
"""Tokens in the sequence whose attention pattern is shown twice."""


@dataclass(frozen=True)
class Pair:
    """A prompt and its corrupted twin, and what the model answers to each."""

    clean: str
    corrupted: str
    answer: TokenPrediction
    other: TokenPrediction
    """The answer to the corrupted prompt."""

    @property
    def metric(self) -> str:
        """What is measured: the probability of the answer to the clean prompt."""
        return f"P({self.answer.token!r})"

    @property
    def contrast(self) -> float:
        """How sure the model is of two different answers."""
        if self.answer.token_id == self.other.token_id:
            return 0.0
        return min(self.answer.probability, self.other.probability)


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


@dataclass(frozen=True, eq=False)
class CutEdge:
    """The attention edge, from the last token, that the answer depends on most."""

    grid: Grid
    """The answer's probability with each edge cut, in all heads of a layer at once."""
    layer: int
    key: int
    head: int
    """The one head of that layer whose edge matters most."""
    before: float
    after: float
    after_head: float
    """The probability with the edge cut in that head alone."""
    instead: TokenPrediction
    """What the model answers with the edge cut in all heads."""


@dataclass(frozen=True, eq=False)
class Tour:
    """All that is seen on the way."""

    model_id: str
    lenses: tuple[LogitLensResult, ...]
    heads: HeadScores
    head: HeadPattern
    pair: Pair
    cut: CutEdge
    patched: Grid
    """The answer's probability in the corrupted run, with one clean activation put in."""

    def to_dict(self) -> dict[str, object]:
        """This, as JSON values."""
        cut, pair, head = self.cut, self.pair, self.head
        return {
            "format": "torch-mi tour 1",
            "model_id": self.model_id,
            "lenses": [lens.to_dict() for lens in self.lenses],
            "heads": self.heads.to_dict(),
            "head": {
                "kind": head.kind,
                "layer": head.layer,
                "head": head.head,
                "score": head.score,
                "score_here": head.here,
                "tokens": list(head.tokens),
                "pattern": [floats(row) for row in head.pattern],
            },
            "pair": {
                "clean": pair.clean,
                "corrupted": pair.corrupted,
                "answer": pair.answer.token,
                "probability": pair.answer.probability,
                "corrupted_answer": pair.other.token,
                "corrupted_probability": pair.other.probability,
            },
            "knockout": {
                "layer": cut.layer,
                "edge": [-1, cut.key],
                "head": cut.head,
                "before": cut.before,
                "after": cut.after,
                "after_head": cut.after_head,
                "instead": cut.instead.token,
                "grid": cut.grid.to_dict(),
            },
            "patching": self.patched.to_dict(),
        }


def tour(model: MIModel, pairs: Sequence[tuple[str, str]] = PAIRS) -> Tour:
    """Look at what a model knows of these pairs of prompts, and take the clearest to pieces."""
    known = sorted(read_pairs(model, pairs), key=lambda pair: -pair.contrast)
    if not known or known[0].contrast == 0:
        raise ModelError("this model answers none of the tour's pairs of prompts differently")
    best = known[0]
    shown = [pair for pair in known if pair.contrast > SURE][:3] or [best]
    lenses = [
        logit_lens(model, pair.clean, position="all", target=pair.answer.token_id) for pair in shown
    ]
    heads, head = clearest_head(model)
    return Tour(
        model_id=model.origin.model_id,
        lenses=tuple(lenses),
        heads=heads,
        head=head,
        pair=best,
        cut=cut_edges(model, best),
        patched=replace(
            patch(
                model,
                best.clean,
                best.corrupted,
                at="resid_pre",
                metric=prob(best.answer.token_id),
            ),
            metric=best.metric,
        ),
    )


def read_pairs(model: MIModel, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
    """The pairs that this model's tokenizer makes equally long, with the model's answers."""
    found: list[Pair] = []
    for clean, corrupted in pairs:
        lengths = {len(model.tokenizer.encode(text)) for text in (clean, corrupted)}
        if len(lengths) == 1:
            first, second = logit_lens(model, [clean, corrupted], top_k=1)
            answers = [lens.at()[-1].predictions[0] for lens in (first, second)]
            found.append(Pair(clean, corrupted, *answers))
    return found


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


def cut_edges(model: MIModel, pair: Pair) -> CutEdge:
    """Cut each attention edge from the last token; keep the one that the answer misses most."""
    tokens = model.encode(pair.clean)
    ids = batch_of(model, tokens).rows()[0]
    metric = prob(pair.answer.token_id)
    layers, keys = range(model.num_layers), range(len(ids))
    cells = [knockout(layer, key) for layer, key in product(layers, keys)]
    scored = score_cells(model, tokens, cells, metric)
    values = scored.scores.reshape(len(layers), len(keys))
    layer, key = divmod(int(values.argmin()), len(keys))
    alone = [knockout(layer, key, head) for head in range(model.num_heads)]
    single = score_cells(model, tokens, alone, metric).scores
    cut = model.forward(tokens, knockout(layer, key)).output[0, -1].float()
    instead = int(cut.argmax())
    chance = float(cut.softmax(-1)[instead])
    grid = Grid(
        title="attention from the last token cut, in all heads of a layer",
        metric=pair.metric,
        axes={"layer": tuple(layers), "key": tuple(keys)},
        labels={"key": pieces_of(model, ids)},
        values=values,
        baseline=scored.baseline,
        reference=None,
        options={"prompt": pair.clean, "query": -1},
        manifest=scored.manifest,
    )
    return CutEdge(
        grid=grid,
        layer=layer,
        key=key,
        head=int(single.argmin()),
        before=scored.baseline,
        after=float(values[layer, key]),
        after_head=float(single.min()),
        instead=TokenPrediction(
            instead, pieces_of(model, [instead])[0], chance, float(cut[instead])
        ),
    )


def knockout(layer: int, key: int, head: int | None = None) -> HookSpec:
    """A spec that keeps the last token of a prompt from looking at another one."""
    at = At(query=-1, key=key, head=head)
    return HookSpec().intervene(HookPoint.AttnScores(layer), Knockout(at=at))
