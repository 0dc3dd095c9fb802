# SPDX-License-Identifier: MIT OR Apache-2.0
"""Continuing a text, with edits applied at every step."""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch

from torch_mi.cache import HookCache, Prefix
from torch_mi.errors import HookError, InterventionError, ModelError
from torch_mi.hooks.coordinates import At, Place, Span, Text, Token
from torch_mi.hooks.spec import HookSpec
from torch_mi.hooks.trace import depends_on_length
from torch_mi.manifest import describe_spec
from torch_mi.prompts import Batch, Prompt, spelt
from torch_mi.results import predicts_tokens, text_of
from torch_mi.sampling import Sampling

if TYPE_CHECKING:
    from torch_mi.model import MIModel


@dataclass(frozen=True)
class Continuation:
    """What one prompt became."""

    prompt: str
    text: str
    """The new text alone."""
    prompt_tokens: list[int]
    tokens: list[int]
    """The new tokens alone; a stop token is not among them."""
    stopped_by: int | None
    """The token that ended it; `None` if it came to the wanted length."""

    @property
    def full_text(self) -> str:
        return self.prompt + self.text


@dataclass(frozen=True)
class GenerationResult:
    """The continuations of one or more prompts, and what it takes to get them again."""

    rows: tuple[Continuation, ...]
    sampling: Sampling
    used_cache: bool
    """Whether keys and values were carried over from step to step."""
    manifest: dict[str, object]

    @property
    def text(self) -> str:
        """The new text of a single prompt."""
        return self._only.text

    @property
    def full_text(self) -> str:
        """Prompt and new text of a single prompt."""
        return self._only.full_text

    @property
    def tokens(self) -> list[int]:
        """The new tokens of a single prompt."""
        return self._only.tokens

    @property
    def texts(self) -> list[str]:
        """The new text of each prompt."""
        return [row.text for row in self.rows]

    @property
    def _only(self) -> Continuation:
        if len(self.rows) != 1:
            raise ModelError(f"{len(self.rows)} prompts were continued; see .texts and .rows")
        return self.rows[0]

    def to_dict(self) -> dict[str, object]:
        """This, as JSON values."""
        return {
            "rows": [asdict(row) | {"full_text": row.full_text} for row in self.rows],
            "sampling": asdict(self.sampling),
            "used_cache": self.used_cache,
            "manifest": self.manifest,
        }

    def __repr__(self) -> str:
        return "\n".join(f"{row.prompt!r} → {row.text!r}" for row in self.rows)


class Generation:
    """A text being continued, one token at a time."""

    def __init__(
        self,
        model: "MIModel",
        prompt: Prompt,
        spec: HookSpec | None,
        sampling: Sampling,
        stops: Sequence[int] | None,
        use_cache: bool | None,  # noqa: FBT001 - three-valued
    ) -> None:
        if spec is not None and spec.num_captures():
            raise HookError(
                "generate() returns no captures; run forward() with this spec on the tokens it gave"
            )
        if not predicts_tokens(model):
            raise ModelError(
                f"this model's {model.backend.sizes['vocab']} logits do not stand for its "
                f"{model.vocab_size} tokens: it cannot continue a text"
            )
        self._model, self._use_cache = model, use_cache
        seed = secrets.randbits(31) if sampling.seed is None else sampling.seed
        self.sampling = sampling if sampling.temperature == 0 else replace(sampling, seed=seed)
        self._stops = set(model.origin.eos_ids if stops is None else stops)
        from torch_mi.model import batch_of  # noqa: PLC0415 - models are made of runs

        self._start = batch_of(model, prompt)
        self._spec = None if spec is None else _pinned(spec, self._start, model)
        rows = len(self._start.tokens)
        self._dice = [torch.Generator().manual_seed(seed + row) for row in range(rows)]
        self.new: list[list[int]] = [[] for _ in range(rows)]
        self.stopped_by: list[int | None] = [None] * rows
        self._cache: HookCache | None = None
        self._after: Prefix | None = None

    @property
    def prompts(self) -> list[list[int]]:
        """The token ids of each prompt."""
        return self._start.rows()

    def cached(self, max_new_tokens: int) -> bool:
        """Whether keys and values are carried over: as told, or if that is provably the same."""
        if self._use_cache is not None:
            return self._use_cache
        length = self._start.shape[1] + (0 if self._after is None else self._after.seen)
        if self._model.backend.grows_differently(length, length + max_new_tokens):
            return False
        spec = self._spec or HookSpec()
        return not any(depends_on_length(e, place) for place, e in spec.edits)

    def following(self, after: Prefix | None) -> "Generation":
        """The same, of prompts that follow a prefix."""
        self._after = after
        return self

    def steps(self, max_new_tokens: int) -> Iterator[list[list[int]]]:
        """The new tokens of each row so far, after every step."""
        if not isinstance(max_new_tokens, int) or max_new_tokens < 0:  # pyright: ignore[reportUnnecessaryIsInstance] - users are untyped
            raise ModelError(f"max_new_tokens is a count from 0 upwards, got {max_new_tokens}")
        carry = self.cached(max_new_tokens)
        prefix, batch, spec = self._after or Prefix(), self._start, self._spec
        for _ in range(max_new_tokens):
            self._cache = self._model.forward(
                batch.tokens,
                spec,
                attention_mask=batch.real,
                after=prefix if carry else self._after,
            )
            chosen = torch.tensor(self._choose(self._cache))[:, None]
            yield self.new
            if all(stop is not None for stop in self.stopped_by):
                return
            if carry:
                prefix, batch = self._cache.prefix, Batch(chosen)
                spec = None if spec is None else replace(spec.copy(), allow_unfired=True)
            else:
                batch = _grown(batch, chosen)

    def finish(self, max_new_tokens: int) -> GenerationResult:
        """Run to the end."""
        for _ in self.steps(max_new_tokens):
            pass
        manifest: dict[str, object] = {} if self._cache is None else self._cache.manifest.to_dict()
        rows, described = self.prompts, describe_spec(self._spec)
        return GenerationResult(
            tuple(self._continuation(i, rows[i]) for i in range(len(rows))),
            self.sampling,
            self.cached(max_new_tokens),
            manifest | {"tokens": rows, "spec": described, "seed": self.sampling.seed},
        )

    def _continuation(self, row: int, prompt: list[int]) -> Continuation:
        return Continuation(
            text_of(self._model, prompt),
            continued(self._model, prompt, self.new[row]),
            prompt,
            self.new[row],
            self.stopped_by[row],
        )

    def _choose(self, cache: HookCache) -> list[int]:
        """A token for each row; rows that have ended repeat their last one, unrecorded."""
        chosen: list[int] = []
        for row, scores in enumerate(cache.output[:, -1]):
            ended = self.stopped_by[row]
            token = self.sampling.choose(scores, self._dice[row]) if ended is None else ended
            chosen.append(token)
            if ended is None and token in self._stops:
                self.stopped_by[row] = token
            elif ended is None:
                self.new[row].append(token)
        return chosen


def stream(  # noqa: PLR0913 - sampling is made of choices
    model: "MIModel",
    prompt: Prompt,
    *,
    max_new_tokens: int = 20,
    spec: HookSpec | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> Iterator[str]:
    """The continuation of one prompt, piece by piece as it is made; together they are its text."""
    generation = Generation(
        model, prompt, spec, Sampling(temperature, top_k, top_p, seed), None, None
    )
    if len(generation.new) != 1:
        raise ModelError(f"stream continues one prompt, got {len(generation.new)}")
    shown, prompt_ids = "", generation.prompts[0]
    for new in generation.steps(max_new_tokens):
        text = continued(model, prompt_ids, new[0])
        if text.startswith(shown) and not text.endswith("\ufffd") and text != shown:
            yield text[len(shown) :]
            shown = text
    text = continued(model, prompt_ids, generation.new[0])
    if text != shown:
        yield text[len(shown) :]


def continued(model: "MIModel", prompt: list[int], new: list[int]) -> str:
    """The text that new tokens add to a prompt's: some tokenizers decode them otherwise alone."""
    before, whole = text_of(model, prompt), text_of(model, prompt + new)
    return whole[len(before) :] if whole.startswith(before) else text_of(model, new)


def _grown(batch: Batch, chosen: torch.Tensor) -> Batch:
    """The batch with one more token in each row."""
    tokens = torch.cat([batch.tokens, chosen.to(batch.tokens.device)], 1)
    if batch.real is None:
        return Batch(tokens)
    return Batch(tokens, torch.cat([batch.real, torch.ones_like(chosen, dtype=torch.bool)], 1))


def _pinned(spec: HookSpec, batch: Batch, model: "MIModel") -> HookSpec:
    """The spec with positions named by text fixed to where the prompt has that text."""
    pinned = spec.copy()
    texts: list[Text] = []
    for i, (place, edit) in enumerate(spec.edits):
        named = {} if edit.at is None else edit.at.named()
        if any(isinstance(value, Token | Span) for value in named.values()):
            texts = texts or [spelt(model.tokenizer, row) for row in batch.rows()]
            fixed = {name: _numbered(value, texts) for name, value in named.items()}
            at = At(**cast("dict[str, Any]", fixed))
            pinned.edits[i] = (place, replace(edit, at=at))
    return pinned


def _numbered(place: Place, texts: list[Text]) -> Place:
    if not isinstance(place, Token | Span):
        return place
    found = [place.find(text) for text in texts]
    if any(f != found[0] for f in found):
        raise InterventionError(
            f"{place!r} stands at different positions in these prompts; continue them one at a time"
        )
    return found[0]
