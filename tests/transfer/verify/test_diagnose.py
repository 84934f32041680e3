"""What is named, and what is not, of evidence made up for the purpose."""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import ttest_rel
from torch import nn

from carryover.core.backbones.stated import Pixels
from carryover.transfer.verify.diagnose import LEVEL, MARGIN, compare, name, reading_of
from carryover.transfer.verify.evidence import Evidence
from carryover.transfer.verify.hypotheses import Cause, Look
from carryover.transfer.verify.statistics import Mismatch

IMAGES = 1000


@dataclass(frozen=True)
class Made:
    """A reading: how many percent are right, and how far its statistics are."""

    cause: Cause
    percent: float
    distance: float | None = 0.02


def _evidence(percent: float, distance: float | None, seed: int) -> Evidence:
    rng = np.random.default_rng(seed)
    # Hard images are hard for every reading, as they are.
    hard = np.random.default_rng(0).random(IMAGES)
    right = hard + 0.1 * rng.standard_normal(IMAGES) < percent / 100
    mismatch = None
    if distance is not None:
        sample = distance + 0.002 * rng.standard_normal(200)
        mismatch = Mismatch(distance, sample, (("bn1", distance), ("layer1.0.bn1", distance)))
    return Evidence(right, right, mismatch)


def _named(base: Made, *others: Made, anew: Made | None = None) -> str | None:
    made = [base, *others]
    looks = [Look(m.cause, m.cause, nn.Identity(), Pixels(), 32) for m in made]
    found = [_evidence(m.percent, m.distance, i) for i, m in enumerate(made)]
    compared = compare(looks, found)
    estimated = None
    if anew is not None:
        estimated = compare([looks[0], looks[0]], [found[0], _evidence(anew.percent, anew.distance, 99)])[0]
    finding = name(found[0], compared, estimated)
    return None if finding is None else finding.cause


SOUND = Made("as it is", 60)


def test_nothing_is_named_where_every_other_reading_is_worse() -> None:
    assert (
        _named(SOUND, Made("channel order", 55, 0.09), Made("mean/std", 50, 0.4), Made("size", 40, 0.3))
        is None
    )


def test_a_better_reading_with_closer_statistics_is_named() -> None:
    assert (
        _named(Made("as it is", 50, 0.3), Made("channel order", 45, 0.3), Made("mean/std", 60, 0.02))
        == "mean/std"
    )


def test_of_several_better_readings_the_one_with_the_closest_statistics_is_named() -> None:
    readings = Made("size", 58, 0.12), Made("stem", 57, 0.02), Made("padding", 56, 0.11)
    assert _named(Made("as it is", 45, 0.3), *readings) == "stem"


def test_a_better_reading_within_the_margin_is_not_named() -> None:
    assert _named(SOUND, Made("padding", 60 + MARGIN / 2)) is None


@pytest.mark.parametrize("cause", ["channel order", "encoder", "size"])
def test_another_encoder_needs_twice_the_margin(cause: Cause) -> None:
    assert _named(SOUND, Made(cause, 60 + 1.5 * MARGIN)) == (None if cause == "encoder" else cause)
    assert _named(SOUND, Made(cause, 60 + 4 * MARGIN)) == cause


def test_a_better_reading_whose_statistics_are_farther_is_not_named() -> None:
    assert _named(SOUND, Made("size", 70, 0.3)) is None


def test_statistics_alone_name_a_reading_that_is_no_worse() -> None:
    assert _named(Made("as it is", 60, 0.3), Made("mean/std", 60, 0.05)) == "mean/std"
    assert _named(Made("as it is", 60, 0.3), Made("mean/std", 50, 0.05)) != "mean/std"


def test_small_distances_say_nothing() -> None:
    assert _named(Made("as it is", 60, 0.08), Made("size", 60, 0.01)) is None


def test_statistics_that_no_reading_explains_are_named_themselves() -> None:
    base = Made("as it is", 40, 0.5)
    assert _named(base, Made("stem", 40, 0.5), anew=Made("as it is", 60, 0.01)) == "batch-norm statistics"


def test_a_network_without_batch_norms_is_judged_by_its_accuracy() -> None:
    base = Made("as it is", 50, None)
    assert _named(base, Made("channel order", 60, None)) == "channel order"
    assert _named(base, Made("channel order", 51, None)) is None


def test_no_reading_is_named_more_often_than_its_level_says_where_all_are_alike() -> None:
    """300 files whose 8 readings differ by chance alone, by far more than the margin would catch."""
    false = 0
    for trial in range(300):
        rng = np.random.default_rng(1000 + trial)
        made = [Evidence(*(2 * [rng.random(60) < 0.5]), None) for _ in range(9)]
        looks = [Look("channel order", "", nn.Identity(), Pixels(), 32) for _ in made]
        false += name(made[0], compare(looks, made), None) is not None
    # 3 are expected at most; 11 have a probability below 0.0003.
    assert false <= 10


def test_differences_are_those_of_a_paired_t_test() -> None:
    looks = [Look("as it is", "", nn.Identity(), Pixels(), 32), Look("stem", "", nn.Identity(), Pixels(), 32)]
    found = [_evidence(50, None, 0), _evidence(53, None, 1)]
    (compared,) = compare(looks, found)
    oracle = ttest_rel(found[1].knn.astype(float), found[0].knn.astype(float), alternative="greater")
    assert compared.difference == pytest.approx(100 * (found[1].knn.mean() - found[0].knn.mean()))
    assert compared.p == pytest.approx(oracle.pvalue)
    reading = reading_of("stem", "", found[1], compared)
    low, high = (
        100 * v
        for v in ttest_rel(found[1].knn.astype(float), found[0].knn.astype(float)).confidence_interval()
    )
    assert (reading.low, reading.high) == (pytest.approx(low), pytest.approx(high))
    assert LEVEL == 0.01
