# SPDX-License-Identifier: MIT OR Apache-2.0
"""What every tour does, whatever carries information from token to token in its model.

Of pairs of prompts, those that the model has an answer to are looked at. The pair that it tells
apart best is taken to pieces: paths from its tokens are cut, one by one, and activations of one
prompt are put into the other.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import ClassVar

from torch_mi.analysis.lens import LogitLensResult, TokenPrediction, logit_lens
from torch_mi.analysis.patching import patch
from torch_mi.errors import ModelError
from torch_mi.hooks.spec import HookSpec
from torch_mi.model import MIModel, batch_of
from torch_mi.prompts import Prompt
from torch_mi.results import pieces_of
from torch_mi.sweeps.grid import Grid
from torch_mi.sweeps.metrics import prob
from torch_mi.sweeps.run import score_cells

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

    def to_dict(self) -> dict[str, object]:
        """This, as JSON values."""
        return {
            "clean": self.clean,
            "corrupted": self.corrupted,
            "answer": self.answer.token,
            "probability": self.answer.probability,
            "corrupted_answer": self.other.token,
            "corrupted_probability": self.other.probability,
        }


@dataclass(frozen=True, eq=False)
class Cut:
    """The path from one token, in one layer, that the answer depends on most."""

    grid: Grid
    """The answer's probability with each path cut, in all heads of a layer at once."""
    token: str
    """The token that is no longer heard of."""
    layer: int
    pos: int
    head: int | None
    """The one head of that layer whose path matters most; `None` where none is singled out."""
    before: float
    after: float
    after_head: float | None
    """The probability with the path cut in that head alone."""
    instead: TokenPrediction
    """What the model answers with the path cut in all heads."""

    def to_dict(self) -> dict[str, object]:
        """This, as JSON values."""
        return {
            "token": self.token,
            "layer": self.layer,
            "pos": self.pos,
            "head": self.head,
            "before": self.before,
            "after": self.after,
            "after_head": self.after_head,
            "instead": self.instead.token,
            "grid": self.grid.to_dict(),
        }


@dataclass(frozen=True, eq=False)
class Tour(ABC):
    """What is seen on the way in any model; kinds of model add what is theirs."""

    form: ClassVar[str]
    """What its JSON calls itself, with a version."""

    model_id: str
    lenses: tuple[LogitLensResult, ...]
    pair: Pair
    cut: Cut
    patched: Grid
    """The answer's probability in the corrupted run, with one clean activation put in."""

    def to_dict(self) -> dict[str, object]:
        """This, as JSON values."""
        return {
            "format": self.form,
            "model_id": self.model_id,
            "lenses": [lens.to_dict() for lens in self.lenses],
            "pair": self.pair.to_dict(),
            "knockout": self.cut.to_dict(),
            "patching": self.patched.to_dict(),
            **self._own(),
        }

    @abstractmethod
    def _own(self) -> dict[str, object]:
        """The steps that only this kind of model has, as JSON values."""


@dataclass(frozen=True)
class Paths:
    """What is cut in a kind of model, and what its grid says of it."""

    cut: Callable[[int, int, int | None], HookSpec]
    """What cuts the path from a token in a layer (layer, position), in all heads or in one."""
    heads: int
    """Heads that are tried alone; 0 where a single one means nothing."""
    title: str
    axis: str
    """What the grid calls positions."""
    options: Mapping[str, object]


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


def known_pairs(model: MIModel, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
    """The pairs that a tour shows, the one that the model tells apart best in front."""
    found = sorted(read_pairs(model, pairs), key=lambda pair: -pair.contrast)
    if not found or found[0].contrast == 0:
        raise ModelError("this model answers none of the tour's pairs of prompts differently")
    return [pair for pair in found if pair.contrast > SURE][:3] or found[:1]


def lens_of(model: MIModel, pair: Pair) -> LogitLensResult:
    """How the answer to the clean prompt forms."""
    return logit_lens(model, pair.clean, position="all", target=pair.answer.token_id)


def worst_cut(model: MIModel, pair: Pair, paths: Paths) -> Cut:
    """Cut the path from each token in each layer; keep the one that the answer misses most.

    There, each head is then tried alone.
    """
    tokens = model.encode(pair.clean)
    ids = batch_of(model, tokens).rows()[0]
    metric = prob(pair.answer.token_id)
    axes = {"layer": tuple(range(model.num_layers)), paths.axis: tuple(range(len(ids)))}
    cells = [paths.cut(layer, pos, None) for layer, pos in product(*axes.values())]
    scored = score_cells(model, tokens, cells, metric)
    layer, pos = divmod(int(scored.scores.argmin()), len(ids))
    alone = [paths.cut(layer, pos, head) for head in range(paths.heads)]
    single = score_cells(model, tokens, alone, metric).scores if alone else None
    options = {"prompt": pair.clean, **paths.options}
    grid = scored.grid(paths.title, axes, {paths.axis: pieces_of(model, ids)}, options)
    return Cut(
        grid=replace(grid, metric=pair.metric),
        token=grid.labels[paths.axis][pos],
        layer=layer,
        pos=pos,
        head=None if single is None else int(single.argmin()),
        before=scored.baseline,
        after=float(scored.scores.min()),
        after_head=None if single is None else float(single.min()),
        instead=answer_with(model, tokens, paths.cut(layer, pos, None)),
    )


def answer_with(model: MIModel, prompt: Prompt, spec: HookSpec) -> TokenPrediction:
    """What the model answers to a prompt under edits."""
    logits = model.forward(prompt, spec).output[0, -1].float()
    token = int(logits.argmax())
    chance = float(logits.softmax(-1)[token])
    return TokenPrediction(token, pieces_of(model, [token])[0], chance, float(logits[token]))


def patched_stream(model: MIModel, pair: Pair) -> Grid:
    """The answer's probability with one value of the clean run's residual stream put in."""
    metric = prob(pair.answer.token_id)
    grid = patch(model, pair.clean, pair.corrupted, at="resid_pre", metric=metric)
    return replace(grid, metric=pair.metric)
