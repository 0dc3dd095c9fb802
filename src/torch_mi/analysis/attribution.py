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

from torch_mi.cache import HookCache
from torch_mi.errors import ModelError
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.manifest import Manifest
from torch_mi.model import MIModel
from torch_mi.prompts import Prompt
from torch_mi.results import Result, data_frame, pieces_of, position_in, text_of

FORM = "torch-mi attribution 1"
POINTS = (
    HookPoint.Embed,
    HookPoint.PosEmbed,
    HookPoint.AttnResult,
    HookPoint.Ln1PostScale,
    HookPoint.MlpOut,
    HookPoint.FinalScale,
    HookPoint.FinalNorm,
)


KINDS = (
    "embedding",
    "positions",
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
        """The heads' shares [layer head]."""
        found = [share for share in self.shares if share.kind == "head"]
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

    At one `position` of one prompt; biases have their own rows.
    """
    batch = model.read_prompt(prompt)
    if len(batch.tokens) != 1:
        raise ModelError(f"attribute takes one prompt, got {len(batch.tokens)}")
    place = position_in(batch.shape[1], position)
    spec = HookSpec().capture(*(p for p in POINTS if p in model.backend.hook_points))
    cache = model.forward(batch.tokens, spec.capture(HookPoint.ResidPre(0)))
    wanted = model.token_id(target, output=True)
    other = None if versus is None else model.token_id(versus, output=True)
    direction = _Direction.of(model, wanted, other)
    ids = batch.rows()[0]
    return Attribution(
        model_id=model.origin.model_id,
        prompt=text_of(model, ids),
        position=place,
        target=pieces_of(model, [wanted], output=True)[0],
        versus=None if other is None else pieces_of(model, [other], output=True)[0],
        shares=tuple(_shares(_Run(model, cache, place), direction)),
        logit=float(cache[HookPoint.FinalNorm][0, place].double() @ direction.vector)
        + direction.bias,
        manifest=cache.manifest,
    )


@dataclass(frozen=True)
class _Direction:
    """What the unembedding reads off a normed vector: vector · x + bias."""

    vector: Tensor
    bias: float

    @staticmethod
    def of(model: MIModel, wanted: int, other: int | None) -> "_Direction":
        """The direction of a logit, or of its lead over another."""
        scale, biases = model.backend.logit_scale, model.backend.unembedding_bias
        vector = model.unembedding_vector(wanted).double()
        bias = 0.0 if biases is None else float(biases[wanted].detach())
        if other is not None:
            vector = vector - model.unembedding_vector(other).double()
            bias -= 0.0 if biases is None else float(biases[other].detach())
        return _Direction(vector * scale, bias * scale)


@dataclass(frozen=True)
class _Run:
    """A run at one position, in double precision."""

    model: MIModel
    cache: HookCache
    place: int

    def at(self, where: str) -> Tensor:
        return self.cache[where][0, self.place].double()

    def heads(self, layer: int) -> tuple[Tensor, Tensor | None]:
        """What heads [head d_model] and biases [d_model] add to the residual stream."""
        written = self.model.backend.attention_written(layer)
        heads, bias = self.at(HookPoint.AttnResult(layer)), written.bias
        bias = None if bias is None else bias.double()
        if written.norm is not None:
            scale = self.at(HookPoint.Ln1PostScale(layer))
            heads = written.norm.linear(heads, scale)
            bias = None if bias is None else written.norm.linear(bias, scale)
            after = written.norm.bias
            if after is not None:
                bias = after.double() if bias is None else bias + after.double()
        return heads * written.scale, None if bias is None else bias * written.scale


def _shares(run: _Run, direction: _Direction) -> Iterator[Share]:
    """Every term of the last residual stream, measured along a direction."""
    norm, biases = run.model.backend.final_norm, run.model.backend.unembedding_bias
    for name, kind, layer, head, term in _terms(run):
        after = term if norm is None else norm.linear(term, run.at(HookPoint.FinalScale))
        yield Share(name, kind, layer, head, float(after @ direction.vector))
    if norm is not None and norm.bias is not None:
        value = float(norm.bias.double() @ direction.vector)
        yield Share("final bias", "final bias", None, None, value)
    if biases is not None:
        yield Share("unembedding bias", "unembedding bias", None, None, direction.bias)


def _terms(run: _Run) -> Iterator[tuple[str, str, int | None, int | None, Tensor]]:
    """What the residual stream is a sum of: name, kind, layer, head, vector [d_model]."""
    for kind, term in _beginning(run):
        yield kind, kind, None, None, term
    for layer in range(run.model.num_layers):
        heads, bias = run.heads(layer)
        for head, term in enumerate(heads):
            yield f"L{layer}H{head}", "head", layer, head, term
        if bias is not None:
            yield f"L{layer} attention bias", "attention bias", layer, None, bias
        if HookPoint.MlpOut in run.model.backend.layer_points(layer):
            yield f"L{layer} MLP", "mlp", layer, None, run.at(HookPoint.MlpOut(layer))


def _beginning(run: _Run) -> Iterator[tuple[str, Tensor]]:
    """The terms that the residual stream begins with."""
    whole, tokens = run.cache[HookPoint.ResidPre(0)], run.cache[HookPoint.Embed]
    positions = run.cache.get(HookPoint.PosEmbed)
    if not torch.equal(whole, tokens if positions is None else tokens + positions):
        yield "embedding", run.at(HookPoint.ResidPre(0))
        return
    yield "embedding", run.at(HookPoint.Embed)
    if positions is not None:
        yield "positions", run.at(HookPoint.PosEmbed)
