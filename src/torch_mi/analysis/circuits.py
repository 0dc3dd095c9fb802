# SPDX-License-Identifier: MIT OR Apache-2.0
"""Circuits: a few edges of a model, and how much of its behaviour they carry by themselves.

A circuit is run for real, to float tolerance: along its edges goes what the parts write on the
clean prompt, along all others what they write on the corrupted one. So the whole model is its own
circuit, and the empty circuit is the corrupted run (Wang et al. 2023; Hanna et al. 2024).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import isclose
from typing import Any, Self

import torch
from torch import Tensor

from torch_mi.analysis.edge_patching import Edges, normed
from torch_mi.analysis.parts import INPUT, LOGITS, Graph
from torch_mi.analysis.patching import read_pairs
from torch_mi.errors import InterventionError, ModelError
from torch_mi.hooks.coordinates import Place
from torch_mi.hooks.interventions import Intervention
from torch_mi.hooks.point import Hook, HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.manifest import Manifest
from torch_mi.model import MIModel
from torch_mi.prompts import Prompt
from torch_mi.results import Result, data_frame, floats
from torch_mi.sweeps.metrics import Judge, Metric
from torch_mi.sweeps.run import sweep
from torch_mi.types import numbers

CIRCUIT, FAITHFULNESS = "torch-mi circuit 1", "torch-mi faithfulness 1"
P = HookPoint


@dataclass(frozen=True, eq=False, repr=False)
class Circuit(Result):
    """Some edges of a model: writer and reader, by their numbers in the graph."""

    form = CIRCUIT

    graph: Graph
    edges: frozenset[tuple[int, int]]
    scores: Mapping[tuple[int, int], float] = field(default_factory=dict[tuple[int, int], float])
    """What each edge was chosen for, where that is known."""

    def __len__(self) -> int:
        return len(self.edges)

    @property
    def names(self) -> list[tuple[str, str]]:
        """The edges as names of writer and reader, in the order of the forward pass."""
        writers, readers = self.graph.writers, self.graph.readers
        order = sorted(self.edges, key=lambda edge: (edge[1], edge[0]))
        return [(writers[w].name, readers[r].name) for w, r in order]

    @property
    def nodes(self) -> list[str]:
        """The parts that an edge of this begins or ends at, in the order of the forward pass."""
        found = {self.graph.writers[w].name for w, _ in self.edges}
        found |= {name for _, r in self.edges for name in self.graph.readers[r].nodes}
        return [name for name in (*(w.name for w in self.graph.writers), LOGITS) if name in found]

    def mask(self) -> Tensor:
        """Which edges [writer reader] are kept."""
        kept = torch.zeros_like(self.graph.allowed)
        for writer, reader in self.edges:
            kept[writer, reader] = True
        return kept

    def pruned(self) -> "Circuit":
        """The same without edges that nothing comes along, or that lead nowhere.

        What such a circuit computes is exactly what this one computes.
        """
        readers = [reader.nodes for reader in self.graph.readers]
        live, reached = {INPUT}, set[tuple[int, int]]()
        for writer, reader in sorted(self.edges):
            if self.graph.writers[writer].name in live:
                reached.add((writer, reader))
                live.update(readers[reader])
        useful, kept = {LOGITS}, set[tuple[int, int]]()
        for writer, reader in sorted(reached, key=lambda edge: -edge[1]):
            if useful & set(readers[reader]):
                kept.add((writer, reader))
                useful.add(self.graph.writers[writer].name)
        scores = {edge: score for edge, score in self.scores.items() if edge in kept}
        return Circuit(self.graph, frozenset(kept), scores)

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each edge (needs pandas)."""
        return data_frame([{"writer": w, "reader": r} for w, r in self.names])

    def to_dict(self) -> dict[str, object]:
        order = sorted(self.edges)
        return {
            "format": CIRCUIT,
            "graph": self.graph.to_dict(),
            "edges": [list(edge) for edge in order],
            "names": [list(names) for names in self.names],
            "scores": [self.scores.get(edge) for edge in order],
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        order = [(edge[0], edge[1]) for edge in data["edges"]]
        scores = {e: s for e, s in zip(order, data["scores"], strict=True) if s is not None}
        return cls(Graph.from_dict(data["graph"]), frozenset(order), scores)


def top_circuit(edges: Edges, n: int) -> Circuit:
    """The `n` edges that weigh most, connected or not."""
    _check_size(edges.graph, n)
    return _chosen(edges, edges.order()[:n])


def greedy_circuit(edges: Edges, n: int) -> Circuit:
    """Of `n` edges, grown from the logits: always the one that weighs most and leads into it."""
    _check_size(edges.graph, n)
    return _chosen(edges, _grown(edges.graph, edges.scores.abs(), n))


def random_circuit(graph: Graph, n: int, seed: int = 0) -> Circuit:
    """Of `n` edges, grown from the logits as `greedy_circuit` does, but at random."""
    _check_size(graph, n)
    dice = torch.Generator().manual_seed(seed)
    weights = torch.rand(graph.allowed.shape, generator=dice)
    return Circuit(graph, frozenset(_grown(graph, weights, n)))


def whole_circuit(graph: Graph) -> Circuit:
    """Every edge."""
    found = graph.allowed.nonzero()
    return Circuit(graph, frozenset(zip(numbers(found[:, 0]), numbers(found[:, 1]), strict=True)))


def _chosen(edges: Edges, found: Sequence[tuple[int, int]]) -> Circuit:
    return Circuit(edges.graph, frozenset(found), {e: float(edges.scores[e]) for e in found})


def _check_size(graph: Graph, n: int) -> None:
    most = int(graph.allowed.sum())
    if not 0 <= n <= most:
        raise ModelError(f"a circuit of {n} edges is not possible: this model has {most}")


def _grown(graph: Graph, weights: Tensor, n: int) -> list[tuple[int, int]]:
    """Edges into what is already in the circuit, heaviest first."""
    into: dict[str, list[int]] = {}
    for r, reader in enumerate(graph.readers):
        for name in reader.nodes:
            into.setdefault(name, []).append(r)
    waiting, found = list[tuple[float, int, int]](), list[tuple[int, int]]()

    def enter(name: str) -> None:
        for r in into.pop(name, []):
            for w in numbers(graph.allowed[:, r].nonzero().flatten()):
                heappush(waiting, (-float(weights[w, r]), w, r))

    enter(LOGITS)
    seen = set[tuple[int, int]]()
    while len(found) < n:
        _, w, r = heappop(waiting)
        # keys that several heads share are offered by each of them
        if (w, r) not in seen:
            seen.add((w, r))
            found.append((w, r))
            enter(graph.writers[w].name)
    return found


@dataclass(frozen=True, eq=False, repr=False)
class Faithfulness(Result):
    """How much of the way from the corrupted to the clean score each circuit goes."""

    form = FAITHFULNESS

    metric: str
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    """How many edges each circuit has."""
    edges: int
    """How many edges the whole model has."""
    scores: Tensor
    """The mean score of each circuit."""
    clean: float
    corrupted: float
    prompts: int
    options: Mapping[str, object]
    manifest: Manifest

    @property
    def values(self) -> Tensor:
        """0 for a circuit that scores as the corrupted prompts do, 1 as the clean ones do."""
        if isclose(self.clean, self.corrupted, rel_tol=1e-5, abs_tol=1e-6):
            raise ModelError(
                "clean and corrupted prompts score the same: nothing to be faithful to"
            )
        return (self.scores - self.corrupted) / (self.clean - self.corrupted)

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each circuit (needs pandas)."""
        found = zip(self.names, self.sizes, floats(self.scores), floats(self.values), strict=True)
        return data_frame(
            [
                {"circuit": name, "edges": size, "score": score, "faithfulness": value}
                for name, size, score, value in found
            ]
        )

    def to_dict(self) -> dict[str, object]:
        return {
            "format": FAITHFULNESS,
            "metric": self.metric,
            "names": list(self.names),
            "sizes": list(self.sizes),
            "edges": self.edges,
            "scores": floats(self.scores),
            "clean": self.clean,
            "corrupted": self.corrupted,
            "prompts": self.prompts,
            "options": dict(self.options),
            "manifest": self.manifest.to_dict(),
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        return cls(
            data["metric"],
            tuple(data["names"]),
            tuple(data["sizes"]),
            data["edges"],
            torch.tensor(data["scores"]),
            data["clean"],
            data["corrupted"],
            data["prompts"],
            data["options"],
            Manifest.from_dict(data["manifest"]),
        )


def faithfulness(
    model: MIModel,
    clean: Prompt,
    corrupted: Prompt,
    circuits: Sequence[Circuit] | Mapping[str, Circuit],
    *,
    metric: Metric | Judge,
    position: Place = -1,
) -> Faithfulness:
    """Run each circuit on the clean prompts, all other edges from the corrupted ones."""
    graph = Graph.of(model)
    named = (
        circuits if isinstance(circuits, Mapping) else {str(i): c for i, c in enumerate(circuits)}
    )
    for name, circuit in named.items():
        if circuit.graph != graph:
            raise InterventionError(f"circuit {name} is one of another model")
    pairs = read_pairs(model, clean, corrupted, "noising")
    source = pairs.source.rows()
    every = [*named.values(), Circuit(graph, frozenset())]

    def specs(i: int) -> list[HookSpec]:
        spec = HookSpec().capture(*graph.outputs, *graph.streams)
        run = model.forward(torch.tensor([source[i]]), spec, stop=model.num_layers)
        return [circuit_spec(model, circuit, run) for circuit in every]

    found = sweep(model, pairs.runs, specs, metric, position=position, progress=False)
    return Faithfulness(
        metric=found.metric,
        names=tuple(named),
        sizes=tuple(map(len, named.values())),
        edges=int(graph.allowed.sum()),
        scores=found.scores[:-1],
        clean=found.baseline,
        corrupted=float(found.scores[-1]),
        prompts=len(source),
        options=pairs.said(model),
        manifest=found.manifest,
    )


def circuit_spec(model: MIModel, circuit: Circuit, corrupted: Mapping[str, Tensor]) -> HookSpec:
    """The edits that make a run of the clean prompt one of this circuit alone.

    `corrupted` has the corrupted run's activations at the graph's outputs and streams.
    """
    graph, spec = circuit.graph, HookSpec()
    mask = circuit.mask()
    heard = _Heard(model, graph, mask, corrupted)
    for hook in graph.outputs:
        spec.intervene(hook, Note(heard))
    for hook in graph.places:
        spec.intervene(hook, Hear(heard))
    return spec


@dataclass(frozen=True, eq=False)
class _Heard:
    """One run of a circuit while it goes on: how far each part's output is from the corrupted."""

    model: MIModel
    graph: Graph
    mask: Tensor
    corrupted: Mapping[str, Tensor]
    moved: dict[int, Tensor] = field(default_factory=dict[int, Tensor])

    def note(self, hook: Hook, x: Tensor) -> None:
        """Keep what a part writes."""
        far = x - self.corrupted[hook]
        layer = hook.layer or 0
        if hook.point is not P.AttnResult:
            name = INPUT if hook.point is P.ResidPre else f"m{layer}"
            self.moved[self._number(name)] = far
            return
        scale, first = (
            self.model.backend.attention_written(layer).scale,
            self._number(f"a{layer}.h0"),
        )
        for head, part in enumerate(far.unbind(2)):
            self.moved[first + head] = part * scale

    def read(self, hook: Hook) -> Tensor:
        """What is read at a place, along the edges of the circuit alone."""
        streams = [self._stream(r) for r in self.graph.places[hook]]
        if hook.point is P.ResidPost:
            return streams[0]
        x = streams[0] if hook.point is P.MlpIn else torch.stack(streams, 2)
        return normed(self.model, hook, x)

    def _stream(self, r: int) -> Tensor:
        x = self.corrupted[self.graph.stream(self.graph.readers[r])]
        heard = [self.moved[w] for w in self.moved if self.mask[w, r]]
        return torch.stack([x, *heard]).sum(0) if heard else x

    def _number(self, name: str) -> int:
        return next(i for i, writer in enumerate(self.graph.writers) if writer.name == name)


@dataclass(frozen=True, eq=False, repr=False)
class Note(Intervention):
    """Keep what is written here, unchanged."""

    heard: _Heard

    def edit(self, x: Tensor, hook: Hook) -> Tensor:
        self.heard.note(hook, x)
        return x


@dataclass(frozen=True, eq=False, repr=False)
class Hear(Intervention):
    """Read along the edges of a circuit alone."""

    heard: _Heard

    def edit(self, x: Tensor, hook: Hook) -> Tensor:
        return self.heard.read(hook).to(x)
