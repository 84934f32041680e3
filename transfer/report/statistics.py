"""Means, spreads over seeds, and Welch's interval for the difference of two means."""

import math
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
    return math.fsum(values) / len(values)


def sample_std(values: Sequence[float]) -> float | None:
    """Return the standard deviation with n - 1 in the denominator, None for fewer than two values."""
    if len(values) < 2:
        return None
    centre = mean(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1))


def welch(first: Sequence[float], second: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Return mean(first) - mean(second) with Welch's interval (Welch 1947), None without a spread in both.

    Variances may differ; degrees of freedom after Satterthwaite. Where all values of both are equal among
    themselves the interval is the difference itself.
    """
    from scipy.special import stdtrit

    spreads = sample_std(first), sample_std(second)
    if spreads[0] is None or spreads[1] is None:
        return None
    parts = spreads[0] ** 2 / len(first), spreads[1] ** 2 / len(second)
    error = math.sqrt(sum(parts))
    difference = mean(first) - mean(second)
    if error == 0:
        return Interval(difference, difference, difference)
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(first) - 1) + parts[1] ** 2 / (len(second) - 1))
    half = float(stdtrit(freedom, (1 + level) / 2)) * error
    return Interval(difference, difference - half, difference + half)
