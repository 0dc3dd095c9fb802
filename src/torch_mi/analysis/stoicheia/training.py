# SPDX-License-Identifier: MIT OR Apache-2.0
"""A small trainer, so that any cell of the grid can be made without a network.

Recurrent networks are trained as `torch.nn.RNN`, transformers through their model. Adam, with a
learning rate that falls to zero along a cosine; fresh inputs at every step.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from torch_mi.analysis.stoicheia.kernel import performance
from torch_mi.analysis.stoicheia.networks import Network, StoicheiaRnn, StoicheiaTransformer
from torch_mi.analysis.stoicheia.statistics import Estimate, share
from torch_mi.analysis.stoicheia.tables import MOST, answer_every_input
from torch_mi.analysis.stoicheia.tasks import Task, task_named
from torch_mi.analysis.stoicheia.zoo import network_from
from torch_mi.errors import ModelError
from torch_mi.results import Result, data_frame, floats

FORM = "torch-mi stoicheia training 1"
LAYERS = 2
"""Layers of a transformer of the zoo."""
Progress = Callable[[int, float], object]


@dataclass(frozen=True, eq=False, repr=False)
class Training(Result):
    """A trained network, and how its training went."""

    form = FORM

    network: Network
    score: Estimate
    """The accuracy on new inputs, or of a scalar task the mean squared error."""
    losses: tuple[float, ...]
    """The loss at each step, in nats or squared units."""
    batch: int
    seed: int

    @property
    def sequences(self) -> int:
        """How many sequences the network has seen."""
        return len(self.losses) * self.batch

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each step (needs pandas)."""
        return data_frame([{"step": i, "loss": loss} for i, loss in enumerate(self.losses)])

    def to_dict(self) -> dict[str, object]:
        weights = self.network.tensors().items()
        return {
            "format": FORM,
            "task": self.network.task.name,
            "seq_len": self.network.seq_len,
            "weights": {name: [floats(row) for row in value] for name, value in weights},
            "score": self.score.row,
            "losses": list(self.losses),
            "batch": self.batch,
            "seed": self.seed,
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        tensors = {name: torch.tensor(rows) for name, rows in data["weights"].items()}
        network = network_from(tensors, data["task"], data["seq_len"])
        score, losses = Estimate.of(data["score"]), tuple(data["losses"])
        return cls(network, score, losses, data["batch"], data["seed"])


def train(  # noqa: PLR0913 - a training is made of choices
    task: str | Task,
    hidden_size: int,
    n: int,
    *,
    steps: int = 3000,
    batch: int = 1024,
    rate: float = 0.01,
    seed: int = 0,
    progress: Progress | None = None,
) -> Training:
    """Train one network; the same `seed` gives the same network on the same machine.

    `progress` is told the step and the loss.
    """
    task = task_named(task)
    if min(hidden_size, n, steps, batch) < 1 or not (rate > 0 and math.isfinite(rate)):
        raise ModelError("hidden_size, n, steps and batch are at least 1, and rate is above 0")
    dice = torch.Generator().manual_seed(seed)
    if task.discrete:
        fresh = _fresh_transformer(task, hidden_size, n, dice)
        model = fresh.model()
        named = [*zip(_order(fresh), model.parameters(), strict=True)]

        def run(x: Tensor) -> Tensor:
            return model.forward(x, grad=True).output[:, -1]
    else:
        module = _Recurrent(hidden_size, task.outputs(n), dice)
        named = [*module.named_parameters()]
        run = module
    losses = _descend(run, [p for _, p in named], task, n, (steps, batch, rate, seed), progress)
    found = {name: value.detach().clone() for name, value in named}
    network = _packed(found, task) if task.discrete else StoicheiaRnn.from_tensors(found, task, n)
    return Training(network, _scored(network, seed), losses, batch, seed)


class _Recurrent(nn.Module):
    """The zoo's recurrent network, under the zoo's names."""

    def __init__(self, hidden: int, out: int, dice: torch.Generator) -> None:
        super().__init__()
        self.rnn = nn.RNN(1, hidden, nonlinearity="relu", bias=False, batch_first=True)
        self.linear = nn.Linear(hidden, out, bias=False)
        for value in self.parameters():
            nn.init.uniform_(value, -(hidden**-0.5), hidden**-0.5, generator=dice)

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.rnn(x.float()[:, :, None])[0]
        return self.linear(states[:, -1])


def _fresh_transformer(
    task: Task, hidden: int, n: int, dice: torch.Generator
) -> StoicheiaTransformer:
    """A transformer with random weights: embeddings of N(0, 1), the rest by their width."""

    def drawn(rows: int, spread: float) -> Tensor:
        return torch.randn(rows, hidden, generator=dice) * spread

    spread = hidden**-0.5
    tensors = {"embed.weight": drawn(n, 1.0), "pos_embed.weight": drawn(n, 1.0)}
    for i in range(LAYERS):
        tensors[f"attns.{i}.in_proj_weight"] = drawn(3 * hidden, spread)
        tensors[f"attns.{i}.out_proj.weight"] = drawn(hidden, spread)
    tensors["unembed.weight"] = drawn(task.outputs(n), spread)
    return StoicheiaTransformer.from_tensors(tensors, task)


def _order(network: StoicheiaTransformer) -> list[str]:
    """What the model's parameters are, in their order, in the zoo's words."""
    layers = [f"attns.{i}.{part}" for i in range(len(network.layers)) for part in "qkvo"]
    return ["embed.weight", "pos_embed.weight", *layers, "unembed.weight"]


def _packed(parts: dict[str, Tensor], task: Task) -> StoicheiaTransformer:
    """A transformer from matrices whose queries, keys and values are apart."""
    outer = {name: value for name, value in parts.items() if not name.startswith("attns.")}
    for i in range(LAYERS):
        q, k, v, o = (parts[f"attns.{i}.{part}"] for part in "qkvo")
        outer[f"attns.{i}.in_proj_weight"] = torch.cat([q, k, v])
        outer[f"attns.{i}.out_proj.weight"] = o
    return StoicheiaTransformer.from_tensors(outer, task)


def _descend(
    run: Callable[[Tensor], Tensor],
    weights: Iterable[Tensor],
    task: Task,
    n: int,
    plan: tuple[int, int, float, int],
    progress: Progress | None,
) -> tuple[float, ...]:
    """Adam along the loss; the loss at each step."""
    steps, batch, rate, seed = plan
    weights = list(weights)
    optimiser = torch.optim.Adam(weights, lr=rate)
    found: list[float] = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
        x = task.draw(n, batch, seed=(seed + 1) * 1_000_003 + step)
        truth, out = task.truth(x), run(x)
        if task.scalar:
            loss = functional.mse_loss(out[:, 0], truth.to(out.dtype))
        else:
            loss = functional.cross_entropy(out, truth)
        optimiser.zero_grad()
        loss.backward()  # pyright: ignore[reportUnknownMemberType] - torch's stub
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()  # pyright: ignore[reportUnknownMemberType] - torch's stub
        found.append(float(loss.detach()))
        if progress is not None:
            progress(step, found[-1])
    return tuple(found)


def _scored(network: Network, seed: int) -> Estimate:
    """The score on new inputs; of a transformer with few inputs, on all of them."""
    if isinstance(network, StoicheiaRnn):
        return performance(network, seed=seed + 1_000_000)
    n = network.seq_len
    if n**n <= MOST:
        right = answer_every_input(network, {})
        return Estimate(right.accuracy, right.accuracy, right.accuracy)
    x = network.task.draw(n, 20_000, seed + 1_000_000)
    answers = network.model().forward(x).output[:, -1].argmax(1)
    return share(float((answers == network.task.truth(x)).sum()), len(x))
