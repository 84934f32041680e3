"""Confidence intervals from one run: test images drawn anew, with replacement, and counted again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from carryover.transfer.results.outcomes.base import Outcomes
from carryover.transfer.results.record import Metric

LEVEL: Final = 0.95
SAMPLES: Final = 1000
SEED: Final = 0
# Numbers of a block of samples, 64 MiB of them.
_BLOCK: Final = 1 << 23


@dataclass(frozen=True)
class Range:
    """The bounds of a 95 % interval."""

    low: float
    high: float


def draws(images: int, samples: int = SAMPLES, seed: int = SEED) -> Iterator[NDArray[np.int64]]:
    """Yield how often each of N images is drawn in each of so many samples of N, blocks of (b, N).

    A function of the arguments alone: evaluations of the same images are resampled alike, so that their
    difference is paired.
    """
    rng = np.random.default_rng([seed, images])
    each = max(1, _BLOCK // images)
    for first in range(0, samples, each):
        block = [
            np.bincount(rng.integers(0, images, images), minlength=images)
            for _ in range(first, min(first + each, samples))
        ]
        yield np.stack(block)


def resampled(outcomes: Outcomes, samples: int = SAMPLES, seed: int = SEED) -> NDArray[np.float64]:
    """Return the metrics' values (samples, M) on images drawn anew (Efron 1979)."""
    return np.concatenate([outcomes.resampled(block) for block in draws(len(outcomes.ids), samples, seed)])


def interval(
    value: float | None,
    sample: NDArray[np.float64],
    images: int,
    bias_seen: float = 1.0,
    spread_seen: float = 1.0,
    level: float = LEVEL,
) -> Range | None:
    """Return a 95 % interval of a value in percent, given its values on images drawn anew.

    The bootstrap's normal interval, shifted by the bias (Davison and Hinkley 1997, Sec. 5.2), with Student's
    quantile of N - 1. Average precision is biased upwards, and on drawn images once more: percentiles of the
    sample miss the true value one time in seven. Of bias and deviation the sample shows the shares
    `bias_seen` and `spread_seen` (`Outcomes`). `benchmarks/coverage.py` measures how often the interval holds
    the true value.

    None for an undefined value, one that is undefined on most of the sample, or a single image.
    """
    from scipy.stats import t as student

    defined = sample[np.isfinite(sample)]
    if value is None or images < 2 or 2 * len(defined) < len(sample):
        return None
    middle = value - (float(defined.mean()) - value) / bias_seen
    half = float(student.ppf((1 + level) / 2, images - 1) * defined.std(ddof=1)) / spread_seen
    return Range(max(0.0, middle - half), min(100.0, middle + half))


def with_intervals(metrics: Sequence[Metric], outcomes: Outcomes) -> tuple[Metric, ...]:
    """Return metrics that were counted from outcomes with their 95 % intervals over the images."""
    order = [m.label for m in outcomes.metrics()]
    n = len(outcomes.ids)
    found = dict(zip(order, resampled(outcomes).T)) if n > 1 else {}
    counted = []
    for metric in metrics:
        own = None
        if metric.label in found:
            seen = outcomes.bias_seen, outcomes.spread_seen
            own = interval(metric.value, found[metric.label], n, *seen)
        update = {} if own is None else {"low": own.low, "high": own.high}
        counted.append(metric.model_copy(update=update))
    return tuple(counted)
