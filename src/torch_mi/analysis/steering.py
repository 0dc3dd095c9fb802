# SPDX-License-Identifier: MIT OR Apache-2.0
"""Attention steering: rescale attention edges, or set them, and keep every row's sum.

To multiply probabilities by c and renormalise the row is to add ln c to its scores; to set keys to
exactly v is to give them the score that does so. So steering acts on the scores, after the mask:
nothing leaks to the future, to padding, or beyond a window.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor

from torch_mi.analysis.changes import Changed, Contrast, contrast, one_prompt
from torch_mi.analysis.edges import (
    EdgeSpec,
    KnockoutSpec,
    check_edges,
    edge_fields,
    expanded,
    layers_of,
    places_of,
)
from torch_mi.errors import InterventionError
from torch_mi.hooks.coordinates import At
from torch_mi.hooks.interventions import Add, Intervention, Knockout
from torch_mi.hooks.point import Hook, HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.model import MIModel
from torch_mi.prompts import Prompt

FORM = "torch-mi steering 1"
Kind = Literal["knockout", "scale", "set_value"]
FAINT = 1e-10


@dataclass(frozen=True)
class SteeringSpec(EdgeSpec):
    """Attention edges, and what to do with them: remove, multiply by, or set to `amount`."""

    kind: Kind = "knockout"
    amount: float = 0.0

    @classmethod
    def scale(cls, factor: float) -> Self:
        """Probabilities are multiplied, and the row renormalised."""
        return cls(kind="scale", amount=factor)

    @classmethod
    def set_value(cls, target: float) -> Self:
        """Probabilities are set, and the rest of the row shares what is left as it did."""
        return cls(kind="set_value", amount=target)

    @classmethod
    def of(cls, spec: KnockoutSpec) -> Self:
        """A knockout as steering."""
        return cls(spec.layers, spec.heads, spec.edges)

    def is_knockout(self) -> bool:
        return self.kind == "knockout"

    def is_steering(self) -> bool:
        return not self.is_knockout()

    def validate(self, n_layers: int, n_heads: int, seq_len: int) -> None:
        super().validate(n_layers, n_heads, seq_len)
        if self.kind == "scale" and not (math.isfinite(self.amount) and self.amount >= 0):
            raise InterventionError(f"a scale factor is 0 or more, not {self.amount}")
        if self.kind == "set_value" and not 0 <= self.amount <= 1:
            raise InterventionError(f"attention is set to something in 0 … 1, not {self.amount}")

    def hooks(self, model: MIModel, seq_len: int) -> HookSpec:
        """The edits that steer runs of `seq_len` tokens."""
        check_edges(self, model, seq_len)
        if self.kind == "set_value":
            edits: list[Intervention] = self._settings(seq_len, causal=model.backend.causal)
        elif self.is_knockout() or self.amount == 0:
            edits = [Knockout(at=at) for at in places_of(self)]
        else:
            shift = torch.tensor(math.log(self.amount))
            edits = [Add(shift, at=at) for at in self._once(seq_len)]
        spec = HookSpec()
        for layer in layers_of(self, model):
            for edit in edits:
                spec.intervene(HookPoint.AttnScores(layer), edit)
        return spec

    def _once(self, seq_len: int) -> list[At]:
        """Where each edge is scaled; where edges overlap they are taken one by one."""
        whole = all(e.from_pos is None or e.to_pos is None for e in self.edges)
        if whole and len(set(self.edges)) == 1:
            return list(places_of(self))
        if self.heads == ():
            return []
        rows = _by_query(expanded(self, seq_len))
        heads = self._heads()
        return [At(head=heads, query=q, key=keys) for q, keys in rows.items()]

    def _settings(self, seq_len: int, *, causal: bool) -> list[Intervention]:
        """An edit for each query's row."""
        if self.heads == ():
            return []
        edits: list[Intervention] = []
        for query, keys in _seen(self, seq_len, causal=causal).items():
            too_much(self.amount, query, keys)
            at = At(
                head=self._heads(), query=query, key=list(range(query + 1 if causal else seq_len))
            )
            edits.append(SetAttention(tuple(keys), self.amount, at=at))
        return edits

    def _heads(self) -> list[int] | None:
        return None if self.heads is None else list(dict.fromkeys(self.heads))

    def to_dict(self) -> dict[str, object]:
        return super().to_dict() | {"kind": self.kind, "amount": self.amount}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The spec that `to_dict` took apart."""
        return cls(**edge_fields(data), kind=data["kind"], amount=data["amount"])

    def __str__(self) -> str:
        how = {"scale": f" scaled by {self.amount:g}", "set_value": f" set to {self.amount:g}"}
        return super().__str__() + how.get(self.kind, " removed")


@dataclass(frozen=True, eq=False, repr=False)
class SetAttention(Intervention):
    """Give keys the scores that make the probability of each exactly `value`.

    The other keys keep their proportions. A row that sees the keys alone shares its attention
    evenly among them.
    """

    keys: tuple[int, ...]
    value: float

    def check(self, point: HookPoint, shape: tuple[int, ...]) -> None:
        if point is not HookPoint.AttnScores:
            raise InterventionError(f"SetAttention acts at AttnScores, not at {point.name}")
        if max(self.keys) >= shape[-1]:
            raise InterventionError(f"key {max(self.keys)} is out of range: there are {shape[-1]}")

    def edit(self, x: Tensor, hook: Hook) -> Tensor:  # noqa: ARG002
        chosen = torch.zeros(x.shape[-1], dtype=torch.bool, device=x.device)
        chosen[list(self.keys)] = True
        target = chosen & (x != -torch.inf)
        rest = x.masked_fill(chosen, -torch.inf)
        mass = rest.float().logsumexp(-1, keepdim=True)
        taken = self.value * target.sum(-1, keepdim=True)
        alone = mass == -torch.inf
        level = self.value / (1 - taken).clamp(min=0)
        score = torch.where(alone, 0.0, level.log() + mass)
        # with everything given to the keys nothing is left for the others
        score = torch.where(taken >= 1, 0.0, score)
        rest = rest.masked_fill(taken >= 1, -torch.inf)
        return torch.where(target, score.to(x.dtype), rest)


def apply_steering(
    pattern: Tensor, spec: SteeringSpec, *, window: int | None = None, legacy: bool = False
) -> Tensor:
    """A pattern [batch head query key] as the spec leaves it, in every head it applies to.

    A query sees the keys up to its own position, and within the window if there is one; of a
    pattern that pays attention to later keys it sees all. With `legacy`, targets are set by the
    rule that older figures were made with, which may leak to later keys and miss its target.
    """
    if pattern.ndim != 4:  # noqa: PLR2004 - its axes
        raise InterventionError(
            f"a pattern is [batch head query key], this one is {list(pattern.shape)}"
        )
    heads, length = pattern.shape[1], pattern.shape[-1]
    spec.validate(max(spec.layers or (0,)) + 1, heads, length)
    if spec.is_knockout():
        raise InterventionError("a knockout acts on scores; use create_knockout_mask")
    chosen = [h for h in range(heads) if spec.applies_to_head(h)]
    out = pattern.float().clone()
    part = out[:, chosen]
    causal = not bool(pattern.triu(1).any())
    if spec.kind == "scale":
        steered = _scaled(part, spec)
    elif legacy:
        steered = _set_legacy(part, spec)
    else:
        steered = _set(part, spec, window, causal=causal)
    return out.index_copy(1, torch.tensor(chosen, device=out.device), steered).to(pattern.dtype)


def _scaled(part: Tensor, spec: SteeringSpec) -> Tensor:
    out = part.clone()
    for query, keys in _by_query(expanded(spec, part.shape[-1])).items():
        row = part[:, :, query].clone()
        row[..., keys] *= spec.amount
        out[:, :, query] = _renormalised(row)
    return out


def _set(part: Tensor, spec: SteeringSpec, window: int | None, *, causal: bool) -> Tensor:
    out, length = part.clone(), part.shape[-1]
    for query, keys in _seen(spec, length, causal=causal).items():
        visible = torch.arange(length, device=part.device)
        sees = (visible <= query) if causal else torch.ones_like(visible, dtype=torch.bool)
        if window is not None:
            sees = sees & ((query - visible).abs() < window)
        target = torch.zeros_like(sees)
        target[keys] = True
        target, others = target & sees, sees & ~target
        taken = spec.amount * int(target.sum())
        too_much(spec.amount, query, keys)
        if not bool(target.any()):
            continue
        if not bool(others.any()):
            out[:, :, query] = target / target.sum()
            continue
        rest = part[:, :, query] * others
        mass = rest.sum(-1, keepdim=True)
        spread = torch.where(mass > 0, rest / mass, others / others.sum())
        out[:, :, query] = spread * (1 - taken) + target * spec.amount
    return out


def _set_legacy(part: Tensor, spec: SteeringSpec) -> Tensor:
    out, length = part.clone(), part.shape[-1]
    for query, keys in _by_query(expanded(spec, length)).items():
        row = part[:, :, query].clone()
        surplus = spec.amount * len(keys) - row[..., keys].sum(-1, keepdim=True)
        others = [k for k in range(length) if k not in keys]
        row[..., keys] = spec.amount
        if others:
            row[..., others] = (row[..., others] - surplus / len(others)).clamp(min=0)
        out[:, :, query] = _renormalised(row)
    return out


def _renormalised(row: Tensor) -> Tensor:
    total = row.sum(-1, keepdim=True)
    return torch.where(total > FAINT, row / total.clamp(min=FAINT), row)


def _by_query(edges: Sequence[tuple[int, int]]) -> dict[int, list[int]]:
    """The keys of each query."""
    rows: dict[int, list[int]] = {}
    for query, key in edges:
        rows.setdefault(query, []).append(key)
    return rows


def _seen(spec: SteeringSpec, length: int, *, causal: bool) -> dict[int, list[int]]:
    """The keys of each query that it can see; an edge that was named and cannot be is an error."""
    for edge in spec.edges:
        if causal and edge.from_pos is not None and edge.to_pos is not None:
            query, key = edge.from_pos % length, edge.to_pos % length
            if key > query:
                raise InterventionError(f"attention from {query} to the later {key} cannot be set")
    return _by_query([(q, k) for q, k in expanded(spec, length) if k <= q or not causal])


def too_much(value: float, query: int, keys: Sequence[int]) -> None:
    """Raise `InterventionError` if a row's keys are to have more than there is."""
    if value * len(keys) > 1 + FAINT and len(keys) <= query:
        raise InterventionError(
            f"{len(keys)} keys of query {query} cannot have {value:g} each: a row sums to 1"
        )


@dataclass(frozen=True, eq=False, repr=False)
class SteeringResult(Changed):
    """The logits at one position with attention as it is and as it was steered."""

    form = FORM

    spec: SteeringSpec
    baseline_attention_mean: float | None = None
    steered_attention_mean: float | None = None

    @property
    def steered_logits(self) -> Tensor:
        """The logits [vocab] with the attention steered."""
        return self.contrast.after

    def attention_ratio(self) -> float | None:
        """How much more attention the edges get, where that can be said."""
        base, steered = self.baseline_attention_mean, self.steered_attention_mean
        if base is None or steered is None or base <= FAINT:
            return None
        return steered / base

    def _made_by(self) -> dict[str, object]:
        return {
            "spec": self.spec.to_dict(),
            "baseline_attention_mean": self.baseline_attention_mean,
            "steered_attention_mean": self.steered_attention_mean,
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        return cls(
            Contrast.from_dict(data["contrast"]),
            SteeringSpec.from_dict(data["spec"]),
            data["baseline_attention_mean"],
            data["steered_attention_mean"],
        )


def steer(
    model: MIModel, prompt: Prompt, spec: SteeringSpec, *, position: int = -1
) -> SteeringResult:
    """What one prompt's answer at `position` becomes with its attention steered."""
    ids = one_prompt(model, prompt)
    hooks = spec.hooks(model, len(ids))
    points = [HookPoint.AttnPattern(layer) for layer in layers_of(spec, model)]
    tokens, watch = torch.tensor([ids]), HookSpec().capture(*points)
    means: list[float] = []
    for watched in (watch, watch | hooks):
        run = model.forward(tokens, watched, stop=model.num_layers)
        each = [edge_attention(run[point], spec).mean() for point in points]
        means.append(float(torch.stack(each).mean()))
    return SteeringResult(contrast(model, ids, hooks, position), spec, *means)


def edge_attention(pattern: Tensor, spec: EdgeSpec) -> Tensor:
    """The mean attention that each selected head [head] of a pattern pays along the edges.

    Edges to later keys do not count where no attention goes there.
    """
    causal = not bool(pattern.triu(1).any())
    edges = [(q, k) for q, k in expanded(spec, pattern.shape[-1]) if k <= q or not causal]
    heads = [h for h in range(pattern.shape[1]) if spec.applies_to_head(h)]
    if not edges:
        return torch.zeros(len(heads))
    query, key = torch.tensor(edges).T
    return pattern[:, heads][:, :, query, key].float().mean((0, 2)).cpu()


def attention_to_targets(pattern: Tensor, from_pos: int, to_positions: Sequence[int]) -> Tensor:
    """The mean attention of each head [head] of a pattern from one query to these keys.

    Keys beyond the end are passed over; without any the attention is zero.
    """
    if pattern.ndim != 4:  # noqa: PLR2004 - its axes
        raise InterventionError(
            f"a pattern is [batch head query key], this one is {list(pattern.shape)}"
        )
    length = pattern.shape[2]
    if not 0 <= from_pos < length:
        raise InterventionError(f"from_pos={from_pos} is out of range: the run has {length} tokens")
    keys = [k for k in to_positions if 0 <= k < pattern.shape[-1]]
    if not keys:
        return torch.zeros(pattern.shape[1])
    return pattern[:, :, from_pos, keys].float().mean((0, 2)).cpu()


def measure_attention_to_targets(
    pattern: Tensor, from_pos: int, to_positions: Sequence[int]
) -> float:
    """The same, the mean over the heads."""
    return float(attention_to_targets(pattern, from_pos, to_positions).mean())
