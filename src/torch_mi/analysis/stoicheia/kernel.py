# SPDX-License-Identifier: MIT OR Apache-2.0
"""A recurrent network on many inputs at once, without hooks: states lie [hidden, batch].

The state and the next input share one buffer, so that a step is a single matrix product; neurons
are held at a value by writing their rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from torch_mi.analysis.stoicheia.networks import StoicheiaRnn
from torch_mi.analysis.stoicheia.statistics import Estimate, mean, share
from torch_mi.analysis.stoicheia.tasks import Truth, check_count
from torch_mi.errors import ModelError

BATCH = 8192
"""Samples run at once: their states stay in the processor's cache."""


@dataclass(frozen=True, eq=False)
class Hold:
    """Neurons held at values after the relu, at every step or at one."""

    neurons: Sequence[int]
    values: Float[Tensor, "n hidden #batch"] | None = None
    """What they are held at; `None` is zero."""
    step: int | None = None

    def apply(self, state: Tensor, step: int) -> None:
        """Write the values into the rows of a state [hidden.. batch]."""
        for j in self.neurons:
            state[j] = 0 if self.values is None else self.values[step, j]


class Kernel:
    """One network's matrices, laid out for speed, in the dtype of the inputs it will read."""

    def __init__(self, rnn: StoicheiaRnn, dtype: torch.dtype = torch.float64) -> None:
        self.rnn, self.hidden, self.dtype = rnn, rnn.hidden_size, dtype
        self.step = torch.cat([rnn.w_hh, rnn.w_ih[:, None]], 1).detach().to(dtype)
        self.read = rnn.w_oh.detach().to(dtype)

    def columns(self, inputs: Num[Tensor, "batch n"]) -> Float[Tensor, "n batch"]:
        """Inputs as the kernel reads them, checked."""
        if inputs.ndim != 2 or inputs.shape[1] != self.rnn.seq_len:  # noqa: PLR2004 - batch, n
            raise ModelError(f"inputs are [batch {self.rnn.seq_len}], got {list(inputs.shape)}")
        return inputs.T.to(self.dtype).contiguous()

    def final(
        self,
        x: Float[Tensor, "n batch"],
        hold: Hold | None = None,
        states: Float[Tensor, "n hidden batch"] | None = None,
    ) -> Float[Tensor, "hidden batch"]:
        """The state after the last input.

        Given the `states` of a plain run, a held run starts where it first differs.
        """
        first = 0
        buffer = x.new_zeros(self.hidden + 1, x.shape[1])
        if hold is not None and states is not None:
            first = hold.step or 0
            buffer[:-1] = states[first]
            hold.apply(buffer, first)
            first += 1
        for t in range(first, len(x)):
            buffer[-1] = x[t]
            torch.clamp(self.step @ buffer, min=0, out=buffer[:-1])
            if hold is not None and hold.step in (None, t):
                hold.apply(buffer, t)
        return buffer[:-1]

    def states(self, x: Float[Tensor, "n batch"]) -> Float[Tensor, "n hidden batch"]:
        """The states after each input, before the relu."""
        found = x.new_empty(len(x), self.hidden, x.shape[1])
        buffer = x.new_zeros(self.hidden + 1, x.shape[1])
        for t in range(len(x)):
            buffer[-1] = x[t]
            torch.mm(self.step, buffer, out=found[t])
            torch.clamp(found[t], min=0, out=buffer[:-1])
        return found

    def scores(
        self, state: Float[Tensor, "hidden batch"], truth: Truth
    ) -> Bool[Tensor, " batch"] | Float[Tensor, " batch"]:
        """Which samples are answered right; or, of a scalar task, the squared errors."""
        out = self.read @ state
        if self.rnn.task.scalar:
            return (out[0] - truth).square()
        top = out.amax(0)
        if int((out == top).count_nonzero()) > out.shape[1]:  # ties: the first of them is meant
            return out.argmax(0) == truth
        return out.gather(0, truth[None])[0] == top


def outputs(
    rnn: StoicheiaRnn, inputs: Num[Tensor, "batch n"], hold: Hold | None = None
) -> Float[Tensor, "batch out"]:
    """The outputs for inputs, in their dtype; `hold` holds some neurons at a value."""
    kernel = Kernel(rnn, _dtype(inputs))
    return (kernel.read @ kernel.final(kernel.columns(inputs), hold)).T


def traced(rnn: StoicheiaRnn, inputs: Num[Tensor, "batch n"]) -> Float[Tensor, "batch n hidden"]:
    """The neurons before the relu, after each input."""
    kernel = Kernel(rnn, _dtype(inputs))
    return kernel.states(kernel.columns(inputs)).permute(2, 0, 1)


def _dtype(inputs: Tensor) -> torch.dtype:
    return inputs.dtype if inputs.is_floating_point() else torch.float64


@dataclass(frozen=True, eq=False)
class Sample:
    """Inputs [batch n] with the right answers, and the seed they were drawn with, if they were."""

    inputs: Float[Tensor, "batch n"]
    truth: Truth
    seed: int | None = None

    @property
    def count(self) -> int:
        return len(self.inputs)


def sample(
    rnn: StoicheiaRnn, samples: int | Tensor, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Sample:
    """So many inputs of N(0, 1), or the given ones, with the right answers."""
    if isinstance(samples, Tensor):
        check_count(rnn.seq_len, len(samples))
        Kernel(rnn).columns(samples)
        return Sample(samples.to(dtype), rnn.task.truth(samples), None)
    drawn = rnn.task.draw(rnn.seq_len, samples, seed)
    return Sample(drawn.to(dtype), rnn.task.truth(drawn), seed)


def batches(kernel: Kernel, drawn: Sample) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs [n batch] and right answers, a cacheful at a time, all about equally many."""
    count = -(-drawn.count // BATCH)
    for x, truth in zip(drawn.inputs.chunk(count), drawn.truth.chunk(count), strict=True):
        yield kernel.columns(x), truth


def performance(rnn: StoicheiaRnn, samples: int | Tensor = 100_000, *, seed: int = 0) -> Estimate:
    """The accuracy on inputs of N(0, 1), or given ones; of scalar tasks the mean squared error."""
    drawn, kernel = sample(rnn, samples, seed), Kernel(rnn)
    total, squares = 0.0, 0.0
    for x, truth in batches(kernel, drawn):
        scores = kernel.scores(kernel.final(x), truth).double()
        total, squares = total + float(scores.sum()), squares + float(scores.square().sum())
    return summed(rnn, total, squares, drawn.count)


def summed(rnn: StoicheiaRnn, total: float, squares: float, count: int) -> Estimate:
    """A score with its interval: Wilson's for an accuracy, a normal one for squared errors."""
    return mean(total, squares, count) if rnn.task.scalar else share(total, count)
