# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a network answers, input by input; and, of a transformer, everything in one result."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from torch_mi.analysis.stoicheia.kernel import outputs, performance
from torch_mi.analysis.stoicheia.networks import Network, StoicheiaRnn, StoicheiaTransformer
from torch_mi.analysis.stoicheia.statistics import Estimate, share
from torch_mi.analysis.stoicheia.tables import (
    EveryInput,
    LookupTables,
    answer_every_input,
    lookup_tables,
)
from torch_mi.results import Result, data_frame, floats

FORM, WHOLE = "torch-mi stoicheia answers 1", "torch-mi stoicheia anatomy 1"
KEPT = 10
"""Inputs that are kept with their answers."""


@dataclass(frozen=True, eq=False, repr=False)
class Answers(Result):
    """The first inputs with what was answered, and the score on all of them."""

    form = FORM

    task: str
    seq_len: int
    hidden_size: int
    parameters: int
    samples: int
    seed: int
    score: Estimate
    """The accuracy, or of a scalar task the mean squared error."""
    inputs: tuple[tuple[float, ...], ...]
    outputs: tuple[tuple[float, ...], ...]
    answers: tuple[float, ...]
    truth: tuple[float, ...]

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each input that was kept (needs pandas)."""
        rows: list[dict[str, object]] = [
            {**{f"x{t}": value for t, value in enumerate(x)}, "answer": answer, "truth": truth}
            for x, answer, truth in zip(self.inputs, self.answers, self.truth, strict=True)
        ]
        return data_frame(rows)

    def to_dict(self) -> dict[str, object]:
        plain = ("task", "seq_len", "hidden_size", "parameters", "samples", "seed")
        return {
            "format": FORM,
            **{key: self.__dict__[key] for key in plain},
            "score": self.score.row,
            "inputs": [list(row) for row in self.inputs],
            "outputs": [list(row) for row in self.outputs],
            "answers": list(self.answers),
            "truth": list(self.truth),
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        told: dict[str, Any] = {
            key: value for key, value in data.items() if key not in ("format", "time_secs")
        }
        told["score"] = Estimate.of(data["score"])
        for key in ("inputs", "outputs"):
            told[key] = tuple(tuple(row) for row in data[key])
        for key in ("answers", "truth"):
            told[key] = tuple(data[key])
        return cls(**told)


def answer(network: Network, samples: int = 1000, *, seed: int = 0) -> Answers:
    """Run a network on random inputs of its task."""
    task, n = network.task, network.seq_len
    inputs = task.draw(n, samples, seed)
    truth = task.truth(inputs)
    if isinstance(network, StoicheiaRnn):
        found, score = outputs(network, inputs[:KEPT]), performance(network, inputs)
    else:
        out = network.model().forward(inputs).output[:, -1].double()
        found, score = out[:KEPT], share(float((task.answers(out) == truth).sum()), samples)
    size = (n, network.hidden_size, network.num_parameters, samples, seed)
    return Answers(
        task.name,
        *size,
        score,
        _rows(inputs[:KEPT]),
        _rows(found),
        tuple(floats(task.answers(found).double())),
        tuple(floats(truth[:KEPT].double())),
    )


def _rows(x: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(floats(row)) for row in x.double())


@dataclass(frozen=True, eq=False, repr=False)
class Anatomy(Result):
    """A transformer's tables, layer by layer, and its answers to every input."""

    form = WHOLE

    task: str
    seq_len: int
    hidden_size: int
    parameters: int
    every: EveryInput
    tables: tuple[LookupTables, ...]

    def parts(self) -> tuple[Result, ...]:
        """The analyses, in the order in which they are shown."""
        return (self.every, *self.tables)

    def to_dict(self) -> dict[str, object]:
        plain = ("task", "seq_len", "hidden_size", "parameters")
        return {
            "format": WHOLE,
            **{key: self.__dict__[key] for key in plain},
            "every": self.every.to_dict(),
            "tables": [table.to_dict() for table in self.tables],
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        return cls(
            data["task"],
            data["seq_len"],
            data["hidden_size"],
            data["parameters"],
            EveryInput.from_dict(data["every"]),
            tuple(map(LookupTables.from_dict, data["tables"])),
        )


def anatomy(transformer: StoicheiaTransformer) -> Anatomy:
    """A transformer as tables, and on every input there is."""
    with torch.no_grad():
        tables = [lookup_tables(transformer, i) for i in range(len(transformer.layers))]
    size = (transformer.seq_len, transformer.hidden_size, transformer.num_parameters)
    return Anatomy(transformer.task.name, *size, answer_every_input(transformer), tuple(tables))
