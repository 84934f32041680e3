"""Means, spreads and Welch's interval, against NumPy and the formula written out."""

import statistics

import numpy as np
import pytest
from scipy import stats

from carryover.transfer.report.statistics import interval_of_mean, mean, sample_std, welch


def test_welchs_interval_is_that_of_his_formula() -> None:
    a, b = [61.2, 63.0, 60.1], [55.0, 58.9, 57.7, 51.0]
    ours = welch(a, b)
    va, vb = np.var(a, ddof=1) / 3, np.var(b, ddof=1) / 4
    freedom = (va + vb) ** 2 / (va**2 / 2 + vb**2 / 3)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(va + vb)
    difference = np.mean(a) - np.mean(b)
    assert ours is not None and ours.excludes_zero == (difference > half)
    assert (ours.low, ours.high) == pytest.approx((difference - half, difference + half), rel=1e-10)
    assert ours.difference == pytest.approx(difference)


def test_there_is_no_interval_without_a_spread_in_both() -> None:
    assert welch([1.0], [2.0, 3.0]) is None


def test_equal_values_are_no_certainty() -> None:
    assert welch([2.0, 2.0], [1.0, 1.0]) is None
    found = welch([2.0, 2.0], [1.0, 1.5])
    assert found is not None and found.low < 0 < found.high


def test_mean_and_deviation_are_numpys() -> None:
    values = [3.0, 4.5, 9.25]
    assert mean(values) == pytest.approx(np.mean(values))
    assert sample_std(values) == pytest.approx(np.std(values, ddof=1))
    assert sample_std([3.0]) is None


def test_spreads_and_intervals_are_those_of_the_libraries() -> None:
    rng = np.random.default_rng(0)
    for sizes in ((2, 3), (5, 5), (10, 4)):
        one, other = (rng.normal(50, 1 + n, n).tolist() for n in sizes)
        assert sample_std(one) == pytest.approx(statistics.stdev(one), rel=1e-12)
        found, theirs = (
            welch(one, other),
            stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95),
        )
        assert found is not None and (found.low, found.high) == pytest.approx(
            (theirs.low, theirs.high), rel=1e-9
        )
        low, high = stats.t.interval(0.95, len(one) - 1, np.mean(one), stats.sem(one))
        assert interval_of_mean(one) == pytest.approx((low, high), rel=1e-9)
