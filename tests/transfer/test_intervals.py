"""Intervals of one run hold the true value as often as they say, and paired tests find what is there."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from carryover.configs import UserError
from carryover.configs.files import sha256_file
from carryover.transfer.report import write_report
from carryover.transfer.report.statistics import holm, interval_of_mean
from carryover.transfer.results.intervals import (
    Range,
    deviation_and_bias,
    draws,
    halved,
    interval,
    with_intervals,
)
from carryover.transfer.results.outcomes.base import Outcomes, read_outcomes, write_outcomes
from carryover.transfer.results.outcomes.class_scores import ClassScores
from carryover.transfer.results.outcomes.rankings import Rankings
from carryover.transfer.results.record import write_record
from tests.transfer.records import record


@pytest.fixture(scope="module")
def simulated() -> ModuleType:
    """benchmarks/coverage.py, which measures the same with a thousand evaluations of each kind."""
    spec = importlib.util.spec_from_file_location(
        "coverage_program", Path(__file__).parents[2] / "benchmarks" / "coverage.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_intervals_hold_the_true_value_as_often_as_they_say(simulated: ModuleType) -> None:
    # Accuracy, whose true value is known exactly; of 200 evaluations the coverage has a deviation of 1.5 %.
    found = simulated.coverage(simulated.accuracy, 70.0, images=200, evaluations=200, samples=200)
    assert 0.91 <= found <= 0.99
    # Of AP and mIoU fewer, and roughly: a percentile interval of AP holds the true value in 85 of 100.
    for draw, population in ((simulated.detections, 20_000), (simulated.pixels, 10_000)):
        truth = simulated.truth_of(draw, population)
        assert simulated.coverage(draw, truth, images=300, evaluations=40, samples=100) >= 0.8


def test_samples_of_the_images_are_counted_as_the_images_themselves(
    simulated: ModuleType, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    presence = rng.choice([-1, 0, 1], (40, 3), p=[0.5, 0.1, 0.4]).astype(np.int8)
    scores = (presence[None] + rng.normal(size=(3, 40, 3))).astype(np.float32)
    params = ({}, {"positives": 1}, {"positives": 1})
    ids = tuple(map(str, range(40)))
    kinds: list[Outcomes] = [
        simulated.accuracy(rng, 40),
        simulated.pixels(rng, 40),
        *(simulated.detections(rng, 40, rule) for rule in ("coco", "area", "11point")),
        *(ClassScores(ids, rule, params, presence, scores) for rule in ("area", "11point")),
    ]
    for outcomes in kinds:
        values = np.array([m.value for m in outcomes.metrics()])
        once = outcomes.resampled(np.ones((2, 40), dtype=np.int64))
        np.testing.assert_allclose(once, np.stack([values, values]), rtol=0, atol=1e-9)
        # Every image twice is the same shares, and the same ranking.
        twice = outcomes.resampled(np.full((1, 40), 2, dtype=np.int64))[0]
        assert np.abs(twice - values).max() < (1e-9 if not hasattr(outcomes, "rule") else 3)
        samples = halved(outcomes, samples=50)
        assert np.array_equal(samples, halved(outcomes, samples=50)) and samples.std(axis=0).min() > 0
        path = tmp_path / "outcomes.npz"
        write_outcomes(path, outcomes)
        first = path.read_bytes()
        again = read_outcomes(path)
        assert again.metrics() == outcomes.metrics() and again.ids == outcomes.ids
        write_outcomes(path, again)
        assert path.read_bytes() == first, "equal outcomes are equal files"
        for metric in with_intervals(outcomes.metrics(), outcomes):
            assert metric.low is not None and metric.high is not None and metric.value is not None
            assert 0 <= metric.low < metric.high <= 100
    path.write_bytes(first[: len(first) // 2])
    with pytest.raises(UserError, match=r"outcomes\.npz: not a file of per-image outcomes"):
        read_outcomes(path)
    blocks = list(draws(40, samples=30, seed=1))
    assert np.concatenate(blocks).sum(axis=1).tolist() == [20] * 30
    assert np.concatenate(list(draws(5, samples=6))).sum(axis=1).tolist() == [2, 3] * 3
    assert (
        interval(None, np.array([1.0, 2.0]), 5) is None
        and interval(50.0, np.array([np.nan, 50.0, np.nan]), 5) is None
    )


def test_halves_give_the_deviation_of_a_mean_and_the_bias_of_a_variance_as_textbooks_do() -> None:
    x = np.random.default_rng(0).gamma(2.0, size=61)
    counts = np.concatenate(list(draws(61, samples=20_000)))
    means = counts @ x / counts.sum(axis=1)
    spread, bias = deviation_and_bias(float(x.mean()), means, 61)
    assert spread == pytest.approx(x.std(ddof=1) / np.sqrt(61), rel=0.02) and abs(bias) < 0.01 * spread
    # The variance with N in its denominator is too small by a N-th of the true one.
    variances = counts @ x**2 / counts.sum(axis=1) - means**2
    assert deviation_and_bias(float(x.var()), variances, 61)[1] == pytest.approx(
        -x.var(ddof=1) / 61, rel=0.05
    )


def test_an_interval_of_a_share_is_that_of_its_log_odds() -> None:
    halves = np.tile([78.0, 82.0], 50)
    spread, bias = deviation_and_bias(80.0, halves, 100)
    assert bias == pytest.approx(0) and spread == pytest.approx(2.0, rel=0.01)
    found = interval(80.0, halves, 100)
    assert found is not None
    # The delta method: the deviation of log(p / (1 - p)) is that of p over p (1 - p); t of 99 degrees: 1.984.
    low, high = (np.log(4) + side * 1.984 * spread / 100 / 0.16 for side in (-1, 1))
    assert (found.low, found.high) == pytest.approx([100 / (1 + np.exp(-x)) for x in (low, high)], abs=1e-2)
    assert interval(100.0, np.full(100, 100.0), 100) == Range(100.0, 100.0)


def test_p_values_are_adjusted_as_statisticians_do() -> None:
    # Holm (1979), by hand: 4 x 0.005, 3 x 0.01, then no smaller than those before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    low, high = interval_of_mean([1.0, 2.0, 3.0]) or (0.0, 0.0)
    assert (low, high) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-3), "t of two degrees: 4.3027"
    assert interval_of_mean([1.0]) is None


def rankings(right: np.ndarray, ids: tuple[str, ...]) -> Rankings:
    labels = np.zeros(len(right), dtype=np.int32)
    guesses = np.where(right, 0, 1).astype(np.int32)[None, :, None]
    scores, tied = np.ones(guesses.shape, dtype=np.float32), np.zeros((1, len(right)), dtype=bool)
    return Rankings(ids, 10, (1,), ({},), labels, guesses, scores, tied)


def test_rows_that_saw_the_same_images_are_compared_image_by_image(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(400) < 0.4
    ids = tuple(f"val/{i:03d}.png" for i in range(400))
    rows = {"simo": ~hard, "unigrad": ~hard.copy(), "byol": ~hard.copy()}
    rows["unigrad"][np.flatnonzero(hard)[:12]] = True
    rows["byol"][np.flatnonzero(hard)[:3]], rows["byol"][np.flatnonzero(~hard)[:2]] = True, False
    rows["moco"] = ~hard
    for name, right in rows.items():
        outcomes = rankings(right, ids if name != "moco" else ids[::-1])
        (tmp_path / name).mkdir()
        write_outcomes(tmp_path / name / "outcomes.npz", outcomes)
        kept = {
            "artifacts": {"outcomes": "outcomes.npz"},
            "digests": {"outcomes": sha256_file(tmp_path / name / "outcomes.npz")},
        }
        metrics = with_intervals(outcomes.metrics(), outcomes)
        write_record(record(method=name, pretrain_recipe=name, metrics=metrics, **kept), tmp_path / name)
    write_record(record(method="swav", pretrain_recipe="swav"), tmp_path / "swav")
    write_report([tmp_path], tmp_path / "report", formats=("html", "md"), reference="SiMo")
    told = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    compared = told.partition("image by image")[2].partition("## ")[0]
    lines = {line.split(" | ")[0]: line for line in compared.splitlines()}
    # Twelve images more of 400, none fewer: by the exact test of McNemar p = 2 / 2^12.
    assert "+3.00" in lines["| UniGrad"] and lines["| UniGrad"].endswith("| better |")
    assert lines["| BYOL"].endswith("| no difference found |")
    interval_there = re.search(r"\| \+3\.00 \| \+(\S+) to \+(\S+) \|", lines["| UniGrad"])
    assert interval_there is not None
    # sqrt(12 / 400 - 0.03^2) / sqrt(400) = 0.853 %.
    assert float(interval_there[1]) == pytest.approx(3 - 1.96 * 0.853, abs=0.15)
    assert "- not compared: one\\_percent, MoCo: the two saw different test images" in told
    assert "SwAV:" in told and "keeps no per-image outcomes" in told
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "Compared with SiMo, image by image" in page and "no difference found" in page
    assert re.search(r'<span class="interval">\[5\d\.\d, 6\d\.\d\]</span>', page), "an interval in every cell"
    with pytest.raises(UserError, match="no row of the report is called 'Simo'; did you mean 'SiMo'"):
        write_report([tmp_path], tmp_path / "again", reference="Simo")
