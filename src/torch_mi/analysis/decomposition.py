# SPDX-License-Identifier: MIT OR Apache-2.0
"""The residual stream layer by layer and part by part, and what each part adds to a logit.

`accumulated_resid` is the stream after every layer, `decompose_resid` the terms that it is a sum
of, `logit_attrs` the share that each term has of a logit, at any positions. Attention comes apart
into heads, MLPs into neurons, mixtures into experts: `split="heads"`, or several of these. The
names are those of TransformerLens' ActivationCache; here biases have rows of their own, attention's
always and an MLP's where it is taken apart.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor

from torch_mi.analysis.attribution import Direction, final_points, measured
from torch_mi.analysis.terms import Stream, Term, check_split, run_for
from torch_mi.cache import HookCache
from torch_mi.errors import ModelError, did_you_mean
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.manifest import Manifest
from torch_mi.model import MIModel
from torch_mi.prompts import Prompt
from torch_mi.results import Result, data_frame, floats, pieces_of, position_in, special_in

FORM = "torch-mi residual stream 1"
ATTRS_FORM = "torch-mi logit attributions 1"
Positions = int | Literal["all"]
MODES: dict[str, frozenset[str]] = {
    "attn": frozenset({"attention", "head", "attention bias"}),
    "mlp": frozenset({"mlp", "neuron", "expert", "shared expert", "mlp bias"}),
}
"""The kinds of term that `decompose_resid` keeps, if not all."""


@dataclass(frozen=True)
class Words:
    """The tokens of the positions that were looked at."""

    positions: tuple[int, ...]
    tokens: tuple[str, ...]
    special: tuple[bool, ...]

    @staticmethod
    def of(model: MIModel, ids: list[int], places: Sequence[int]) -> "Words":
        """The words at some positions of a prompt."""
        here = [ids[place] for place in places]
        return Words(tuple(places), pieces_of(model, here), special_in(model, here))

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "Words":
        """The words that `asdict` took apart."""
        return Words(tuple(data["positions"]), tuple(data["tokens"]), tuple(data["special"]))


@dataclass(frozen=True, eq=False, repr=False)
class Residuals(Result):
    """Vectors [term pos d_model] of the residual stream: its terms, or what has been summed up."""

    form = FORM

    model_id: str
    words: Words
    terms: tuple[Term, ...]
    vectors: Tensor
    whole: Tensor
    """The residual stream [pos d_model] that all this is about."""
    adds_up: bool
    """Whether the vectors sum to it: of all terms they do, of what is accumulated they do not."""
    manifest: Manifest

    @property
    def error(self) -> float:
        """The largest entry by which the vectors' sum differs from the stream."""
        if not self.adds_up:
            raise ModelError(
                "these vectors do not add up to the stream: they are not all its terms"
            )
        return float((self.vectors.double().sum(0) - self.whole.double()).abs().max())

    @property
    def norms(self) -> Tensor:
        """The Euclidean length of every vector [term pos]."""
        return self.vectors.square().sum(-1).sqrt()

    def to_pandas(self) -> Any:
        """A DataFrame with the length of each vector (needs pandas)."""
        return data_frame(list(_rows(self.terms, self.words, self.norms, "norm")))

    def to_dict(self) -> dict[str, object]:
        return {
            "format": FORM,
            "model_id": self.model_id,
            "words": asdict(self.words),
            "terms": [asdict(term) for term in self.terms],
            "vectors": [[floats(place) for place in term] for term in self.vectors],
            "whole": [floats(place) for place in self.whole],
            "adds_up": self.adds_up,
            "manifest": self.manifest.to_dict(),
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        return cls(
            data["model_id"],
            Words.from_dict(data["words"]),
            tuple(Term(**term) for term in data["terms"]),
            torch.tensor(data["vectors"]),
            torch.tensor(data["whole"]),
            data["adds_up"],
            Manifest.from_dict(data["manifest"]),
        )


@dataclass(frozen=True, eq=False, repr=False)
class LogitAttributions(Result):
    """Each term's share [term pos] of a logit, or of a difference of two."""

    form = ATTRS_FORM

    model_id: str
    words: Words
    terms: tuple[Term, ...]
    values: Tensor
    target: str
    versus: str | None
    logits: Tensor
    """What the shares sum to [pos]: the logit, or difference, before any soft-cap."""
    manifest: Manifest

    @property
    def error(self) -> float:
        """How far the shares' sums are from the logits: rounding alone."""
        return float((self.values.double().sum(0) - self.logits.double()).abs().max())

    def best(self, k: int = 5, column: int = -1) -> list[tuple[Term, float]]:
        """The `k` terms that weigh most, for or against, at one of the positions looked at."""
        order = self.values[:, column].abs().argsort(descending=True, stable=True)[:k]
        return [(self.terms[int(i)], float(self.values[int(i), column])) for i in order]

    def heads(self, column: int = -1) -> Tensor:
        """The heads' shares [layer head] at one of the positions looked at."""
        at = [i for i, term in enumerate(self.terms) if term.kind == "head"]
        if not at:
            raise ModelError("attention was not taken apart; give logit_attrs(..., split='heads')")
        width = 1 + max(self.terms[i].index or 0 for i in at)
        return self.values[at, column].reshape(-1, width)

    def by_layer(self) -> tuple[list[str], Tensor]:
        """The shares [part pos] of whole attention layers and MLPs, and their names."""
        names = [_part(term) for term in self.terms]
        parts = list(dict.fromkeys(names))
        where = torch.tensor([parts.index(name) for name in names])
        sums = torch.zeros(len(parts), self.values.shape[1]).index_add(0, where, self.values)
        return parts, sums

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each term and position (needs pandas)."""
        return data_frame(list(_rows(self.terms, self.words, self.values, "share")))

    def to_dict(self) -> dict[str, object]:
        return {
            "format": ATTRS_FORM,
            "model_id": self.model_id,
            "words": asdict(self.words),
            "target": self.target,
            "versus": self.versus,
            "logits": floats(self.logits),
            "terms": [asdict(term) for term in self.terms],
            "values": [floats(row) for row in self.values],
            "manifest": self.manifest.to_dict(),
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        return cls(
            data["model_id"],
            Words.from_dict(data["words"]),
            tuple(Term(**term) for term in data["terms"]),
            torch.tensor(data["values"]),
            data["target"],
            data["versus"],
            torch.tensor(data["logits"]),
            Manifest.from_dict(data["manifest"]),
        )


def _part(term: Term) -> str:
    """What a term is a part of."""
    for mode, name in (("attn", "attention"), ("mlp", "MLP")):
        if term.kind in MODES[mode]:
            return f"L{term.layer} {name}"
    return term.name


def _rows(
    terms: tuple[Term, ...], words: Words, values: Tensor, called: str
) -> Iterator[dict[str, object]]:
    for term, row in zip(terms, values, strict=True):
        for place, token, value in zip(words.positions, words.tokens, floats(row), strict=True):
            here: dict[str, object] = {"position": place, "token": token, called: value}
            yield asdict(term) | here


def accumulated_resid(
    model: MIModel,
    prompt: Prompt,
    *,
    layer: int | None = None,
    mid: bool = False,
    position: Positions = "all",
) -> Residuals:
    """The residual stream of one prompt as it enters each layer, up to `layer`.

    Of all layers and after the last one unless `layer` is given; with `mid`, also between the
    attention and the MLP of each.
    """
    upto = _upto(model, layer)
    points = [HookPoint.ResidPre] + ([HookPoint.ResidMid] if mid else [])
    spec = HookSpec().capture(*points).capture(HookPoint.ResidPost(model.num_layers - 1))
    cache = run_for(model, prompt, frozenset(), spec, model.num_layers)
    places = _places(cache, position)
    found: list[tuple[Term, str]] = []
    for i in range(upto + 1):
        name = "final" if i == model.num_layers else f"into L{i}"
        found.append((Term(name, "resid_pre", i), _entering(model, i)))
        if mid and i < upto and HookPoint.ResidMid in model.backend.layer_points(i):
            found.append((Term(f"within L{i}", "resid_mid", i), HookPoint.ResidMid(i)))
    vectors = torch.stack([cache[where][0, places] for _, where in found])
    return Residuals(
        model_id=model.origin.model_id,
        words=Words.of(model, _ids(cache), places),
        terms=tuple(term for term, _ in found),
        vectors=vectors.float().cpu(),
        whole=vectors[-1].float().cpu(),
        adds_up=False,
        manifest=cache.manifest,
    )


def decompose_resid(
    model: MIModel,
    prompt: Prompt,
    *,
    layer: int | None = None,
    mode: str = "all",
    split: str | Collection[str] = (),
    position: Positions = "all",
) -> Residuals:
    """The terms of the residual stream of one prompt that enters `layer`, or leaves the last one.

    All of them, or those of "attn" or "mlp"; `split` takes apart "heads", "neurons" or "experts".
    """
    if mode != "all" and mode not in MODES:
        known = ("all", *MODES)
        raise ModelError(
            f"mode={mode!r} is not one of {', '.join(known)}{did_you_mean(mode, known)}"
        )
    upto, parts = _upto(model, layer), check_split(model, split)
    last = HookPoint.ResidPost(model.num_layers - 1)
    streams = HookSpec().capture(HookPoint.ResidPre, last)
    cache = run_for(model, prompt, parts, streams, model.num_layers)
    places = _places(cache, position)
    terms: list[Term] = []
    vectors: list[Tensor] = []
    for block in Stream(model, cache, tuple(places), parts).blocks(upto):
        if mode == "all" or block.terms[0].kind in MODES[mode]:
            terms.extend(block.terms)
            vectors.append(block.vectors().float().cpu())
    return Residuals(
        model_id=model.origin.model_id,
        words=Words.of(model, _ids(cache), places),
        terms=tuple(terms),
        vectors=torch.cat([torch.zeros(0, len(places), model.hidden_size), *vectors]),
        whole=cache[_entering(model, upto)][0, places].float().cpu(),
        adds_up=mode == "all",
        manifest=cache.manifest,
    )


def logit_attrs(
    model: MIModel,
    prompt: Prompt,
    *,
    target: str | int,
    versus: str | int | None = None,
    split: str | Collection[str] = "heads",
    position: Positions = -1,
) -> LogitAttributions:
    """Each term's share of the logit of `target`, or of its lead over `versus`.

    At one or all positions of one prompt. The final norm's denominator is held at its value, and so
    are those of norms on what layers write; the shares sum to the logit before any soft-cap.
    """
    parts = check_split(model, split)
    wanted = model.token_id(target, output=True)
    other = None if versus is None else model.token_id(versus, output=True)
    cache = run_for(model, prompt, parts, final_points(model))
    places, direction = _places(cache, position), Direction.of(model, wanted, other)
    stream = Stream(model, cache, tuple(places), parts)
    found = list(measured(stream, direction))
    return LogitAttributions(
        model_id=model.origin.model_id,
        words=Words.of(model, _ids(cache), places),
        terms=tuple(term for terms, _ in found for term in terms),
        values=torch.cat([values for _, values in found]).float().cpu(),
        target=pieces_of(model, [wanted], output=True)[0],
        versus=None if other is None else pieces_of(model, [other], output=True)[0],
        logits=(stream.at(HookPoint.FinalNorm) @ direction.vector + direction.bias).float().cpu(),
        manifest=cache.manifest,
    )


def _entering(model: MIModel, layer: int) -> str:
    """The hook of the stream that enters a layer; the one after the last leaves the model."""
    return (
        HookPoint.ResidPost(layer - 1) if layer == model.num_layers else HookPoint.ResidPre(layer)
    )


def _upto(model: MIModel, layer: int | None) -> int:
    last = model.num_layers
    upto = last if layer is None else layer
    if not 0 <= upto <= last:
        raise ModelError(f"layer={layer} is out of range: 0 … {last}, where {last} is the end")
    return upto


def _places(cache: HookCache, position: Positions) -> list[int]:
    """The positions of the run's one prompt that are looked at."""
    length = len(_ids(cache))
    if position == "all":
        return list(range(length))
    if isinstance(position, bool) or not isinstance(position, int):  # pyright: ignore[reportUnnecessaryIsInstance] - users are untyped
        raise ModelError(f"position={position!r} is neither a number nor 'all'")
    return [position_in(length, position)]


def _ids(cache: HookCache) -> list[int]:
    return [] if cache.tokens is None else [int(i) for i in cache.tokens[0]]
