# SPDX-License-Identifier: MIT OR Apache-2.0
"""Whether an explanation explains: what it costs in bits to say, and what it leaves to be said.

An explanation predicts a network's answers. Its total is the length of its own description plus
the surprise of the answers given it, with every disagreement equally likely among the other
answers: n·(H₂(ε) + ε·log₂(outputs − 1)). The baseline says every answer anew: n·log₂(outputs).
It is worth its bits if the total is below what it takes to write down the weights themselves, at
the coarsest rounding that keeps the network's accuracy. The measures are those of ARC's AlgZoo.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from jaxtyping import Float, Int
from torch import Tensor

from torch_mi.analysis.stoicheia.kernel import outputs, performance, sample
from torch_mi.analysis.stoicheia.networks import StoicheiaRnn
from torch_mi.analysis.stoicheia.statistics import Estimate, share
from torch_mi.analysis.stoicheia.tasks import TASKS
from torch_mi.errors import ModelError
from torch_mi.results import Result, data_frame

FORM = "torch-mi stoicheia surprise 1"
FLOAT_BITS = 32
WIDTHS = range(2, 25)
"""Bits a weight may be rounded to."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """A prediction of a network's answers, with the bits that it takes to state it."""

    name: str
    predict: Callable[[Float[Tensor, "batch n"]], Int[Tensor, " batch"]]
    bits: float
    """The length of its description."""
    passes: float = 1.0
    """What one prediction takes, in forward passes of the network."""
    accuracy: float | None = None
    """What it says the network's accuracy is, if that is not what it scores on the samples."""


@dataclass(frozen=True)
class Account:
    """One explanation's bits, and how well it tells the network's accuracy."""

    name: str
    agreement: Estimate
    """The part of the samples on which it predicts the network's answer."""
    description_bits: float
    residual_bits: float
    """The surprise of the network's answers, given the explanation."""
    estimate: float
    """What it says the network's accuracy is."""
    passes: float
    """What that estimate takes, in forward passes of the network."""

    @property
    def total_bits(self) -> float:
        return self.description_bits + self.residual_bits


@dataclass(frozen=True, eq=False, repr=False)
class Surprise(Result):
    """Explanations of one network, beside the baseline and the weights."""

    form = FORM

    task: str
    samples: int
    seed: int | None
    outputs: int
    parameters: int
    accuracy: Estimate
    baseline_bits: float
    """What the answers take without any explanation."""
    weight_bits: float
    """What the weights take, at the coarsest rounding that keeps the accuracy."""
    bits_per_weight: int
    accounts: tuple[Account, ...]

    @property
    def chance(self) -> float:
        """The accuracy of guessing."""
        return 1 / self.outputs

    def valid(self, account: Account) -> bool:
        """Whether an explanation takes no more bits than the weights."""
        return account.total_bits <= self.weight_bits

    def beats_sampling(self, account: Account) -> bool:
        """Whether its estimate of the accuracy errs less than as many forward passes would.

        (â − a)² < a(1 − a) / N, with N the passes that the estimate takes.
        """
        a = self.accuracy.value
        return (account.estimate - a) ** 2 < a * (1 - a) / max(1.0, account.passes)

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each explanation (needs pandas)."""
        return data_frame(
            [
                {
                    "explanation": account.name,
                    "agreement": account.agreement.value,
                    "description_bits": account.description_bits,
                    "residual_bits": account.residual_bits,
                    "total_bits": account.total_bits,
                    "valid": self.valid(account),
                    "beats_sampling": self.beats_sampling(account),
                }
                for account in self.accounts
            ]
        )

    def to_dict(self) -> dict[str, object]:
        plain = {
            key: self.__dict__[key]
            for key in (
                "task", "samples", "seed", "outputs", "parameters", "baseline_bits", "weight_bits",
                "bits_per_weight",
            )
        }  # fmt: skip
        rows = [asdict(account) | {"agreement": account.agreement.row} for account in self.accounts]
        return {"format": FORM, **plain, "accuracy": self.accuracy.row, "accounts": rows}

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        plain = {key: value for key, value in data.items() if key not in ("format", "time_secs")}
        accounts = tuple(
            Account(**(row | {"agreement": Estimate.of(row["agreement"])}))
            for row in data["accounts"]
        )
        told: dict[str, Any] = {"accounts": accounts, "accuracy": Estimate.of(data["accuracy"])}
        return cls(**plain | told)


def oracle(rnn: StoicheiaRnn) -> Explanation:
    """“It does its task”: the right answers, named among the zoo's tasks."""
    return Explanation(f"does {rnn.task.name}", rnn.task.truth, math.log2(len(TASKS)), 1.0, 1.0)


def rounded(rnn: StoicheiaRnn, bits: int) -> Explanation:
    """The network itself with its weights rounded to so many bits."""
    small = quantised(rnn, bits)
    predict = _answers_of(small)
    return Explanation(f"weights of {bits} bits", predict, _cost(rnn, bits))


def smaller(rnn: StoicheiaRnn, without: Sequence[int], bits: int) -> Explanation:
    """The network without some of its neurons, its other weights rounded to so many bits."""
    kept = [j for j in range(rnn.hidden_size) if j not in set(without)]
    if not kept or not set(without) <= set(range(rnn.hidden_size)):
        raise ModelError(f"without={list(without)} of neurons 0 … {rnn.hidden_size - 1}")
    w_hh, w_oh = rnn.w_hh[kept][:, kept], rnn.w_oh[:, kept]
    rest = quantised(replace(rnn, w_ih=rnn.w_ih[kept], w_hh=w_hh, w_oh=w_oh), bits)
    name = f"{len(kept)} neurons of {bits} bits"
    return Explanation(name, _answers_of(rest), _cost(rest, bits), len(kept) / rnn.hidden_size)


def account_for(
    rnn: StoicheiaRnn,
    *explanations: Explanation,
    samples: int | Tensor = 20_000,
    seed: int = 0,
) -> Surprise:
    """The bits of explanations of a network's answers on inputs of N(0, 1), or on given ones.

    Without any, those of `oracle`, and of `rounded` at the coarsest rounding that keeps the
    accuracy and at half of it.
    """
    if rnn.task.scalar:
        raise ModelError(f"{rnn.task.name} has no answers to count: its output is a number")
    drawn = sample(rnn, samples, seed)
    answers = rnn.task.answers(outputs(rnn, drawn.inputs))
    accuracy = share(float((answers == drawn.truth).sum()), drawn.count)
    width = coarsest(rnn, drawn.inputs)
    halved = max(WIDTHS.start, width // 2)
    chosen = explanations or (oracle(rnn), rounded(rnn, width), rounded(rnn, halved))
    accounts: list[Account] = []
    for each in chosen:
        said = each.predict(drawn.inputs)
        _check_answers(each, said, rnn, drawn.count)
        agreement = share(float((said == answers).sum()), drawn.count)
        scored = float((said == drawn.truth).double().mean())
        estimate = scored if each.accuracy is None else each.accuracy
        passes = each.passes * (drawn.count if each.accuracy is None else 1)
        left = residual_bits(agreement.value, drawn.count, rnn.output_size)
        accounts.append(Account(each.name, agreement, each.bits, left, estimate, passes))
    return Surprise(
        rnn.task.name,
        drawn.count,
        drawn.seed,
        rnn.output_size,
        rnn.num_parameters,
        accuracy,
        drawn.count * math.log2(rnn.output_size),
        _cost(rnn, width),
        width,
        tuple(accounts),
    )


def residual_bits(agreement: float, samples: int, outputs: int) -> float:
    """The surprise of answers of which this part was foretold; ε has Laplace's smoothing."""
    missed = (1 - agreement) * samples
    e = (missed + 1) / (samples + 2)
    others = math.log2(outputs - 1) if outputs > 1 else 0.0
    return -missed * (math.log2(e) - others) - (samples - missed) * math.log2(1 - e)


def quantised(rnn: StoicheiaRnn, bits: int) -> StoicheiaRnn:
    """The network with each matrix rounded to 2^bits − 1 evenly spaced values around zero."""
    if bits < WIDTHS.start:
        raise ModelError(
            f"bits={bits}: a rounded weight has a sign and a size, {WIDTHS.start} bits"
        )

    def rounded_to(w: Tensor) -> Tensor:
        step = w.abs().max() / (2 ** (bits - 1) - 1)
        return w if float(step) == 0 else (w / step).round() * step

    w_ih, w_hh, w_oh = (rounded_to(w.detach()) for w in (rnn.w_ih, rnn.w_hh, rnn.w_oh))
    return replace(rnn, w_ih=w_ih, w_hh=w_hh, w_oh=w_oh)


def coarsest(rnn: StoicheiaRnn, inputs: Tensor) -> int:
    """The fewest bits a weight at which the accuracy stays in the interval of the whole one's."""
    low = performance(rnn, inputs).low
    for bits in WIDTHS:
        if performance(quantised(rnn, bits), inputs).value >= low:
            return bits
    return FLOAT_BITS


def _cost(rnn: StoicheiaRnn, bits: int) -> float:
    """The bits of weights rounded so, with the scale of each of the three matrices."""
    return float(rnn.num_parameters * bits + 3 * FLOAT_BITS)


def _answers_of(rnn: StoicheiaRnn) -> Callable[[Tensor], Tensor]:
    return lambda inputs: rnn.task.answers(outputs(rnn, inputs))


def _check_answers(each: Explanation, said: Tensor, rnn: StoicheiaRnn, count: int) -> None:
    if said.shape != (count,) or said.is_floating_point():
        raise ModelError(
            f"{each.name!r} has to predict {count} answers, whole numbers from 0 to "
            f"{rnn.output_size - 1}; it gave {list(said.shape)} of {said.dtype}"
        )
