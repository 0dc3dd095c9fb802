# SPDX-License-Identifier: MIT OR Apache-2.0
"""The lens for single heads: which tokens each head raises most, by what it writes.

What a head adds to the residual stream goes through the final norm, its denominator held at the
run's value, and through the unembedding: its direct share of every logit. The mean over the
vocabulary is taken off, for it changes no probability.
"""

from dataclasses import asdict, dataclass
from typing import Any, Self

from torch_mi.analysis.attribution import final_points
from torch_mi.analysis.decomposition import Words
from torch_mi.analysis.terms import Stream, check_split, run_for
from torch_mi.errors import ModelError
from torch_mi.hooks.point import HookPoint
from torch_mi.manifest import Manifest
from torch_mi.model import MIModel
from torch_mi.prompts import Prompt
from torch_mi.results import Result, data_frame, floats, pieces_of, position_in
from torch_mi.types import numbers

FORM = "torch-mi head lens 1"


@dataclass(frozen=True)
class Raised:
    """A token that a head raises, and by how much above the mean of all tokens."""

    token_id: int
    token: str
    logit: float


@dataclass(frozen=True)
class HeadReading:
    """What one head says: the tokens that it raises most, most first."""

    layer: int
    head: int
    raised: tuple[Raised, ...]


@dataclass(frozen=True, repr=False)
class HeadLens(Result):
    """What each head says at one position of a prompt."""

    form = FORM

    model_id: str
    words: Words
    readings: tuple[HeadReading, ...]
    manifest: Manifest

    def best(self, k: int = 5) -> list[HeadReading]:
        """The `k` heads that raise a token most."""
        return sorted(self.readings, key=lambda reading: -reading.raised[0].logit)[:k]

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each head and token (needs pandas)."""
        rows: list[dict[str, object]] = [
            {"layer": r.layer, "head": r.head, "rank": rank, **asdict(found)}
            for r in self.readings
            for rank, found in enumerate(r.raised, 1)
        ]
        return data_frame(rows)

    def to_dict(self) -> dict[str, object]:
        return {
            "format": FORM,
            "model_id": self.model_id,
            "words": asdict(self.words),
            "readings": [asdict(reading) for reading in self.readings],
            "manifest": self.manifest.to_dict(),
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        readings = [
            HeadReading(r["layer"], r["head"], tuple(Raised(**found) for found in r["raised"]))
            for r in data["readings"]
        ]
        words, manifest = Words.from_dict(data["words"]), Manifest.from_dict(data["manifest"])
        return cls(data["model_id"], words, tuple(readings), manifest)


def head_lens(model: MIModel, prompt: Prompt, *, top_k: int = 5, position: int = -1) -> HeadLens:
    """The tokens that each head raises most at one position of one prompt."""
    count = model.backend.sizes["vocab"]
    if not 1 <= top_k <= count:
        raise ModelError(f"top_k={top_k} is out of range: 1 … {count}")
    heads = check_split(model, "heads")
    cache = run_for(model, prompt, heads, final_points(model))
    ids = [] if cache.tokens is None else numbers(cache.tokens[0])
    place = position_in(len(ids), position)
    stream = Stream(model, cache, (place,), heads)
    norm, table = model.backend.final_norm, model.backend.unembedding.detach().double()
    readings: list[HeadReading] = []
    for block in stream.blocks(model.num_layers):
        if block.terms[0].kind != "head":
            continue
        made = block.vectors()[:, 0]
        if norm is not None:
            made = norm.linear(made, stream.at(HookPoint.FinalScale))
        logits = made @ table.T * model.backend.logit_scale
        values, tokens = (logits - logits.mean(-1, keepdim=True)).topk(top_k)
        for term, row, found in zip(block.terms, values, tokens, strict=True):
            raised = map(
                Raised,
                numbers(found),
                pieces_of(model, numbers(found), output=True),
                floats(row),
            )
            readings.append(HeadReading(term.layer or 0, term.index or 0, tuple(raised)))
    words = Words.of(model, ids, [place])
    return HeadLens(model.origin.model_id, words, tuple(readings), cache.manifest)
