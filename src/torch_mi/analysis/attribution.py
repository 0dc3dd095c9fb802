# SPDX-License-Identifier: MIT OR Apache-2.0
"""Direct logit attribution: what each part of a model adds to a logit.

The last residual stream is a sum: the embedding, learned positions, every head, every MLP. With
the denominators of the final norm and of norms on attention's output held at their values, all that
follows is linear, so each term has its own share of the logit, and the shares sum to it (Elhage et
al. 2021; Nanda 2022). A final soft-cap is not linear: the shares are of the logit before it. Where
the embedding itself is normed, tokens and positions share one term.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from torch_mi.analysis.terms import Stream, Term, heads_apart, run_for
from torch_mi.errors import ModelError
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.manifest import Manifest
from torch_mi.model import MIModel, batch_of
from torch_mi.prompts import Prompt
from torch_mi.results import Result, data_frame, floats, pieces_of, position_in, text_of

FORM = "torch-mi attribution 1"
KINDS = (
    "embedding",
    "positions",
    "attention",
    "head",
    "attention bias",
    "mlp",
    "final bias",
    "unembedding bias",
)
"""What a term can be, in the order of the forward pass."""


@dataclass(frozen=True)
class Share:
    """What one term of the residual stream adds to the logit."""

    name: str
    kind: str
    """One of `KINDS`."""
    layer: int | None
    head: int | None
    value: float


@dataclass(frozen=True, repr=False)
class Attribution(Result):
    """The shares of a logit, or of a difference of two, in the order of the forward pass."""

    form = FORM

    model_id: str
    prompt: str
    position: int
    target: str
    versus: str | None
    shares: tuple[Share, ...]
    logit: float
    """What the shares sum to: the logit (or difference) before any soft-cap."""
    manifest: Manifest

    @property
    def error(self) -> float:
        """How far the shares' sum is from the logit: rounding alone."""
        return abs(sum(share.value for share in self.shares) - self.logit)

    def best(self, k: int = 5) -> list[Share]:
        """The `k` shares that weigh most, for or against."""
        return sorted(self.shares, key=lambda share: -abs(share.value))[:k]

    def heads(self) -> Tensor:
        """The heads' shares [layer head]; the layers' as one head, where heads are not apart."""
        found = [share for share in self.shares if share.kind in ("head", "attention")]
        width = 1 + max(share.head or 0 for share in found)
        return torch.tensor([share.value for share in found]).reshape(-1, width)

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each share (needs pandas)."""
        return data_frame([asdict(share) for share in self.shares])

    def to_dict(self) -> dict[str, object]:
        return {
            "format": FORM,
            "model_id": self.model_id,
            "prompt": self.prompt,
            "position": self.position,
            "target": self.target,
            "versus": self.versus,
            "logit": self.logit,
            "shares": [asdict(share) for share in self.shares],
            "manifest": self.manifest.to_dict(),
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        return cls(
            data["model_id"],
            data["prompt"],
            data["position"],
            data["target"],
            data["versus"],
            tuple(Share(**share) for share in data["shares"]),
            data["logit"],
            Manifest.from_dict(data["manifest"]),
        )


def attribute(
    model: MIModel,
    prompt: Prompt,
    *,
    target: str | int,
    versus: str | int | None = None,
    position: int = -1,
) -> Attribution:
    """Each head's and MLP's share of the logit of `target`, or of its lead over `versus`.

    At one `position` of one prompt; biases have their own rows. In recurrent models heads are those
    that read a state; where each has one channel (RWKV-4), a layer's time mixing is one term.
    """
    batch = batch_of(model, prompt)
    if len(batch.tokens) != 1:
        raise ModelError(f"attribute takes one prompt, got {len(batch.tokens)}")
    place = position_in(batch.shape[1], position)
    split = frozenset({"heads"} if heads_apart(model) else ())
    cache = run_for(model, batch.tokens, split, final_points(model))
    wanted = model.token_id(target, output=True)
    other = None if versus is None else model.token_id(versus, output=True)
    direction = Direction.of(model, wanted, other)
    ids = batch.rows()[0]
    return Attribution(
        model_id=model.origin.model_id,
        prompt=text_of(model, ids),
        position=place,
        target=pieces_of(model, [wanted], output=True)[0],
        versus=None if other is None else pieces_of(model, [other], output=True)[0],
        shares=tuple(_shares(Stream(model, cache, (place,), split), direction)),
        logit=float(cache[HookPoint.FinalNorm][0, place].double() @ direction.vector)
        + direction.bias,
        manifest=cache.manifest,
    )


@dataclass(frozen=True)
class Direction:
    """What the unembedding reads off a normed vector: vector · x + bias."""

    vector: Tensor
    bias: float

    @staticmethod
    def of(model: MIModel, wanted: int, other: int | None) -> "Direction":
        """The direction of a logit, or of its lead over another."""
        scale, biases = model.backend.logit_scale, model.backend.unembedding_bias
        vector = model.unembedding_vector(wanted).double()
        bias = 0.0 if biases is None else float(biases[wanted].detach())
        if other is not None:
            vector = vector - model.unembedding_vector(other).double()
            bias -= 0.0 if biases is None else float(biases[other].detach())
        return Direction(vector * scale, bias * scale)


def final_points(model: MIModel) -> HookSpec:
    """What a run must capture for its logits to be taken apart."""
    points = (HookPoint.FinalScale, HookPoint.FinalNorm)
    return HookSpec().capture(*(p for p in points if p in model.backend.hook_points))


def measured(stream: Stream, direction: Direction) -> Iterator[tuple[tuple[Term, ...], Tensor]]:
    """Every term of the last residual stream, and its share [term pos] of the logit."""
    backend = stream.model.backend
    norm, biases, vector = backend.final_norm, backend.unembedding_bias, direction.vector
    before = before_norm(stream.model, vector)
    held = 1.0 if norm is None else stream.at(HookPoint.FinalScale)[:, 0]
    for block in stream.blocks(stream.model.num_layers):
        yield block.terms, block.along(before) / held
    everywhere = vector.new_ones(1, len(stream.places))
    if norm is not None and norm.bias is not None:
        share = norm.bias.double() @ vector
        yield (Term("final bias", "final bias"),), share * everywhere
    if biases is not None:
        share = direction.bias
        yield (Term("unembedding bias", "unembedding bias"),), share * everywhere


def before_norm(model: MIModel, direction: Tensor) -> Tensor:
    """What `direction` [d_model] after the final norm is before it, but for the denominator."""
    norm = model.backend.final_norm
    if norm is None:
        return direction
    before = direction * norm.gain.to(direction)
    return before - before.mean() if norm.centred else before


def _shares(stream: Stream, direction: Direction) -> Iterator[Share]:
    """The shares at one position."""
    for terms, values in measured(stream, direction):
        for term, value in zip(terms, floats(values[:, 0]), strict=True):
            yield Share(term.name, term.kind, term.layer, term.index, value)
