# SPDX-License-Identifier: MIT OR Apache-2.0
"""A tiny transformer as lookup tables, and on every input there is.

With a vocabulary of n numbers at n places, everything that the first layer computes of two places
is an entry of a table: a score (QK), and what one place writes to another (OV). Of later layers the
tables are those of the embeddings alone, without what earlier layers have written.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torch_mi.analysis.stoicheia.networks import StoicheiaTransformer
from torch_mi.errors import ModelError
from torch_mi.hooks.coordinates import At
from torch_mi.hooks.interventions import Knockout, Zero
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.model import MIModel
from torch_mi.results import Result, data_frame, floats
from torch_mi.types import numbers

TABLES, EVERYTHING = "torch-mi stoicheia lookup tables 1", "torch-mi stoicheia every input 1"
MOST = 1_000_000
"""Inputs that are run at most."""
ROWS = 4096
"""Inputs that are run at once."""


@dataclass(frozen=True, eq=False, repr=False)
class LookupTables(Result):
    """One layer's tables; a row or column is a number at a place, place by place."""

    form = TABLES

    layer: int
    n: int
    scores: Float[Tensor, "from to"]
    """The score that one number at one place (row) gives another (column)."""
    writes: Float[Tensor, "from out"]
    """What each number at each place adds to the logits, if all attention is on it."""
    direct: Float[Tensor, "from out"]
    """What each number at each place adds to the logits without attention, were it the last."""

    @property
    def names(self) -> tuple[str, ...]:
        """What the rows stand for: `x2=3` is the number 3 at place 2."""
        return tuple(f"x{t}={v}" for t in range(self.n) for v in range(self.n))

    def score(self, query: tuple[int, int], key: tuple[int, int]) -> float:
        """The score that (place, number) gives (place, number)."""
        row, column = (place * self.n + number for place, number in (query, key))
        return float(self.scores[row, column])

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each two numbers at two different places (needs pandas)."""
        pairs = itertools.product(range(self.n * self.n), repeat=2)
        return data_frame(
            [
                {"query": self.names[a], "key": self.names[b], "score": float(self.scores[a, b])}
                for a, b in pairs
                if a // self.n != b // self.n or a == b
            ]
        )

    def to_dict(self) -> dict[str, object]:
        tables = {"scores": self.scores, "writes": self.writes, "direct": self.direct}
        rows = {name: [floats(row) for row in table] for name, table in tables.items()}
        return {"format": TABLES, "layer": self.layer, "n": self.n, **rows}

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        tables = [
            torch.tensor(data[k], dtype=torch.float64) for k in ("scores", "writes", "direct")
        ]
        return cls(data["layer"], data["n"], *tables)


def lookup_tables(transformer: StoicheiaTransformer, layer: int = 0) -> LookupTables:
    """A layer's QK and OV tables over all numbers at all places, in float64."""
    if not 0 <= layer < len(transformer.layers):
        count = len(transformer.layers)
        raise ModelError(f"layer {layer} is out of range: this network has 0 … {count - 1}")
    weights = transformer.layers[layer]
    q, k, v = (w.detach().double() for w in weights.parts())
    embed, places = transformer.embed.detach().double(), transformer.pos_embed.detach().double()
    stream = (places[:, None] + embed[None]).flatten(0, 1)
    unembed = transformer.unembed.detach().double()
    written = stream @ v.T @ weights.out_proj.detach().double().T
    scores = (stream @ q.T) @ (stream @ k.T).T / transformer.hidden_size**0.5
    n = transformer.seq_len
    return LookupTables(layer, n, scores, written @ unembed.T, stream @ unembed.T)


@dataclass(frozen=True, eq=False, repr=False)
class EveryInput(Result):
    """What a network answers to every input: exact, since there are no others."""

    form = EVERYTHING

    task: str
    n: int
    confusion: Int[Tensor, "n n"]
    """How many inputs with each right answer (row) got each answer (column)."""
    edits: Mapping[str, int]
    """How many inputs are answered right when something is changed, by its name."""

    @property
    def inputs(self) -> int:
        return int(self.confusion.sum())

    @property
    def right(self) -> int:
        """How many inputs are answered right."""
        return int(self.confusion.diagonal().sum())

    @property
    def accuracy(self) -> float:
        return self.right / self.inputs

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each right answer and each given one (needs pandas)."""
        return data_frame(
            [
                {"truth": a, "answer": b, "inputs": int(self.confusion[a, b])}
                for a, b in itertools.product(range(self.n), repeat=2)
            ]
        )

    def to_dict(self) -> dict[str, object]:
        return {
            "format": EVERYTHING,
            "task": self.task,
            "n": self.n,
            "accuracy": self.accuracy,
            "confusion": [numbers(row) for row in self.confusion],
            "edits": dict(self.edits),
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        return cls(data["task"], data["n"], torch.tensor(data["confusion"]), data["edits"])


def every_input(n: int) -> Int[Tensor, "every n"]:
    """All inputs of n numbers below n."""
    if not 1 <= n <= 7 or n**n > MOST:  # noqa: PLR2004 - 8^8 is beyond MOST
        raise ModelError(f"n={n}: there are {n}^{n} inputs; up to 7^7 are run")
    return torch.cartesian_prod(*[torch.arange(n)] * n).reshape(-1, n)


def answer_every_input(
    transformer: StoicheiaTransformer, edits: Mapping[str, HookSpec] | None = None
) -> EveryInput:
    """Run a network on all of its inputs, as it is and under each of the `edits`.

    Unless given, the edits take away each layer's attention, and each place that the last one
    looks at.
    """
    n, model = transformer.seq_len, transformer.model()
    inputs = every_input(n)
    truth = transformer.task.truth(inputs)
    answers = _answers(model, inputs, None)
    confusion = torch.zeros(n * n, dtype=torch.long).index_add(
        0, truth * n + answers, torch.ones_like(truth)
    )
    chosen = _usual_edits(n, len(transformer.layers)) if edits is None else edits
    right = {
        name: int((_answers(model, inputs, spec) == truth).sum()) for name, spec in chosen.items()
    }
    return EveryInput(transformer.task.name, n, confusion.reshape(n, n), right)


def _answers(model: MIModel, inputs: Tensor, spec: HookSpec | None) -> Tensor:
    parts = inputs.chunk(-(-len(inputs) // ROWS))
    return torch.cat([model.forward(part, spec).output[:, -1].argmax(1) for part in parts])


def _usual_edits(n: int, layers: int) -> dict[str, HookSpec]:
    edits = dict[str, HookSpec]()
    for i in range(layers):
        edits[f"without layer {i}"] = HookSpec().intervene(HookPoint.AttnOut(i), Zero())
        for key in range(n):
            edge = Knockout(at=At(query=n - 1, key=key))
            edits[f"layer {i}: x{n - 1} blind to x{key}"] = HookSpec().intervene(
                HookPoint.AttnScores(i), edge
            )
    return edits
