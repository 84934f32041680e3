"""Means, spreads over seeds, and Welch's interval for the difference of two means."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

LEVEL = 0.95

Bounds = tuple[float, float]

ANY_VALUE: Final[Bounds] = (-math.inf, math.inf)


@dataclass(frozen=True)
class Interval:
    """A difference of two means with its confidence interval, in the unit of the numbers."""

    difference: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Return whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0

    def within(self, possible: Bounds) -> "Interval":
        """Return it without the part outside the possible differences; see `within`."""
        return Interval(self.difference, *within((self.low, self.high), possible))


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean of at least one value."""
    return statistics.fmean(values)


def sample_std(values: Sequence[float]) -> float | None:
    """Return the standard deviation with n - 1 in the denominator, None for fewer than two values."""
    if len(values) < 2:
        return None
    # The module `statistics` reckons in fractions: a tenth of a report of ten thousand records.
    center = mean(values)
    return math.sqrt(math.fsum((x - center) ** 2 for x in values) / (len(values) - 1))


def possible_values(unit: str) -> Bounds:
    """Return the least and the largest value that a metric of this unit can have: 0 and 100 of percent."""
    return (0.0, 100.0) if unit == "%" else ANY_VALUE


def possible_differences(possible: Bounds) -> Bounds:
    """Return the bounds of the difference of two values within `possible`."""
    return possible[0] - possible[1], possible[1] - possible[0]


def within(bounds: Bounds, possible: Bounds) -> Bounds:
    """Return an interval without the part outside the possible values.

    The true value is a possible one, so the coverage stays the same: the truncated classical interval of a
    bounded parameter (Mandelkern 2002, Statistical Science 17, 149-172). It holds the estimate, which is a
    possible value too.
    """
    low, high = possible
    return min(max(bounds[0], low), high), max(min(bounds[1], high), low)


def interval_of_mean(values: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Return Student's interval of the mean of independent values; None for fewer than two."""
    spread = sample_std(values)
    if spread is None:
        return None
    half = _quantile((1 + level) / 2, len(values) - 1) * spread / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for the number of comparisons (Holm 1979): the chance that any is false."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def welch(first: Sequence[float], second: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Return mean(first) - mean(second) with Welch's interval (Welch 1947), None without a spread in both.

    Variances may differ; the degrees of freedom are Satterthwaite's. Where all values of both are equal among
    themselves, nothing was drawn by their seeds, and nothing is known of a spread: None too.
    """
    if min(len(first), len(second)) < 2:
        return None
    difference = mean(first) - mean(second)
    if len(set(first)) == len(set(second)) == 1:
        return None
    parts = [(sample_std(values) or 0.0) ** 2 / len(values) for values in (first, second)]
    error = sum(parts)
    freedom = error**2 / sum(part**2 / (len(v) - 1) for part, v in zip(parts, (first, second), strict=True))
    half = _quantile((1 + level) / 2, freedom) * math.sqrt(error)
    return Interval(difference, difference - half, difference + half)


def p_value(difference: float, variance: float, parts: Sequence[tuple[float, int]]) -> float:
    """Return the two-sided p-value of a difference of this variance, by Student's distribution.

    `parts` are those summands of the variance that were estimated, each with its degrees of freedom; the
    degrees of their sum are Satterthwaite's (1946), the rest counts as known. 1 without any variance: then
    nothing is known of the spread.
    """
    from scipy.special import ndtr, stdtr

    if variance <= 0:
        return 1.0
    uncertain = sum(part**2 / freedom for part, freedom in parts)
    at = -abs(difference) / math.sqrt(variance)
    return float(2 * (stdtr(variance**2 / uncertain, at) if uncertain > 0 else ndtr(at)))


@lru_cache(maxsize=4096)
def _quantile(share: float, freedom: float) -> float:
    """Return the quantile of Student's distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, share))
