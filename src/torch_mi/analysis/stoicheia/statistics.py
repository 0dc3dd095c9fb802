# SPDX-License-Identifier: MIT OR Apache-2.0
"""Estimates with confidence intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number, and the interval that holds the true one with 95 % confidence."""

    value: float
    low: float
    high: float

    @property
    def row(self) -> list[float]:
        """This as JSON."""
        return [self.value, self.low, self.high]

    @staticmethod
    def of(row: Sequence[float]) -> "Estimate":
        """What `row` took apart."""
        return Estimate(*map(float, row))

    def __repr__(self) -> str:
        return f"{self.value:.6g} [{self.low:.6g}, {self.high:.6g}]"


def deviations(level: float = LEVEL) -> float:
    """How many standard deviations a normal interval of this level reaches to each side."""
    return NormalDist().inv_cdf((1 + level) / 2)


def share(count: float, total: int) -> Estimate:
    """A share with Wilson's interval (1927), which is right near 0 and 1 too."""
    z, p = deviations(), count / total
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    reach = z * math.sqrt(p * (1 - p) / total + (z / (2 * total)) ** 2) / (1 + z * z / total)
    return Estimate(p, min(p, max(0.0, middle - reach)), max(p, min(1.0, middle + reach)))


def paired(total_change: float, changed: float, total: int) -> Estimate:
    """A difference of two shares of the same samples, with Agresti and Min's interval (2005).

    `total_change` is how many samples became right less how many became wrong, `changed` their sum.
    """
    z, n = deviations(), total + 2
    middle = total_change / n
    reach = z * math.sqrt(max(0.0, (changed + 1) / n - middle**2) / n)
    value = total_change / total
    return Estimate(value, min(value, middle - reach), max(value, middle + reach))


def mean(total: float, squares: float, count: int) -> Estimate:
    """A mean of many samples, from their sum and the sum of their squares; a normal interval."""
    value = total / count
    spread = max(0.0, squares / count - value * value) * count / max(1, count - 1)
    reach = deviations() * math.sqrt(spread / count)
    return Estimate(value, value - reach, value + reach)
