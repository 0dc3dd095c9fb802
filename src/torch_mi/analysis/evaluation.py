# SPDX-License-Identifier: MIT OR Apache-2.0
"""Is a model what it should be: quick checks that it can predict, and predicts what it repeats.

Losses are mean cross-entropies in nats per token. `sanity_check` finds models that were loaded
wrongly or never trained; `induction_loss` is that of random tokens shown a second time (Olsson et
al. 2022), which a model can foretell only by looking back.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from torch_mi.analysis.heads import repeated
from torch_mi.errors import ModelError
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.manifest import Manifest
from torch_mi.model import MIModel
from torch_mi.results import Result, data_frame, floats, predicts_tokens

FORM = "torch-mi induction loss 1"
SANITY_FORM = "torch-mi sanity check 1"
TEXT = (
    "The capital of France is Paris. The capital of Italy is Rome. "
    "When Mary and John went to the store, John gave a drink to Mary."
)
"""English that a model of English finds easy."""
CLOSE = 1e-3
"""How far two ways to the same logits may be apart, for logits of order one."""


@dataclass(frozen=True, eq=False, repr=False)
class InductionLoss(Result):
    """How well random tokens are predicted when they are shown a first and a second time."""

    form = FORM

    model_id: str
    losses: Tensor
    """The mean loss of each token [pos] of the two showings, in their order.

    The first of all is not predicted from anything if no BOS token stands before it; then it is
    left out.
    """
    length: int
    repeats: int
    seed: int
    manifest: Manifest

    @property
    def first(self) -> float:
        """The mean loss in the first showing."""
        return float(self.losses[: -self.length].mean())

    @property
    def second(self) -> float:
        """The mean loss in the second showing, but for its first token, which nothing foretells."""
        return float(self.losses[1 - self.length :].mean())

    @property
    def gain(self) -> float:
        """How much lower the loss is the second time."""
        return self.first - self.second

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each token (needs pandas)."""
        count = len(self.losses) - 2 * self.length
        rows: list[dict[str, object]] = [
            {
                "showing": 1 + (i - count) // self.length,
                "token": (i - count) % self.length,
                "loss": loss,
            }
            for i, loss in enumerate(floats(self.losses))
        ]
        return data_frame(rows)

    def to_dict(self) -> dict[str, object]:
        return {
            "format": FORM,
            "model_id": self.model_id,
            "first": self.first,
            "second": self.second,
            "losses": floats(self.losses),
            "length": self.length,
            "repeats": self.repeats,
            "seed": self.seed,
            "manifest": self.manifest.to_dict(),
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        return cls(
            data["model_id"],
            torch.tensor(data["losses"]),
            data["length"],
            data["repeats"],
            data["seed"],
            Manifest.from_dict(data["manifest"]),
        )


@dataclass(frozen=True)
class SanityItem:
    """One thing that should hold: a value that should be below a bound."""

    name: str
    value: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether it holds; a value that is not a number does not."""
        return self.value < self.bound


@dataclass(frozen=True, repr=False)
class Sanity(Result):
    """What a model should be able to do, and whether it is."""

    form = SANITY_FORM

    model_id: str
    text: str
    items: tuple[SanityItem, ...]
    manifest: Manifest

    @property
    def passed(self) -> bool:
        """Whether all holds."""
        return all(item.passed for item in self.items)

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each item (needs pandas)."""
        rows: list[dict[str, object]] = [
            {**asdict(item), "passed": item.passed} for item in self.items
        ]
        return data_frame(rows)

    def to_dict(self) -> dict[str, object]:
        return {
            "format": SANITY_FORM,
            "model_id": self.model_id,
            "text": self.text,
            "passed": self.passed,
            "items": [asdict(item) for item in self.items],
            "manifest": self.manifest.to_dict(),
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        items = tuple(SanityItem(**item) for item in data["items"])
        return cls(data["model_id"], data["text"], items, Manifest.from_dict(data["manifest"]))


def induction_loss(
    model: MIModel, *, length: int = 20, repeats: int = 8, seed: int = 0
) -> InductionLoss:
    """The loss on random tokens that are shown twice.

    On `repeats` sequences of `length` distinct random tokens, as `find_heads` shows them.
    """
    if length < 2 or repeats < 1:  # noqa: PLR2004 - a sequence of one has nothing to foretell
        raise ModelError(f"length={length} needs to be at least 2, repeats={repeats} at least 1")
    _check(model)
    tokens, _ = repeated(model, length, repeats, seed)
    cache = model.forward(tokens)
    return InductionLoss(
        model_id=model.origin.model_id,
        losses=losses(cache.output, tokens).mean(0).cpu(),
        length=length,
        repeats=repeats,
        seed=seed,
        manifest=cache.manifest,
    )


def sanity_check(model: MIModel, text: str = TEXT) -> Sanity:
    """Whether a model predicts a text as a trained one does, and its parts make up its logits.

    The text must be easier than guessing at random and than its own words in another order, and
    nothing that comes later may change what is predicted before.
    """
    _check(model)
    tokens = model.encode(text)
    if tokens.shape[1] < 4:  # noqa: PLR2004 - the fewest that can be put in another order
        raise ModelError(f"a text of {tokens.shape[1]} tokens says too little; give a sentence")
    last = HookPoint.ResidPost(model.num_layers - 1)
    cache = model.forward(tokens, HookSpec().capture(last))
    logits = cache.output.float()
    scale = max(1.0, float(logits.abs().max()))
    again = model.project_to_vocab(cache[last]).float()
    half = tokens.shape[1] // 2
    alone = model.forward(tokens[:, :half]).output.float()
    loss = float(losses(logits, tokens).mean())
    mixed = shuffled(tokens)
    items = [
        SanityItem("logits that are not finite", float((~logits.isfinite()).sum()), 0.5),
        SanityItem("loss on the text, below random guesses", loss, math.log(logits.shape[-1])),
        SanityItem("the same, below that of its words shuffled", loss, _loss(model, mixed)),
        SanityItem("last layer read again", _far(again, logits) / scale, CLOSE),
    ]
    if model.backend.causal:
        ahead = _far(alone, logits[:, :half]) / scale
        items.append(SanityItem("what later words change before them", ahead, CLOSE))
    return Sanity(model.origin.model_id, text, tuple(items), cache.manifest)


def losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """The loss of every token [batch pos-1] but the first, from what comes before it."""
    return -logits.detach()[:, :-1].float().log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]


def shuffled(tokens: Tensor) -> Tensor:
    """The tokens in a fixed random order, but for the first."""
    order = torch.randperm(tokens.shape[1] - 1, generator=torch.Generator().manual_seed(0))
    return torch.cat([tokens[:, :1], tokens[:, 1:][:, order]], 1)


def _loss(model: MIModel, tokens: Tensor) -> float:
    return float(losses(model.forward(tokens).output, tokens).mean())


def _far(x: Tensor, y: Tensor) -> float:
    return float((x - y).detach().abs().max())


def _check(model: MIModel) -> None:
    if not predicts_tokens(model):
        raise ModelError("a loss is of tokens, and this model's logits do not stand for tokens")
