# SPDX-License-Identifier: MIT OR Apache-2.0
"""Direct logit attribution: what each part of a model adds to a logit.

The last residual stream is a sum: the embedding, every head, every MLP. With the final norm's
denominator held at its value, the norm and the unembedding are linear, so each term has its own
share of the logit, and the shares sum to it (Elhage et al. 2021; Nanda 2022). A final soft-cap is
not linear: the shares are of the logit before it.
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
    HookPoint.AttnResult,
    HookPoint.AttnOut,
    HookPoint.MlpOut,
    HookPoint.FinalScale,
    HookPoint.FinalNorm,
)


@dataclass(frozen=True)
class Share:
    """What one term of the residual stream adds to the logit."""

    name: str
    kind: str
    """"embedding", "head", "attention bias", "mlp" or "final bias"."""
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
    cache = model.forward(batch.tokens, HookSpec().capture(*POINTS))
    wanted = model.token_id(target)
    other = None if versus is None else model.token_id(versus)
    direction = model.unembedding_vector(wanted).double()
    if other is not None:
        direction = direction - model.unembedding_vector(other).double()
    logit = cache[HookPoint.FinalNorm][0, place].double() @ direction
    ids = batch.rows()[0]
    return Attribution(
        model_id=model.origin.model_id,
        prompt=text_of(model, ids),
        position=place,
        target=pieces_of(model, [wanted])[0],
        versus=None if other is None else pieces_of(model, [other])[0],
        shares=tuple(_shares(model, cache, place, direction)),
        logit=float(logit),
        manifest=cache.manifest,
    )


def _shares(model: MIModel, cache: HookCache, place: int, direction: Tensor) -> Iterator[Share]:
    """Every term of the last residual stream at `place`, measured along `direction`."""
    norm = model.backend.final_norm
    scale = cache[HookPoint.FinalScale][0, place].double()
    along = direction * norm.gain.double() / scale
    along = along - along.mean() if norm.centred else along

    def share(name: str, kind: str, term: Tensor, layer: int | None, head: int | None) -> Share:
        return Share(name, kind, layer, head, float(term.double() @ along))

    yield share("embedding", "embedding", cache[HookPoint.Embed][0, place], None, None)
    for layer in range(model.num_layers):
        added = cache[HookPoint.AttnOut(layer)][0, place].double()
        heads = _as_added(model, cache[HookPoint.AttnResult(layer)][0, place].double(), added)
        for head, term in enumerate(heads):
            yield share(f"L{layer}H{head}", "head", term, layer, head)
        rest = added - heads.sum(0)
        if model.backend.adds_attention_bias:
            yield share(f"L{layer} attention bias", "attention bias", rest, layer, None)
        yield share(f"L{layer} MLP", "mlp", cache[HookPoint.MlpOut(layer)][0, place], layer, None)
    if norm.bias is not None:
        yield Share("final bias", "final bias", None, None, float(norm.bias.double() @ direction))


def _as_added(model: MIModel, heads: Tensor, added: Tensor) -> Tensor:
    """The heads' outputs [head d_model] as they arrive in the residual stream.

    A post-norm multiplies each entry of their sum by a factor of its own, which is held.
    """
    if not model.backend.norms_attention_output:
        return heads
    raw = heads.sum(0)
    return heads * torch.where(raw == 0, 0, added / raw)
