# SPDX-License-Identifier: MIT OR Apache-2.0
"""How large the state of each head is after every token."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from torch_mi.analysis.attention import among, words_of
from torch_mi.analysis.changes import one_prompt
from torch_mi.analysis.states import needs_state
from torch_mi.cache import Residual
from torch_mi.errors import ModelError
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.manifest import Manifest
from torch_mi.model import MIModel
from torch_mi.partial import record
from torch_mi.prompts import Prompt
from torch_mi.results import Result, data_frame, floats, pieces_of, special_in

FORM = "torch-mi state norms 1"
SUMS = 3
"""What a head of RWKV-4 carries in the place of values: numerator, denominator, their scale."""


@dataclass(frozen=True, eq=False, repr=False)
class StateNorms(Result):
    """The norm of each head's state after every token of one prompt."""

    form = FORM

    model_id: str
    prompt: str
    tokens: tuple[str, ...]
    special: tuple[bool, ...]
    layers: tuple[int, ...]
    norms: Tensor
    """[layer head pos]"""
    what: str
    """What was measured, in words."""
    manifest: Manifest

    def of(self, layer: int) -> Tensor:
        """The norms [head pos] in one layer."""
        if layer not in self.layers:
            raise ModelError(f"layer {layer} was not looked at: layers {list(self.layers)}")
        return self.norms[self.layers.index(layer)]

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each layer, head and position (needs pandas)."""
        return data_frame(
            [
                {"layer": layer, "head": head, "pos": pos, "token": self.tokens[pos], "norm": norm}
                for layer in self.layers
                for head, row in enumerate(self.of(layer))
                for pos, norm in enumerate(floats(row))
            ]
        )

    def to_dict(self) -> dict[str, object]:
        return {
            "format": FORM,
            "model_id": self.model_id,
            "prompt": self.prompt,
            "tokens": list(self.tokens),
            "special": list(self.special),
            "layers": list(self.layers),
            "norms": [[floats(head) for head in layer] for layer in self.norms],
            "what": self.what,
            "manifest": self.manifest.to_dict(),
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        return cls(
            data["model_id"],
            data["prompt"],
            tuple(data["tokens"]),
            tuple(data["special"]),
            tuple(data["layers"]),
            torch.tensor(data["norms"]),
            data["what"],
            Manifest.from_dict(data["manifest"]),
        )


def state_norms(
    model: MIModel, prompt: Prompt, *, layers: int | Sequence[int] | None = None
) -> StateNorms:
    """The Frobenius norm of each head's state [key value] after every token.

    RWKV-4 has no such matrix: there it is the size of the mean that each channel holds, numerator
    over denominator. One layer's states are kept at a time.
    """
    needs_state(model)
    ids, chosen = one_prompt(model, prompt), among("layer", layers, model.num_layers)
    run = record(model, torch.tensor([ids]))
    found: list[Tensor] = []
    for layer in chosen:
        start = Residual(layer, run.residuals[layer])
        spec = HookSpec().capture(HookPoint.RwkvState(layer))
        state = model.forward(start, spec, stop=layer + 1)[HookPoint.RwkvState(layer)][0]
        found.append(sizes(model, state.detach()).T.float().cpu())
    return StateNorms(
        model_id=model.origin.model_id,
        prompt=words_of(model, ids),
        tokens=pieces_of(model, ids),
        special=special_in(model, ids),
        layers=chosen,
        norms=torch.stack(found),
        what="size of the mean held" if holds_sums(model) else "norm of the state",
        manifest=replace(run.manifest, tokens=[ids]),
    )


def holds_sums(model: MIModel) -> bool:
    """Whether a head carries the sums of a weighted mean, and not a matrix of keys and values."""
    sizes = model.backend.sizes
    return sizes["d_state"] == SUMS and sizes["d_value"] == 1


def sizes(model: MIModel, state: Tensor) -> Tensor:
    """How large states [pos head d_key d_state] are [pos head]."""
    if not holds_sums(model):
        return state.flatten(2).square().sum(-1).sqrt()
    above, below, _ = state[:, :, 0].unbind(-1)
    return torch.where(below == 0, 0.0, above / below).abs()  # both over the same scale
