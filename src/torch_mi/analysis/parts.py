# SPDX-License-Identifier: MIT OR Apache-2.0
"""The parts of a model as a graph: what writes into the residual stream, and what reads it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from torch_mi.errors import ModelError
from torch_mi.hooks.point import Hook, HookPoint
from torch_mi.model import MIModel

P = HookPoint
READS = {"q": P.AttnQIn, "k": P.AttnKIn, "v": P.AttnVIn}
"""What each head reads, by the letter of its kind."""
INPUT, LOGITS = "input", "logits"


@dataclass(frozen=True)
class Writer:
    """A part that writes: the input, a head, an MLP."""

    name: str
    layer: int
    """-1 for the input."""
    head: int | None = None


@dataclass(frozen=True)
class Reader:
    """What reads: a head's queries, keys or values, an MLP, the logits."""

    name: str
    layer: int
    kind: str
    """q, k, v, mlp or logits."""
    nodes: tuple[str, ...]
    """The parts it belongs to: several heads where they share keys and values."""


@dataclass(frozen=True)
class Graph:
    """Every part of a model that writes, and all that reads."""

    layers: int
    heads: int
    kv_heads: int
    mlps: tuple[bool, ...]
    """Which layers have an MLP."""
    parallel: bool
    """Whether the MLP of a layer reads what its attention reads, not what that writes."""

    @staticmethod
    def of(model: MIModel) -> "Graph":
        """The graph of a model; a `ModelError` where parts do not simply add up."""
        points, sizes = model.backend.hook_points, model.backend.sizes
        if P.AttnQIn not in points:
            raise ModelError(
                "edges end at heads that read each for themselves; this model has no AttnQIn, so "
                "patch it by parts: mi.patch, attribution_patch"
            )
        if P.Ln1PostScale in points:
            raise ModelError(
                "edges begin at heads whose outputs add up; in this model a norm comes between "
                "them and the residual stream, so patch it by parts: mi.patch, attribution_patch"
            )
        within = [model.backend.layer_points(i) for i in range(model.num_layers)]
        mlps = tuple(P.MlpOut in layer for layer in within)
        return Graph(len(within), sizes["head"], sizes["kv_head"], mlps, model.backend.parallel)

    @cached_property
    def writers(self) -> tuple[Writer, ...]:
        """In the order in which they write."""
        out = [Writer(INPUT, -1)]
        for layer in range(self.layers):
            out += [Writer(f"a{layer}.h{head}", layer, head) for head in range(self.heads)]
            out += [Writer(f"m{layer}", layer)] if self.mlps[layer] else []
        return tuple(out)

    @cached_property
    def readers(self) -> tuple[Reader, ...]:
        """In the order in which they read."""
        out: list[Reader] = []
        for layer in range(self.layers):
            for kind in READS:
                count = self.heads if kind == "q" else self.kv_heads
                group = self.heads // count
                for head in range(count):
                    # keys and values that several heads share go by a number of their own
                    own = f"a{layer}.{'h' if group == 1 else 'kv'}{head}.{kind}"
                    of = range(head * group, (head + 1) * group)
                    out.append(Reader(own, layer, kind, tuple(f"a{layer}.h{i}" for i in of)))
            if self.mlps[layer]:
                out.append(Reader(f"m{layer}", layer, "mlp", (f"m{layer}",)))
        return (*out, Reader(LOGITS, self.layers, LOGITS, (LOGITS,)))

    @cached_property
    def allowed(self) -> Tensor:
        """Which writers [writer reader] each reader can hear."""
        return torch.tensor([[self._hears(r, w) for r in self.readers] for w in self.writers])

    def _hears(self, reader: Reader, writer: Writer) -> bool:
        """Whether something is written before it is read."""
        if writer.layer < reader.layer:
            return True
        same = writer.layer == reader.layer and writer.head is not None
        return same and reader.kind == "mlp" and not self.parallel

    def stream(self, reader: Reader) -> Hook:
        """The residual stream that something reads."""
        if reader.kind == LOGITS:
            return P.ResidPost(self.layers - 1)
        middle = reader.kind == "mlp" and not self.parallel
        return (P.ResidMid if middle else P.ResidPre)(reader.layer)

    def at(self, reader: Reader) -> Hook:
        """Where something reads: after the norm, if there is one there."""
        if reader.kind == LOGITS:
            return self.stream(reader)
        return READS.get(reader.kind, P.MlpIn)(reader.layer)

    @cached_property
    def places(self) -> dict[Hook, tuple[int, ...]]:
        """The places where parts read, and the numbers of those that read there."""
        found: dict[Hook, tuple[int, ...]] = {}
        for r, reader in enumerate(self.readers):
            hook = self.at(reader)
            found[hook] = (*found.get(hook, ()), r)
        return found

    @cached_property
    def outputs(self) -> tuple[Hook, ...]:
        """The places where parts write."""
        hooks = [P.ResidPre(0)]
        for layer, mlp in enumerate(self.mlps):
            hooks += [P.AttnResult(layer)] + ([P.MlpOut(layer)] if mlp else [])
        return tuple(hooks)

    @cached_property
    def streams(self) -> tuple[Hook, ...]:
        """The residual streams that parts read."""
        return tuple(dict.fromkeys(map(self.stream, self.readers)))

    def to_dict(self) -> dict[str, object]:
        """This, as JSON values."""
        return {
            "layers": self.layers,
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "mlps": list(self.mlps),
            "parallel": self.parallel,
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "Graph":
        """The graph that `to_dict` took apart."""
        sizes = data["layers"], data["heads"], data["kv_heads"]
        return Graph(*sizes, tuple(data["mlps"]), data["parallel"])
