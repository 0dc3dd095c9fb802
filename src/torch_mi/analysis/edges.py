# SPDX-License-Identifier: MIT OR Apache-2.0
"""Which attention edges are meant, and how to remove them.

An edge goes from a query position to a key position. A spec is a value: builders return a new one,
and `hooks` turns it into ordinary edits.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from torch_mi.errors import InterventionError
from torch_mi.hooks.coordinates import At
from torch_mi.hooks.interventions import Knockout
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.model import MIModel

ALL = None
"""Every position, as one end of an edge."""


@dataclass(frozen=True)
class AttentionEdge:
    """From a query position to a key position; `ALL` stands for each, negative counts back."""

    from_pos: int | None
    to_pos: int | None


@dataclass(frozen=True)
class EdgeSpec:
    """Attention edges in layers and heads; `None` is every layer, every head."""

    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    edges: tuple[AttentionEdge, ...] = ()

    def layer(self, *layers: int) -> Self:
        """These layers and no others."""
        return replace(self, layers=layers)

    def layer_range(self, first: int, last: int) -> Self:
        """Layers `first` to `last`, both included, and no others."""
        if first > last:
            raise InterventionError(f"layer_range({first}, {last}) ends before it begins")
        return replace(self, layers=tuple(range(first, last + 1)))

    def head(self, *heads: int) -> Self:
        """These heads and no others."""
        return replace(self, heads=heads)

    def edge(self, from_pos: int, to_pos: int) -> Self:
        """This edge too."""
        return self._with(AttentionEdge(from_pos, to_pos))

    def from_position(self, from_pos: int) -> Self:
        """Also everything that this query looks at."""
        return self._with(AttentionEdge(from_pos, ALL))

    def to_position(self, to_pos: int) -> Self:
        """Also everything that looks at this key."""
        return self._with(AttentionEdge(ALL, to_pos))

    def from_to_positions(self, from_pos: int, to_pos: Sequence[int]) -> Self:
        """Also the edges from this query to each of these keys."""
        return self._with(*(AttentionEdge(from_pos, k) for k in to_pos))

    def _with(self, *edges: AttentionEdge) -> Self:
        return replace(self, edges=(*self.edges, *edges))

    def applies_to_layer(self, layer: int) -> bool:
        return self.layers is None or layer in self.layers

    def applies_to_head(self, head: int) -> bool:
        return self.heads is None or head in self.heads

    def is_prompt_only(self, prompt_len: int) -> bool:
        """Whether every query is one position of the prompt, so that no generated one is meant."""
        return all(e.from_pos is not None and 0 <= e.from_pos < prompt_len for e in self.edges)

    def max_from_pos(self) -> int | None:
        """The last query that is named."""
        return max((e.from_pos for e in self.edges if e.from_pos is not None), default=None)

    def max_to_pos(self) -> int | None:
        """The last key that is named."""
        return max((e.to_pos for e in self.edges if e.to_pos is not None), default=None)

    def validate(self, n_layers: int, n_heads: int, seq_len: int) -> None:
        """Raise `InterventionError` unless this fits a run of `seq_len` tokens."""
        for what, chosen, bound in (
            ("layer", self.layers, n_layers),
            ("head", self.heads, n_heads),
        ):
            for i in reversed(chosen or ()):
                if not 0 <= i < bound:
                    raise InterventionError(
                        f"{what} {i} is out of range: the model has {bound} (0 … {bound - 1})"
                    )
        for edge in self.edges:
            if edge.from_pos is None and edge.to_pos is None:
                raise InterventionError(
                    "an edge from every position to every position names whole heads; "
                    "ablate(…, at='z', method='zero') takes heads out"
                )
            for end, place in (("from", edge.from_pos), ("to", edge.to_pos)):
                if place is not None and not -seq_len <= place < seq_len:
                    raise InterventionError(
                        f"{end} position {place} is out of range: the run has {seq_len} tokens "
                        f"(0 … {seq_len - 1}, or negative from the end)"
                    )

    def to_dict(self) -> dict[str, object]:
        """This, as JSON values."""
        return {
            "layers": None if self.layers is None else list(self.layers),
            "heads": None if self.heads is None else list(self.heads),
            "edges": [[e.from_pos, e.to_pos] for e in self.edges],
        }

    def __str__(self) -> str:
        """The same in words."""
        edges = ", ".join(f"{_place(e.from_pos)} → {_place(e.to_pos)}" for e in self.edges)
        return f"{edges or 'no edge'} in {_some('layer', self.layers)}, {_some('head', self.heads)}"


@dataclass(frozen=True)
class KnockoutSpec(EdgeSpec):
    """Attention edges to remove: their scores become -inf, their probability exactly zero."""

    def hooks(self, model: MIModel, seq_len: int) -> HookSpec:
        """The edits that remove these edges from runs of `seq_len` tokens."""
        check_edges(self, model, seq_len)
        spec = HookSpec()
        for layer in layers_of(self, model):
            for at in places_of(self):
                spec.intervene(HookPoint.AttnScores(layer), Knockout(at=at))
        return spec


def instead(model: MIModel, hint: str) -> str:
    """What to do in a recurrent model; nothing for others."""
    return f"; {hint}" if HookPoint.RwkvState in model.backend.hook_points else ""


def expanded(spec: EdgeSpec, seq_len: int) -> list[tuple[int, int]]:
    """Every edge as (query, key), each once, in the order in which they were named."""
    every = range(seq_len)
    return list(
        dict.fromkeys(
            (q % seq_len, k % seq_len)
            for edge in spec.edges
            for q in (every if edge.from_pos is None else [edge.from_pos])
            for k in (every if edge.to_pos is None else [edge.to_pos])
        )
    )


def layers_of(spec: EdgeSpec, model: MIModel) -> list[int]:
    """The layers of a model that are meant, of those that have attention."""
    having = [h.layer for h in model.hooks if h.point is HookPoint.AttnScores]
    return [i for i in having if i is not None and spec.applies_to_layer(i)]


def places_of(spec: EdgeSpec) -> Iterator[At]:
    """Where the edits at the attention scores act, edge by edge."""
    if spec.heads == ():
        return
    heads = None if spec.heads is None else list(dict.fromkeys(spec.heads))
    for edge in dict.fromkeys(spec.edges):
        yield At(head=heads, query=edge.from_pos, key=edge.to_pos)


def check_edges(spec: EdgeSpec, model: MIModel, seq_len: int) -> None:
    """Raise `InterventionError` unless a spec names edges that a run of this length has."""
    spec.validate(model.num_layers, model.num_heads, seq_len)
    if not spec.edges:
        raise InterventionError(
            f"{type(spec).__name__} names no edges; add .edge(query, key), "
            ".from_position(query) or .to_position(key)"
        )
    having = layers_of(EdgeSpec(), model)
    if not having:
        raise InterventionError(
            "this model has no attention whose edges could be edited"
            + instead(model, "torch_mi.analysis.states removes what tokens write to its states")
        )
    for layer in spec.layers or ():
        if layer not in having:
            raise InterventionError(f"layer {layer} has no attention scores; layers {having} do")


def edge_fields(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that `EdgeSpec.to_dict` wrote."""
    return {
        "layers": None if data["layers"] is None else tuple(data["layers"]),
        "heads": None if data["heads"] is None else tuple(data["heads"]),
        "edges": tuple(AttentionEdge(q, k) for q, k in data["edges"]),
    }


def create_knockout_mask(
    spec: EdgeSpec,
    n_heads: int,
    seq_len: int,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """What to add to scores [batch head query key]: 0, or -inf where an edge goes; one batch row.

    The same in every layer, whichever the spec selects.
    """
    spec.validate(max(spec.layers or (0,)) + 1, n_heads, seq_len)
    heads = torch.tensor([spec.applies_to_head(h) for h in range(n_heads)])
    edges = torch.zeros(seq_len, seq_len, dtype=torch.bool)
    if pairs := expanded(spec, seq_len):
        edges[tuple(torch.tensor(pairs).T)] = True
    mask = torch.zeros(1, n_heads, seq_len, seq_len, dtype=dtype)
    return mask.masked_fill(heads[:, None, None] & edges, -torch.inf).to(device)


def _place(pos: int | None) -> str:
    return "all" if pos is None else str(pos)


def _some(what: str, chosen: tuple[int, ...] | None) -> str:
    if chosen is None:
        return f"every {what}"
    if len(chosen) == 1:
        return f"{what} {chosen[0]}"
    return f"{what}s {', '.join(map(str, chosen))}" if chosen else f"no {what}"
