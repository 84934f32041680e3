"""What is named, and what is not, of evidence made up for the purpose."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import ttest_rel
from torch import nn

from carryover.core.backbones.stated import Pixels
from carryover.transfer.verify.diagnose import LEVEL, MARGIN, Compared, compare, name, reading_of, undecided
from carryover.transfer.verify.evidence import Evidence
from carryover.transfer.verify.hypotheses import Cause, Look
from carryover.transfer.verify.statistics import Mismatch

IMAGES = 1000


@dataclass(frozen=True)
class Made:
    """A reading: how many percent are right, how far its statistics are, how many layers' are its own."""

    cause: Cause
    percent: float
    distance: float | None = 0.003
    own: float = 1.0


def _evidence(made: Made, seed: int) -> Evidence:
    rng = np.random.default_rng(seed)
    # Hard images are hard for every reading, as they are.
    hard = np.random.default_rng(0).random(IMAGES)
    right = hard + 0.1 * rng.standard_normal(IMAGES) < made.percent / 100
    mismatch, d = None, made.distance
    if d is not None:
        sample = d + 0.002 * rng.standard_normal(200)
        mismatch = Mismatch(d, sample, (("bn1", d), ("layer1.0.bn1", d)), made.own)
    return Evidence(right, right, mismatch)


def _compared(made: Sequence[Made]) -> tuple[Evidence, list[Compared]]:
    looks = [Look(m.cause, m.cause, nn.Identity(), Pixels(), 32) for m in made]
    found = [_evidence(m, i) for i, m in enumerate(made)]
    return found[0], compare(looks, found)


def _named(base: Made, *others: Made, anew: Made | None = None) -> str | None:
    first, compared = _compared([base, *others])
    estimated = None if anew is None else _compared([base, anew])[1][0]
    finding = name(first, compared, estimated)
    return None if finding is None else finding.cause


SOUND = Made("as it is", 60)


def test_nothing_is_named_where_every_other_reading_is_worse() -> None:
    others = Made("channel order", 55, 0.02), Made("mean/std", 50, 0.4), Made("size", 40, 0.3)
    assert _named(SOUND, *others) is None


def test_statistics_choose_a_reading_and_accuracy_confirms_it() -> None:
    base = Made("as it is", 50, 0.06)
    assert _named(base, Made("channel order", 45, 0.06), Made("stem", 60, 0.003)) == "stem"
    assert _named(base, Made("channel order", 45, 0.06), Made("stem", 50, 0.003)) is None
    assert _named(base, Made("stem", 58, 0.02), Made("channel order", 57, 0.01)) == "channel order"


def test_a_better_reading_that_does_not_fit_is_not_named() -> None:
    """Images of another kind than the training's: what reads better on them says nothing of the training."""
    base = Made("as it is", 40, 0.17)
    first, compared = _compared([base, Made("size", 60, 0.1), Made("channel order", 48, 0.07)])
    assert name(first, compared, None) is None
    assert "another kind" in undecided(first, compared)[0]


def test_an_overwhelming_difference_needs_no_statistics_unless_it_is_a_sizes() -> None:
    base = Made("as it is", 50, 0.02)
    assert _named(base, Made("channel order", 80, 0.07)) == "channel order"
    assert _named(base, Made("size", 80, 0.07)) is None


def test_a_better_reading_within_the_margin_is_not_named() -> None:
    assert _named(Made("as it is", 60, 0.06), Made("padding", 60 + MARGIN / 2)) is None


def test_far_statistics_name_a_reading_that_is_no_worse_but_never_a_size() -> None:
    base = Made("as it is", 60, 0.3)
    assert _named(base, Made("mean/std", 60.5)) == "mean/std"
    assert _named(base, Made("mean/std", 50)) is None
    assert _named(base, Made("size", 60.5)) is None
    assert _named(base, Made("size", 66)) == "size"
    assert _named(Made("as it is", 60, 0.08), Made("size", 66)) is None


def test_closer_statistics_without_proof_are_said() -> None:
    first, compared = _compared([Made("as it is", 60, 0.08), Made("size", 60)])
    assert name(first, compared, None) is None
    (said,) = undecided(first, compared)
    assert said.startswith("size: ") and said.endswith("not confirmed")


def test_an_encoder_is_told_by_accuracy_with_twice_the_margin() -> None:
    assert _named(SOUND, Made("encoder", 60 + 1.5 * MARGIN)) is None
    assert _named(SOUND, Made("encoder", 60 + 4 * MARGIN)) == "encoder"


def test_statistics_that_are_no_nearer_than_exchanged_ones_are_named() -> None:
    base, anew = Made("as it is", 40, 0.5, 0.4), Made("as it is", 60, 0.01)
    assert _named(base, Made("stem", 40, 0.5, 0.3), anew=anew) == "batch-norm statistics"
    assert _named(base, Made("stem", 40, 0.5, 0.9), anew=anew) is None, "a stem under which they are its own"
    assert _named(base, Made("stem", 40, 0.5, 0.3), anew=Made("as it is", 41, 0.01)) is None


def test_a_network_without_batch_norms_is_judged_by_its_accuracy() -> None:
    base = Made("as it is", 50, None)
    assert _named(base, Made("channel order", 60, None)) == "channel order"
    assert _named(base, Made("channel order", 50 + 1.3 * MARGIN, None)) is None


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
    found = [_evidence(Made("as it is", 50, None), 0), _evidence(Made("stem", 53, None), 1)]
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
