# SPDX-License-Identifier: MIT OR Apache-2.0
"""The six tasks of AlgZoo: what goes in, and what should come out."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from torch_mi.errors import ModelError, did_you_mean

Inputs = Num[Tensor, "batch n"]
Truth = Num[Tensor, " batch"]


@dataclass(frozen=True)
class Task:
    """A question about n numbers: n floats of N(0, 1), or n whole numbers below n."""

    name: str
    asks: str
    truth: Callable[[Tensor], Tensor]
    """The right answer [batch] to inputs [batch n]: an index, or a number where `scalar`."""
    scalar: bool = False
    """Whether the answer is one number, judged by its squared error, and not one of n logits."""
    discrete: bool = False
    """Whether inputs are whole numbers; transformers read those, recurrent networks the others."""

    def outputs(self, n: int) -> int:
        """How many outputs a network has for n inputs."""
        return 1 if self.scalar else n

    def draw(self, n: int, count: int, seed: int = 0) -> Inputs:
        """Inputs [count n] as the zoo draws them; one `seed`, one draw. Floats are float64."""
        check_count(n, count)
        dice = torch.Generator().manual_seed(seed)
        if self.discrete:
            return torch.randint(n, (count, n), generator=dice)
        return torch.randn(count, n, generator=dice, dtype=torch.float64)

    def answers(self, outputs: Float[Tensor, "batch out"]) -> Truth:
        """What a network's outputs say: the first of the largest logits, or the number itself."""
        return outputs[:, 0] if self.scalar else outputs.argmax(1)

    def __repr__(self) -> str:
        return f"<Task {self.name}: {self.asks}>"


def check_count(n: int, count: int) -> None:
    """Raise `ModelError` unless there is something to draw."""
    if n < 1 or count < 1:
        raise ModelError(f"{count} samples of {n} numbers: both have to be at least 1")


def second_argmax(x: Inputs) -> Int[Tensor, " batch"]:
    """Where the second largest stands."""
    if x.shape[1] < 2:  # noqa: PLR2004 - there is no second
        raise ModelError("the second largest of one number: 2nd_argmax needs two or more")
    return x.argsort(dim=1, stable=True)[:, -2]


def argmax(x: Inputs) -> Int[Tensor, " batch"]:
    """Where the largest stands."""
    return x.argsort(dim=1, stable=True)[:, -1]


def argmedian(x: Inputs) -> Int[Tensor, " batch"]:
    """Where the middle one stands; of an even number, the upper of the two."""
    return x.argsort(dim=1, stable=True)[:, x.shape[1] // 2]


def argoutlier(x: Inputs) -> Int[Tensor, " batch"]:
    """Where the one furthest from the mean stands."""
    return (x - x.mean(1, keepdim=True)).abs().argmax(1)


def median(x: Inputs) -> Num[Tensor, " batch"]:
    """The middle one; of an even number, the mean of the two in the middle."""
    rows, n = x.sort(1).values, x.shape[1]
    return (rows[:, (n - 1) // 2] + rows[:, n // 2]) / 2


def longest_cycle(x: Inputs) -> Int[Tensor, " batch"]:
    """The length of the longest cycle of the function i ↦ x[i], minus one.

    A place is on a cycle if following the function comes back to it; tails that lead into a cycle
    do not count.
    """
    n = x.shape[1]
    start = torch.arange(n, device=x.device).expand_as(x)
    here, length = start, torch.zeros_like(x)
    for step in range(1, n + 1):
        here = x.gather(1, here)
        back = (here == start) & (length == 0)
        length = torch.where(back, step, length)
    return length.amax(1) - 1


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("2nd_argmax", "where is the second largest?", second_argmax),
        Task("argmax", "where is the largest?", argmax),
        Task("argmedian", "where is the middle one?", argmedian),
        Task("argoutlier", "where is the one furthest from the mean?", argoutlier),
        Task("median", "what is the middle one?", median, scalar=True),
        Task(
            "longest_cycle",
            "how long is the longest cycle, minus one?",
            longest_cycle,
            discrete=True,
        ),
    )
}


def task_named(name: str | Task) -> Task:
    """A task by its name in the zoo."""
    if isinstance(name, Task):
        return name
    if name not in TASKS:
        known = ", ".join(TASKS)
        raise ModelError(f"no task is called {name!r}{did_you_mean(name, TASKS)}; tasks: {known}")
    return TASKS[name]
