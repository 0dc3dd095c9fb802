# SPDX-License-Identifier: MIT OR Apache-2.0
"""Heads that say a word at the end of a text: name movers, over a set of sentences.

In *When Mary and John went to the store, John gave a drink to* some heads write the indirect
object's name, and not the giver's, into the last position (Wang et al. 2022, "Interpretability in
the Wild"). They are found by direct logit attribution: each head's share of the right word's lead
over the wrong one, over many sentences. Where they look says where they take the word from: at the
word itself, as in GPT-2, or at another token that the word was brought to before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from torch_mi.analysis.attention import needs_patterns
from torch_mi.analysis.attribution import Direction, final_points, measured
from torch_mi.analysis.terms import Stream, run_for
from torch_mi.cache import HookCache
from torch_mi.errors import ModelError
from torch_mi.hooks.point import HookPoint
from torch_mi.manifest import Manifest
from torch_mi.model import MIModel, batch_of
from torch_mi.prompts import Prompt
from torch_mi.results import Result, data_frame, floats, pieces_of, position_in, text_of

HEADS = frozenset({"heads"})
FORM = "torch-mi movers 1"
Word = str | int


@dataclass(frozen=True, eq=False, repr=False)
class Movers(Result):
    """What each head adds to the lead of one word over another, and where it looks."""

    form = FORM

    model_id: str
    prompts: tuple[str, ...]
    targets: tuple[str, ...]
    versus: tuple[str, ...]
    position: int
    shares: Tensor
    """Of the lead [prompt layer head], in logits."""
    to_target: Tensor
    """Attention [prompt layer head] to wherever the target stands in the prompt."""
    to_versus: Tensor
    """The same to wherever the other word stands."""
    leads: Tensor
    """The target's lead [prompt], in logits before any soft-cap."""
    manifest: Manifest

    @property
    def mean(self) -> Tensor:
        """The mean share [layer head]."""
        return self.shares.mean(0)

    @property
    def standard_errors(self) -> Tensor:
        """Of the mean shares [layer head]; not a number with one prompt."""
        return self.shares.std(0) / len(self.shares) ** 0.5

    def best(self, k: int = 5) -> list[tuple[int, int, float]]:
        """The `k` heads that add most to the lead: layer, head, mean share."""
        mean = self.mean
        order = mean.flatten().argsort(descending=True)[:k]
        flat, heads = floats(mean.flatten()), mean.shape[1]
        return [(int(i) // heads, int(i) % heads, flat[int(i)]) for i in order]

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each prompt and head (needs pandas)."""
        rows: list[dict[str, object]] = []
        for i, layer, head in torch.cartesian_prod(*map(torch.arange, self.shares.shape)):
            at = (int(i), int(layer), int(head))
            looks = {"to_target": self.to_target[at], "to_versus": self.to_versus[at]}
            row = {"share": self.shares[at], **looks}
            place = dict(zip(("prompt", "layer", "head"), at, strict=True))
            rows.append({**place, **{name: float(value) for name, value in row.items()}})
        return data_frame(rows)

    def to_dict(self) -> dict[str, object]:
        return {
            "format": FORM,
            "model_id": self.model_id,
            "prompts": list(self.prompts),
            "targets": list(self.targets),
            "versus": list(self.versus),
            "position": self.position,
            "shares": _nested(self.shares),
            "to_target": _nested(self.to_target),
            "to_versus": _nested(self.to_versus),
            "leads": floats(self.leads),
            "manifest": self.manifest.to_dict(),
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        return cls(
            data["model_id"],
            tuple(data["prompts"]),
            tuple(data["targets"]),
            tuple(data["versus"]),
            data["position"],
            torch.tensor(data["shares"]),
            torch.tensor(data["to_target"]),
            torch.tensor(data["to_versus"]),
            torch.tensor(data["leads"]),
            Manifest.from_dict(data["manifest"]),
        )


def find_movers(
    model: MIModel,
    prompts: Prompt,
    *,
    target: Word | Sequence[Word],
    versus: Word | Sequence[Word],
    position: int = -1,
) -> Movers:
    """Each head's share of the lead of `target` over `versus`, prompt by prompt.

    A word, or a list with one for each prompt. Shares are of direct logit attribution at one
    `position` of every prompt, from its end if negative; prompts may be of different lengths.
    """
    needs_patterns(model)
    rows = batch_of(model, prompts).rows()
    wanted = _ids(model, "target", target, len(rows))
    others = _ids(model, "versus", versus, len(rows))
    shares: list[Tensor] = []
    looks: list[Tensor] = []
    leads: list[float] = []
    manifests: list[Manifest] = []
    for row, right, wrong in zip(rows, wanted, others, strict=True):
        place = position_in(len(row), position)
        spec = final_points(model).capture(HookPoint.AttnPattern)
        cache = run_for(model, torch.tensor([row]), HEADS, spec)
        direction = Direction.of(model, right, wrong)
        terms = measured(Stream(model, cache, (place,), HEADS), direction)
        shares.append(torch.stack([v[:, 0] for t, v in terms if t[0].kind == "head"]))
        looks.append(_looks(cache, model.num_layers, place, (_at(row, right), _at(row, wrong))))
        normed = cache[HookPoint.FinalNorm][0, place].double()
        leads.append(float(normed @ direction.vector) + direction.bias)
        manifests.append(cache.manifest)
    attention = torch.stack(looks, 1).float().cpu()
    return Movers(
        model_id=model.origin.model_id,
        prompts=tuple(text_of(model, row) for row in rows),
        targets=pieces_of(model, wanted, output=True),
        versus=pieces_of(model, others, output=True),
        position=position,
        shares=torch.stack(shares).float().cpu(),
        to_target=attention[0],
        to_versus=attention[1],
        leads=torch.tensor(leads),
        manifest=replace(manifests[0], tokens=rows),
    )


def _ids(model: MIModel, name: str, words: Word | Sequence[Word], prompts: int) -> list[int]:
    """A token id for each prompt."""
    every = [words] * prompts if isinstance(words, str | int) else list(words)
    if len(every) != prompts:
        raise ModelError(f"{name} has {len(every)} words for {prompts} prompts; give one for each")
    return [model.token_id(word, output=True) for word in every]


def _at(row: Sequence[int], token: int) -> list[int]:
    """Where a token stands in a prompt."""
    return [place for place, one in enumerate(row) if one == token]


def _looks(cache: HookCache, layers: int, place: int, keys: Sequence[list[int]]) -> Tensor:
    """The attention [what layer head] from one position to these keys together."""
    rows = [cache[HookPoint.AttnPattern(layer)][0, :, place] for layer in range(layers)]
    return torch.stack([torch.stack([row[:, some].sum(-1) for row in rows]) for some in keys])


def _nested(x: Tensor) -> list[list[list[float]]]:
    return [[floats(row) for row in rows] for rows in x]
