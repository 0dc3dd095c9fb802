# SPDX-License-Identifier: MIT OR Apache-2.0
"""The logit lens: what each layer would say, were it the last."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self, cast, overload

import torch
from torch import Tensor

from torch_mi.analysis.tuned_lens import TunedLens
from torch_mi.errors import ModelError
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.manifest import Manifest
from torch_mi.model import MIModel, batch_of
from torch_mi.prompts import Batch, Prompt
from torch_mi.results import (
    Result,
    data_frame,
    floats,
    pieces_of,
    position_in,
    special_in,
)
from torch_mi.types import numbers

FORM = "torch-mi logit lens 1"
EMBEDDING = -1
"""The layer number of the embedding, which comes before layer 0."""
ENTRIES = 2**27
"""Logits projected at once: 512 MB of float32."""

OnePrompt = str | Tensor | Sequence[int]
Positions = int | Literal["all"]


@dataclass(frozen=True)
class TokenPrediction:
    """A token that a layer expects next."""

    token_id: int
    token: str
    probability: float
    logit: float


@dataclass(frozen=True)
class TargetReading:
    """How a layer thinks of the target token; the likeliest token has rank 1."""

    rank: int
    probability: float
    logit: float


@dataclass(frozen=True)
class LensReading:
    """What one layer expects after one position, likeliest token first."""

    layer: int
    position: int
    predictions: tuple[TokenPrediction, ...]
    target: TargetReading | None = None


@dataclass(frozen=True, repr=False)
class LogitLensResult(Result):
    """What the layers expect after one or all positions of a prompt.

    Readings are ordered by layer, then position. Layer -1 is the embedding. The methods look at
    the last position read, unless given another one.
    """

    form = FORM

    model_id: str
    prompt: str
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    special: tuple[bool, ...]
    """Which tokens stand for structure (BOS and its like)."""
    n_layers: int
    n_heads: int
    hidden_size: int
    readings: tuple[LensReading, ...]
    target: tuple[int, str] | None
    """Id and text of the token whose rank and probability are followed, if there is one."""
    manifest: Manifest
    lens: str = "logit lens"

    @property
    def layers(self) -> list[int]:
        """The layers read, from the bottom up."""
        return sorted({reading.layer for reading in self.readings})

    @property
    def positions(self) -> list[int]:
        """The positions read, counted from the start of the prompt."""
        return sorted({reading.position for reading in self.readings})

    def at(self, position: int | None = None) -> list[LensReading]:
        """Each layer's reading at a position, from the bottom up."""
        here = self.positions[-1]
        if position is not None:
            here = position_in(len(self.tokens), position)
        if here not in self.positions:
            raise ModelError(f"position {position} was not read, only {self.positions}")
        return [reading for reading in self.readings if reading.position == here]

    def top_predictions(self, position: int | None = None) -> list[tuple[str, float]]:
        """Each layer's likeliest token and its probability."""
        best = [reading.predictions[0] for reading in self.at(position)]
        return [(prediction.token, prediction.probability) for prediction in best]

    def first_appearance(
        self, token: str | int, k: int = 1, position: int | None = None
    ) -> int | None:
        """The first layer with `token` among its `k` likeliest: text within one, or an exact id."""
        kept = len(self.readings[0].predictions)
        if not 1 <= k <= kept:
            raise ModelError(f"k={k}, but each layer's {kept} likeliest tokens were kept (top_k)")
        for reading in self.at(position):
            for found in reading.predictions[:k]:
                if token in found.token if isinstance(token, str) else token == found.token_id:
                    return reading.layer
        return None

    def target_ranks(self, position: int | None = None) -> list[int]:
        """The rank of the target in each layer; 1 is the likeliest token."""
        return [reading.rank for reading in self._target_readings(position)]

    def target_probabilities(self, position: int | None = None) -> list[float]:
        """The probability of the target in each layer."""
        return [reading.probability for reading in self._target_readings(position)]

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each prediction (needs pandas)."""
        return data_frame(list(self._rows()))

    def to_dict(self) -> dict[str, object]:
        """This, as JSON values; `layers` holds one entry for each layer and position."""
        return {
            "format": FORM,
            "lens": self.lens,
            "model_id": self.model_id,
            "prompt": self.prompt,
            "token_ids": list(self.token_ids),
            "tokens": list(self.tokens),
            "special": list(self.special),
            "n_layers": self.n_layers,
            "n_heads": self.n_heads,
            "hidden_size": self.hidden_size,
            "target": self._target_to_dict(),
            "layers": [_reading_to_dict(reading) for reading in self.readings],
            "manifest": self.manifest.to_dict(),
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        target = data["target"]
        return cls(
            data["model_id"],
            data["prompt"],
            tuple(data["token_ids"]),
            tuple(data["tokens"]),
            tuple(data["special"]),
            data["n_layers"],
            data["n_heads"],
            data["hidden_size"],
            tuple(map(_reading_from_dict, data["layers"])),
            None if target is None else (target["token_id"], target["token"]),
            Manifest.from_dict(data["manifest"]),
            data.get("lens", "logit lens"),
        )

    def _target_readings(self, position: int | None) -> list[TargetReading]:
        found = [reading.target for reading in self.at(position) if reading.target is not None]
        if not found:
            raise ModelError("no target was followed; give logit_lens(..., target=' token')")
        return found

    def _target_to_dict(self) -> dict[str, object] | None:
        if self.target is None:
            return None
        first = [r.layer for r in self.at() if r.target is not None and r.target.rank == 1]
        return {
            "token_id": self.target[0],
            "token": self.target[1],
            "first_layer_top1": first[0] if first else None,
        }

    def _rows(self) -> Iterator[dict[str, object]]:
        for reading in self.readings:
            place: dict[str, object] = {
                "layer": reading.layer,
                "position": reading.position,
                "after": self.tokens[reading.position],
            }
            for rank, found in enumerate(reading.predictions, 1):
                yield place | {"rank": rank} | asdict(found)


@overload
def logit_lens(
    model: MIModel,
    prompt: OnePrompt,
    *,
    top_k: int = 5,
    position: Positions = -1,
    target: str | int | None = None,
    embedding: bool = False,
    tuned: TunedLens | None = None,
) -> LogitLensResult: ...
@overload
def logit_lens(
    model: MIModel,
    prompt: list[str] | list[Tensor] | list[list[int]] | list[OnePrompt],
    *,
    top_k: int = 5,
    position: Positions = -1,
    target: str | int | None = None,
    embedding: bool = False,
    tuned: TunedLens | None = None,
) -> list[LogitLensResult]: ...
def logit_lens(  # noqa: PLR0913 - the options are the interface
    model: MIModel,
    prompt: Prompt | list[Tensor] | list[OnePrompt],
    *,
    top_k: int = 5,
    position: Positions = -1,
    target: str | int | None = None,
    embedding: bool = False,
    tuned: TunedLens | None = None,
) -> LogitLensResult | list[LogitLensResult]:
    """Each layer's residual stream, through the final norm, read as a distribution over tokens.

    One prompt (text, or token ids [pos] or [1 pos]) gives one result, a list of prompts a list of
    them, run as one batch. `position` is counted without padding, negative from the end, or is
    "all"; `target` is a token to follow through the layers; `embedding` adds the embedding as
    layer -1. The last layer's reading is the model's own output. A `tuned` lens translates the
    other layers' streams before they are read.
    """
    logits = model.backend.sizes["vocab"]
    if not 1 <= top_k <= logits:
        raise ModelError(f"top_k={top_k} is out of range: 1 … {logits}")
    if not (isinstance(position, int) or position == "all"):
        raise ModelError(f"position={position!r} is neither a number nor 'all'")
    followed = None if target is None else model.token_id(target, output=True)
    batch = batch_of(model, _plain(prompt))
    if isinstance(prompt, Tensor) and len(batch.tokens) > 1:
        raise ModelError(f"a tensor of {len(batch.tokens)} prompts; give list(tokens) for several")
    if tuned is not None:
        tuned.fit(model)
    looking = _Lens(model, top_k, position, followed, embedding, tuned)
    results = looking.results(batch, _texts(prompt))
    one = isinstance(prompt, str | Tensor) or all(isinstance(item, int) for item in prompt)
    return results[0] if one else results


@dataclass(frozen=True)
class _Lens:
    """What is asked of the model."""

    model: MIModel
    top_k: int
    position: Positions
    target: int | None
    embedding: bool
    tuned: TunedLens | None = None

    def results(self, batch: Batch, texts: Sequence[object]) -> list[LogitLensResult]:
        spec = HookSpec().capture(HookPoint.ResidPost)
        if self.embedding:
            spec.capture(HookPoint.ResidPre(0))
        model = self.model
        cache = model.forward(batch.tokens, spec, attention_mask=batch.real, stop=model.num_layers)
        depth = cache.stack(HookPoint.ResidPost)
        if self.embedding:
            depth = torch.cat([cache.stack(HookPoint.ResidPre), depth])
        if self.tuned is not None:
            depth = self.tuned.translate(depth, EMBEDDING if self.embedding else 0)
        return [
            self._result(depth[:, row, -len(ids) :], ids, texts[row], cache.manifest)
            for row, ids in enumerate(batch.rows())
        ]

    def _result(
        self, depth: Tensor, ids: list[int], text: object, manifest: Manifest
    ) -> LogitLensResult:
        """The result for one prompt's residual streams [layer pos d_model]."""
        model = self.model
        every = range(len(ids))
        places = list(every) if self.position == "all" else [position_in(len(ids), self.position)]
        pieces = pieces_of(model, ids)
        target = None
        if self.target is not None:
            target = self.target, pieces_of(model, [self.target], output=True)[0]
        return LogitLensResult(
            model_id=model.origin.model_id,
            prompt=text if isinstance(text, str) else _text(model, ids),
            token_ids=tuple(ids),
            tokens=pieces,
            special=special_in(model, ids),
            n_layers=model.num_layers,
            n_heads=model.num_heads,
            hidden_size=model.hidden_size,
            readings=tuple(self._readings(depth[:, places], places)),
            target=target,
            manifest=replace(manifest, tokens=[ids]),
            lens="logit lens" if self.tuned is None else "tuned lens",
        )

    def _readings(self, depth: Tensor, places: list[int]) -> Iterator[LensReading]:
        """Residual streams [layer place d_model] as predictions, in as few batches as fit."""
        first = EMBEDDING if self.embedding else 0
        where = [(first + i, place) for i in range(len(depth)) for place in places]
        rows = max(1, ENTRIES // self.model.backend.sizes["vocab"])
        flat = depth.reshape(-1, depth.shape[-1])
        spots = iter(where)
        for part in torch.split(flat, rows):
            logits = self.model.project_to_vocab(part).float()
            for found, target in self._ranked(logits):
                layer, place = next(spots)
                yield LensReading(layer, place, found, target)

    def _ranked(
        self, logits: Tensor
    ) -> Iterator[tuple[tuple[TokenPrediction, ...], TargetReading | None]]:
        """The likeliest tokens of each row of logits [row vocab], and the target's standing."""
        logs = logits.log_softmax(-1)
        best, ids = logits.topk(self.top_k)
        chances = logs.gather(-1, ids).exp()
        followed = [None] * len(logits) if self.target is None else _standing(logits, self.target)
        for row in range(len(logits)):
            best_ids = numbers(ids[row])
            found = map(
                TokenPrediction,
                best_ids,
                pieces_of(self.model, best_ids, output=True),
                floats(chances[row]),
                floats(best[row]),
            )
            yield tuple(sorted(found, key=lambda p: (-p.logit, p.token_id))), followed[row]


def _standing(logits: Tensor, target: int) -> list[TargetReading]:
    """Where the target stands in each row of logits; of equals, the lower id comes first."""
    own = logits[:, target, None]
    ahead = (logits > own).sum(-1) + (logits[:, :target] == own).sum(-1)
    chances = logits.log_softmax(-1)[:, target].exp()
    return list(map(TargetReading, numbers(ahead + 1), floats(chances), floats(own[:, 0])))


def _plain(prompt: Prompt | list[Tensor] | list[OnePrompt]) -> Prompt:
    """The prompt with lists of numbers where it lists tensors."""
    if isinstance(prompt, str | Tensor):
        return prompt
    return cast("Prompt", [numbers(p) if isinstance(p, Tensor) else p for p in prompt])


def _texts(prompt: Prompt | list[Tensor] | list[OnePrompt]) -> Sequence[object]:
    """The prompts one by one; text where they are text."""
    return [prompt] if isinstance(prompt, str | Tensor) else [*prompt, None]


def _text(model: MIModel, ids: list[int]) -> str:
    return model.decode(ids) if model.has_tokenizer else " ".join(map(str, ids))


def _reading_to_dict(reading: LensReading) -> dict[str, object]:
    return {
        "layer": reading.layer,
        "position": reading.position,
        "predictions": [
            {"rank": rank} | asdict(found) for rank, found in enumerate(reading.predictions, 1)
        ],
        "target": None if reading.target is None else asdict(reading.target),
    }


def _reading_from_dict(data: dict[str, Any]) -> LensReading:
    found = [
        TokenPrediction(p["token_id"], p["token"], p["probability"], p["logit"])
        for p in data["predictions"]
    ]
    target = None if data["target"] is None else TargetReading(**data["target"])
    return LensReading(data["layer"], data["position"], tuple(found), target)
