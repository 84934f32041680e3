"""Means, spreads over seeds, and Welch's interval for the difference of two means."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A difference of two means with its confidence interval, in the unit of the numbers."""

    difference: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Tell whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean of at least one value."""
    return statistics.fmean(values)


def sample_std(values: Sequence[float]) -> float | None:
    """Return the standard deviation with n - 1 in the denominator, None for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def welch(first: Sequence[float], second: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Return mean(first) - mean(second) with Welch's interval (Welch 1947), None without a spread in both.

    Variances may differ; SciPy computes it, with Satterthwaite's degrees of freedom. Where all values of both
    are equal among themselves the interval is the difference itself.
    """
    from scipy.stats import ttest_ind

    if min(len(first), len(second)) < 2:
        return None
    difference = mean(first) - mean(second)
    if len(set(first)) == len(set(second)) == 1:
        return Interval(difference, difference, difference)
    found = ttest_ind(first, second, equal_var=False).confidence_interval(level)
    return Interval(difference, float(found.low), float(found.high))
