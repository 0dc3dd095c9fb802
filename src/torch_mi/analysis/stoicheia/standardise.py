# SPDX-License-Identifier: MIT OR Apache-2.0
"""A recurrent network in a form that all its equals share: input weights ±1, neurons in order.

relu(s·a) = s·relu(a) for s > 0, so each neuron's scale is free; so is their order. Two networks
that differ in nothing else have one standard form.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from torch_mi.analysis.stoicheia.networks import RNN_NAMES, StoicheiaRnn
from torch_mi.analysis.stoicheia.tasks import task_named
from torch_mi.errors import ModelError
from torch_mi.results import Result, data_frame, floats
from torch_mi.types import numbers

FORM = "torch-mi stoicheia standard form 1"
NEGLIGIBLE = 1e-3
"""An entry this much smaller than the largest of its matrix counts as zero."""


@dataclass(frozen=True, eq=False, repr=False)
class StandardForm(Result):
    """A network with input weights of 1 and -1, and how it was made."""

    form = FORM

    rnn: StoicheiaRnn
    """The same function; its neurons are `order` of the old ones."""
    scales: Tensor
    """What each neuron [hidden] was divided by, in the new order."""
    order: tuple[int, ...]
    """The old number of each neuron."""
    negligible: float
    """The part of its matrix's largest entry below which an entry counts as zero."""

    @property
    def signs(self) -> tuple[int, ...]:
        """1 for neurons that rise with the input, -1 for those that fall."""
        return tuple(numbers(self.rnn.w_ih.sign().long()))

    @property
    def deviation(self) -> float:
        """How far the input weights are from ±1 at most: rounding alone."""
        return float((self.rnn.w_ih.abs() - 1).abs().max())

    def zeros(self) -> dict[str, list[list[bool]]]:
        """Which entries [row column] of the recurrent and the output matrix are as good as zero."""
        found: dict[str, list[list[bool]]] = {}
        for name, matrix in (("recurrent", self.rnn.w_hh), ("output", self.rnn.w_oh)):
            small = matrix.abs() < self.negligible * matrix.abs().max()
            found[name] = [[bool(entry) for entry in row] for row in small]
        return found

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each neuron (needs pandas)."""
        return data_frame(
            [
                {"neuron": old, "sign": sign, "scale": scale}
                for old, sign, scale in zip(
                    self.order, self.signs, floats(self.scales), strict=True
                )
            ]
        )

    def to_dict(self) -> dict[str, object]:
        return {
            "format": FORM,
            **network_dict(self.rnn),
            "scales": floats(self.scales),
            "order": list(self.order),
            "signs": list(self.signs),
            "deviation": self.deviation,
            "negligible": self.negligible,
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        scales = torch.tensor(data["scales"], dtype=torch.float64)
        return cls(network_of(data), scales, tuple(data["order"]), data["negligible"])


def standardise(
    rnn: StoicheiaRnn, *, reorder: bool = True, negligible: float = NEGLIGIBLE
) -> StandardForm:
    """Scale each neuron so that its input weight is ±1; put neurons in order if `reorder`.

    Neurons that rise come first; among them, those that the outputs read most. Computed in float64.
    """
    scales = rnn.w_ih.detach().double().abs()
    tiny = torch.finfo(rnn.w_ih.dtype).eps
    if bool((scales < tiny).any()):
        blind = numbers((scales < tiny).nonzero().flatten())
        raise ModelError(
            f"neurons {blind} do not read the input (their weight is 0), so that nothing says how "
            "to scale them"
        )
    scaled = replace(
        rnn,
        w_ih=rnn.w_ih.detach().double() / scales,
        w_hh=rnn.w_hh.detach().double() * scales[None, :] / scales[:, None],
        w_oh=rnn.w_oh.detach().double() * scales[None, :],
    )
    order = _order(scaled) if reorder else list(range(rnn.hidden_size))
    made = replace(
        scaled,
        w_ih=scaled.w_ih[order],
        w_hh=scaled.w_hh[order][:, order],
        w_oh=scaled.w_oh[:, order],
    )
    return StandardForm(made, scales[order], tuple(order), negligible)


def _order(scaled: StoicheiaRnn) -> list[int]:
    """By sign, then by how strongly the outputs read a neuron, then by its hold on itself."""
    read, own = floats(scaled.w_oh.square().sum(0)), floats(scaled.w_hh.diagonal())
    sign = floats(scaled.w_ih)
    return sorted(range(scaled.hidden_size), key=lambda j: (-sign[j], -read[j], -own[j]))


def network_dict(rnn: StoicheiaRnn) -> dict[str, object]:
    """A network as JSON."""
    return {
        "task": rnn.task.name,
        "seq_len": rnn.seq_len,
        "weights": {name: [floats(row) for row in value] for name, value in rnn.tensors().items()},
    }


def network_of(data: Mapping[str, Any]) -> StoicheiaRnn:
    """What `network_dict` took apart, in float64."""
    tensors = {name: torch.tensor(data["weights"][name], dtype=torch.float64) for name in RNN_NAMES}
    return StoicheiaRnn.from_tensors(tensors, task_named(data["task"]), data["seq_len"])
