# SPDX-License-Identifier: MIT OR Apache-2.0
"""Attention patterns: where each head looks, from every token to every other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from torch_mi.analysis.edges import instead
from torch_mi.errors import ModelError
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.manifest import Manifest
from torch_mi.model import MIModel, batch_of
from torch_mi.prompts import Prompt
from torch_mi.results import (
    Result,
    data_frame,
    floats,
    pieces_of,
    position_in,
    special_in,
    text_of,
)

FORM = "torch-mi attention patterns 1"


@dataclass(frozen=True, eq=False, repr=False)
class AttentionPatterns(Result):
    """The attention of some heads in some layers, on one prompt."""

    form = FORM

    model_id: str
    prompt: str
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    special: tuple[bool, ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    patterns: Tensor
    """Probabilities [layer head query key]."""
    manifest: Manifest

    def of(self, layer: int, head: int | None = None) -> Tensor:
        """One head's pattern [query key], or the mean of a layer's heads."""
        if layer not in self.layers or (head is not None and head not in self.heads):
            raise ModelError(
                f"layer {layer}{'' if head is None else f', head {head}'} was not looked at: "
                f"layers {list(self.layers)}, heads {list(self.heads)}"
            )
        found = self.patterns[self.layers.index(layer)]
        return found.mean(0) if head is None else found[self.heads.index(head)]

    def from_position(self, layer: int, query: int, head: int | None = None) -> list[float]:
        """How much one token looks at each."""
        return floats(self.of(layer, head)[position_in(len(self.tokens), query)])

    def to_position(self, layer: int, key: int, head: int | None = None) -> list[float]:
        """How much each token looks at one."""
        return floats(self.of(layer, head)[:, position_in(len(self.tokens), key)])

    def top(
        self, layer: int, query: int, k: int = 5, head: int | None = None
    ) -> list[tuple[int, float]]:
        """The `k` positions that one token looks at most, and how much; of equals, the earlier."""
        weights = self.from_position(layer, query, head)
        order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
        return [(i, weights[i]) for i in order[:k]]

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each layer, head, query and key (needs pandas)."""
        return data_frame(list(self._rows()))

    def _rows(self) -> Iterator[dict[str, object]]:
        for layer in self.layers:
            for head in self.heads:
                for query, row in enumerate(self.of(layer, head)):
                    for key, weight in enumerate(floats(row)):
                        yield {
                            "layer": layer,
                            "head": head,
                            "query": query,
                            "key": key,
                            "weight": weight,
                        }

    def to_dict(self) -> dict[str, object]:
        return {
            "format": FORM,
            "model_id": self.model_id,
            "prompt": self.prompt,
            "token_ids": list(self.token_ids),
            "tokens": list(self.tokens),
            "special": list(self.special),
            "layers": list(self.layers),
            "heads": list(self.heads),
            "patterns": [[[floats(r) for r in head] for head in layer] for layer in self.patterns],
            "manifest": self.manifest.to_dict(),
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        return cls(
            data["model_id"],
            data["prompt"],
            tuple(data["token_ids"]),
            tuple(data["tokens"]),
            tuple(data["special"]),
            tuple(data["layers"]),
            tuple(data["heads"]),
            torch.tensor(data["patterns"]),
            Manifest.from_dict(data["manifest"]),
        )


def attention(
    model: MIModel,
    prompt: Prompt,
    *,
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
) -> AttentionPatterns:
    """The attention patterns of one prompt, of all layers and heads unless some are given."""
    found = attentions(model, prompt, layers=layers, heads=heads)
    if len(found) != 1:
        raise ModelError(f"attention takes one prompt, got {len(found)}; attentions takes several")
    return found[0]


def attentions(
    model: MIModel,
    prompts: Prompt,
    *,
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
) -> list[AttentionPatterns]:
    """The attention patterns of each prompt, run as one batch."""
    needs_patterns(model)
    chosen = among("layer", layers, model.num_layers)
    some = among("head", heads, model.num_heads)
    batch = batch_of(model, prompts)
    spec = HookSpec().capture(*(HookPoint.AttnPattern(layer) for layer in chosen))
    cache = model.forward(batch.tokens, spec, attention_mask=batch.real, stop=max(chosen) + 1)
    out: list[AttentionPatterns] = []
    for row, ids in enumerate(batch.rows()):
        seen, special = slice(-len(ids), None), special_in(model, ids)
        found = [
            cache[HookPoint.AttnPattern(layer)][row, list(some), seen, seen] for layer in chosen
        ]
        out.append(
            AttentionPatterns(
                model_id=model.origin.model_id,
                prompt=words_of(model, ids),
                token_ids=tuple(ids),
                tokens=pieces_of(model, ids),
                special=special,
                layers=chosen,
                heads=some,
                patterns=torch.stack(found).detach().float().cpu(),
                manifest=replace(cache.manifest, tokens=[ids]),
            )
        )
    return out


def needs_patterns(model: MIModel) -> None:
    """Raise `ModelError` unless the model has attention patterns."""
    if HookPoint.AttnPattern not in model.backend.hook_points:
        hint = "effective_attention in torch_mi.analysis.effective shows what its states do instead"
        raise ModelError(f"this model has no attention patterns{instead(model, hint)}")


def words_of(model: MIModel, ids: list[int]) -> str:
    """The text of a prompt without what stands for structure."""
    special = special_in(model, ids)
    return text_of(model, [i for i, odd in zip(ids, special, strict=True) if not odd])


def among(name: str, wanted: int | Sequence[int] | None, count: int) -> tuple[int, ...]:
    """The numbers that are wanted, or all of them."""
    if wanted is None:
        return tuple(range(count))
    chosen = (wanted,) if isinstance(wanted, int) else tuple(wanted)
    wrong = [i for i in chosen if not 0 <= i < count]
    if wrong or not chosen:
        raise ModelError(f"{name}s={wanted!r} is out of range: {name}s are 0 … {count - 1}")
    return tuple(dict.fromkeys(chosen))
