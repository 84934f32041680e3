"""Means, spreads and Welch's interval, against NumPy and the formula written out."""

import statistics

import numpy as np
import pytest
from scipy import stats

from carryover.transfer.report.findings import differences, summarize
from carryover.transfer.report.statistics import (
    interval_of_mean,
    mean,
    possible_differences,
    possible_values,
    sample_std,
    welch,
    within,
)
from tests.transfer.records import record
from tests.transfer.report.gathered import tables_of


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


def test_an_interval_of_a_bounded_value_ends_where_its_values_do_and_covers_it_as_often() -> None:
    assert within((-3.0, 104.0), possible_values("%")) == (0.0, 100.0)
    assert within((40.0, 60.0), possible_values("%")) == (40.0, 60.0)
    assert within((-3.0, 104.0), possible_values("nats")) == (-3.0, 104.0)
    assert possible_differences(possible_values("%")) == (-100.0, 100.0)
    rng = np.random.default_rng(0)
    truth, held, cut = 96.0, [0, 0], 0
    for _ in range(400):
        whole = interval_of_mean(rng.beta(96, 4, 2) * 100)
        assert whole is not None
        ended = within(whole, possible_values("%"))
        cut += ended != whole
        for i, (low, high) in enumerate((whole, ended)):
            held[i] += low <= truth <= high
    assert cut > 100 and held[0] == held[1] >= 0.9 * 400


def test_intervals_of_two_seeds_stay_within_the_metrics_values_and_the_tables_say_so() -> None:
    methods = {"random": (1.0, 9.0), "simo": (90.0, 99.0)}
    records = [
        record(v, seed=s, method=m, pretrain_recipe=m)
        for m, values in methods.items()
        for s, v in enumerate(values)
    ]
    (table,) = tables_of(*records)
    random, simo = (row.cells[0] for row in table.rows)
    low, high = interval_of_mean(simo.values) or (0.0, 0.0)
    assert high > 100 and simo.interval == (low, 100.0) and simo.brackets().endswith(", 100.0]")
    assert random.interval is not None and random.interval[0] == 0.0
    assert "(Student, cut off at the ends of the metric's values)" in table.spreads()
    (summary,) = summarize([table])
    found = summary.findings[0].interval
    assert found is not None and found.high == 100.0 and found.low < found.difference
    assert differences([table])[0].intervals[1][0] == found
    in_nats = [
        r.model_copy(update={"metrics": (r.metrics[0].model_copy(update={"unit": "nats"}),)}) for r in records
    ]
    assert (tables_of(*in_nats)[0].rows[1].cells[0].interval or (0, 0))[1] == pytest.approx(high)
