# SPDX-License-Identifier: MIT OR Apache-2.0
"""Edge attribution patching: which part of a model listens to which.

What a part writes into the residual stream is read by every later part: the queries, keys and
values of each head, each MLP, the logits. Each such edge is scored by what the metric would lose,
to first order, if the corrupted prompt's output went along it: (clean - corrupted) · gradient at
the stream that the reader reads, before its norm (EAP; Syed et al. 2023). Averaged over embeddings
between the two prompts' it is more faithful (EAP-IG; Hanna et al. 2024).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from torch_mi.analysis.attribution_patching import Between, Method, between, check_method, twos
from torch_mi.analysis.gradients import Slopes
from torch_mi.analysis.parts import LOGITS, Graph
from torch_mi.analysis.patching import read_pairs
from torch_mi.hooks.coordinates import Place
from torch_mi.hooks.point import Hook, HookPoint
from torch_mi.manifest import Manifest
from torch_mi.model import MIModel
from torch_mi.prompts import Prompt
from torch_mi.results import Result, data_frame, floats
from torch_mi.sweeps.metrics import Judge, Metric, as_metric
from torch_mi.types import numbers

FORM = "torch-mi edges 1"
FLOATS = 1 << 26
"""Entries of all the gradients that are held at a time, if no single prompt has more."""
P = HookPoint


@dataclass(frozen=True, eq=False, repr=False)
class Edges(Result):
    """The score of every edge: what the metric would lose without it, to first order."""

    form = FORM

    model_id: str
    metric: str
    graph: Graph
    scores: Tensor
    """[writer reader]; 0 where there is no edge."""
    clean: float
    """The clean prompts' score."""
    corrupted: float
    options: Mapping[str, object]
    prompts: int
    manifest: Manifest

    def __len__(self) -> int:
        return int(self.graph.allowed.sum())

    def order(self) -> list[tuple[int, int]]:
        """Every edge as (writer, reader), those that weigh most first."""
        found = self.graph.allowed.nonzero()
        weights = self.scores[self.graph.allowed].abs()
        rows = found[weights.argsort(descending=True, stable=True)]
        return list(zip(numbers(rows[:, 0]), numbers(rows[:, 1]), strict=True))

    def best(self, k: int = 10) -> list[tuple[str, str, float]]:
        """The `k` edges that weigh most: writer, reader, score."""
        graph = self.graph
        return [
            (graph.writers[w].name, graph.readers[r].name, float(self.scores[w, r]))
            for w, r in self.order()[:k]
        ]

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each edge (needs pandas)."""
        rows = self.best(len(self))
        return data_frame([{"writer": w, "reader": r, "score": score} for w, r, score in rows])

    def to_dict(self) -> dict[str, object]:
        return {
            "format": FORM,
            "model_id": self.model_id,
            "metric": self.metric,
            "graph": self.graph.to_dict(),
            "writers": [writer.name for writer in self.graph.writers],
            "readers": [reader.name for reader in self.graph.readers],
            "scores": [floats(row) for row in self.scores],
            "clean": self.clean,
            "corrupted": self.corrupted,
            "options": dict(self.options),
            "prompts": self.prompts,
            "manifest": self.manifest.to_dict(),
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        return cls(
            data["model_id"],
            data["metric"],
            Graph.from_dict(data["graph"]),
            torch.tensor(data["scores"]),
            data["clean"],
            data["corrupted"],
            data["options"],
            data["prompts"],
            Manifest.from_dict(data["manifest"]),
        )


def find_edges(  # noqa: PLR0913 - an experiment is made of choices
    model: MIModel,
    clean: Prompt,
    corrupted: Prompt,
    *,
    metric: Metric | Judge,
    method: Method = "gradient",
    steps: int = 5,
    position: Place = -1,
) -> Edges:
    """The score of every edge, the mean over the prompts.

    `method="integrated"` is EAP-IG, the mean over `steps` runs whose embeddings are between the
    two prompts'. Each prompt and its twin must be equally many tokens long.
    """
    check_method(method, steps)
    graph = Graph.of(model)
    pairs = read_pairs(model, clean, corrupted, "noising")
    scale = [model.backend.attention_written(i).scale for i in range(model.num_layers)]
    hooks = list(dict.fromkeys([*graph.outputs, *graph.streams, *graph.places]))
    total = torch.zeros(graph.allowed.shape, dtype=torch.float64)
    parts: list[Between] = []
    together = FLOATS // (len(graph.readers) * model.hidden_size)
    for two in twos(model, pairs, as_metric(metric), position, together):
        part = between(two, hooks, method, steps, lambda found: before_norms(model, graph, found))
        moved = written(graph, part.edited, scale) - written(graph, part.source, scale)
        slopes = torch.stack([part.slopes[r.name].float() for r in graph.readers], 2)
        total += torch.einsum("bpwd,bprd->wr", moved, slopes).double().cpu()
        parts.append(replace(part, edited={}, source={}, slopes={}))
    good = torch.cat([part.edited_scores for part in parts])
    bad = torch.cat([part.source_scores for part in parts])
    said = pairs.said(model) | {"method": method}
    return Edges(
        model.origin.model_id,
        repr(as_metric(metric)),
        graph,
        (total / len(good)).float() * graph.allowed,
        float(good.mean()),
        float(bad.mean()),
        said | ({"steps": steps} if method == "integrated" else {}),
        len(good),
        replace(parts[0].manifest, tokens=pairs.runs, spec=None),
    )


def written(graph: Graph, run: Mapping[str, Tensor], scale: Sequence[float]) -> Tensor:
    """What each part writes [batch pos writer d_model]; attention's bias is no head's."""
    out: list[Tensor] = []
    for hook in graph.outputs:
        x = run[hook].float()
        heads = hook.point is P.AttnResult
        out.append(x * scale[hook.layer or 0] if heads else x[:, :, None])
    return torch.cat(out, 2)


def before_norms(model: MIModel, graph: Graph, found: Slopes) -> dict[str, Tensor]:
    """The gradient at the stream that each reader reads [batch pos d_model], by its name."""
    out: dict[str, Tensor] = {}
    for hook, numbered in graph.places.items():
        readers = [graph.readers[r] for r in numbered]
        slope = found.gradients[hook]
        if readers[0].name == LOGITS:
            out[LOGITS] = slope
            continue
        slope = slope if hook.point is not P.MlpIn else slope[:, :, None]
        each = through(model, hook, found.values[graph.stream(readers[0])], slope)
        out |= {reader.name: x for reader, x in zip(readers, each.unbind(2), strict=True)}
    return out


def normed(model: MIModel, hook: Hook, x: Tensor) -> Tensor:
    """What is read at one of a graph's places of residual streams `x` [… d_model]."""
    point = P.MlpIn if hook.point is P.MlpIn else P.AttnIn
    return model.backend.normed(hook.layer or 0, point, x)


def through(model: MIModel, hook: Hook, stream: Tensor, slope: Tensor) -> Tensor:
    """Gradients [batch pos reader d_model] at what a norm gives, as those at what it is given."""
    with torch.enable_grad():
        x = stream.detach()[:, :, None].expand_as(slope).clone().requires_grad_()
        (found,) = torch.autograd.grad(normed(model, hook, x), x, slope)
    return found
