# SPDX-License-Identifier: MIT OR Apache-2.0
"""Effective attention: how much of each earlier token's value every token reads from a state.

What a linear recurrence reads is linear in the values, so there is an exact matrix of weights with
`read = A v`, signed, as if the model attended (Ali et al. 2024 for Mamba; Katharopoulos et al. 2020
the other way round).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from torch_mi.analysis.attention import AttentionPatterns, among, words_of
from torch_mi.analysis.changes import one_prompt
from torch_mi.analysis.states import needs_state
from torch_mi.errors import ModelError, did_you_mean
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.model import MIModel
from torch_mi.prompts import Prompt
from torch_mi.results import pieces_of, special_in

Form = Literal["raw", "relu_l1", "abs_l1", "value_weighted"]
FORMS: Mapping[str, str] = {
    "raw": "weight, signed",
    "relu_l1": "share of the positive weights",
    "abs_l1": "share of all weights, without sign",
    "value_weighted": "weight without sign × size of the value",
}
"""What a number says in each form."""
LEAST = 1e-10
"""What is added to the sum of a row that it is divided by."""


@dataclass(frozen=True, eq=False, repr=False)
class EffectiveAttention(AttentionPatterns):
    """The effective attention of some heads in some layers, on one prompt.

    `patterns` are [layer head query source]; above the diagonal they are zero.
    """

    form = "torch-mi effective attention 1"

    kind: str = "raw"
    """One of `FORMS`."""
    averaged: bool = False
    """Whether the one head that is shown is the mean of all, which have a channel each."""

    def to_dict(self) -> dict[str, object]:
        more = {"kind": self.kind, "averaged": self.averaged}
        return super().to_dict() | {"format": self.form} | more

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        plain = super()._build(data)
        return replace(plain, kind=data["kind"], averaged=data["averaged"])


def effective_attention(
    model: MIModel,
    prompt: Prompt,
    *,
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
    form: Form = "raw",
) -> EffectiveAttention:
    """The effective attention of one prompt, of all layers and heads unless some are given.

    "raw" is signed and exact. "relu_l1" drops what counts against, and divides each row by its sum;
    "abs_l1" divides sizes by their sum; "value_weighted" multiplies sizes by the norm of the value.
    Where every head is one channel (RWKV-4, Mamba), the mean over the channels is given as one
    head, unless some are chosen.
    """
    needs_state(model)
    if form not in FORMS:
        raise ModelError(
            f"form={form!r} is not one of {', '.join(FORMS)}{did_you_mean(form, FORMS)}"
        )
    ids, chosen = one_prompt(model, prompt), among("layer", layers, model.num_layers)
    averaged = heads is None and model.backend.sizes["d_value"] == 1
    some = among("head", heads, model.backend.sizes["head"])
    points = [HookPoint.RwkvEffectiveAttn]
    points += [HookPoint.RwkvV] if form == "value_weighted" else []
    spec = HookSpec().capture(*(point(layer) for layer in chosen for point in points))
    run = model.forward(torch.tensor([ids]), spec, stop=max(chosen) + 1)
    found: list[Tensor] = []
    for layer in chosen:
        weights = run[HookPoint.RwkvEffectiveAttn(layer)][0, list(some)].float()
        values = run[HookPoint.RwkvV(layer)][0] if form == "value_weighted" else None
        sizes = None if values is None else values[:, list(some)].float().square().sum(-1).sqrt().T
        made = formed(weights, form, sizes)
        found.append(made.mean(0, keepdim=True) if averaged else made)
    return EffectiveAttention(
        model_id=model.origin.model_id,
        prompt=words_of(model, ids),
        token_ids=tuple(ids),
        tokens=pieces_of(model, ids),
        special=special_in(model, ids),
        layers=chosen,
        heads=(0,) if averaged else some,
        patterns=torch.stack(found).detach().cpu(),
        manifest=run.manifest,
        kind=form,
        averaged=averaged,
    )


def formed(weights: Tensor, form: Form, sizes: Tensor | None = None) -> Tensor:
    """Raw weights [head query source] in another form; `sizes` of values are [head source]."""
    weights = weights.tril()
    if form == "raw":
        return weights
    if form == "value_weighted":
        if sizes is None:
            raise ModelError("form='value_weighted' needs the sizes of the values")
        return weights.abs() * sizes[:, None]
    kept = weights.relu() if form == "relu_l1" else weights.abs()
    return kept / (kept.sum(-1, keepdim=True) + LEAST)
