"""Confidence intervals from one run: random halves of the test images, counted again."""

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
    """Yield random halves of N images as 0 and 1, each followed by the images that it leaves out, (b, N).

    A function of the arguments alone: evaluations of the same images are halved alike, so that their
    difference is paired.
    """
    rng = np.random.default_rng([seed, images])
    each = 2 * max(1, _BLOCK // images // 2)
    for first in range(0, samples, each):
        block = np.zeros((min(each, samples - first), images), dtype=np.int64)
        for row in range(0, len(block), 2):
            block[row, rng.permutation(images)[: images // 2]] = 1
            block[row + 1 : row + 2] = 1 - block[row]
        yield block


def halved(outcomes: Outcomes, samples: int = SAMPLES, seed: int = SEED) -> NDArray[np.float64]:
    """Return the metrics' values (samples, M) on random halves of the images."""
    return np.concatenate([outcomes.resampled(block) for block in draws(len(outcomes.ids), samples, seed)])


def deviation_and_bias(
    value: float, sample: NDArray[np.float64], images: int, rate: float = 1.0
) -> tuple[float, float]:
    """Return a metric's standard deviation and bias on N images, given its values on halves of them.

    A half drawn without replacement deviates from the whole as the whole does from the population (the
    delete-half jackknife: Shao and Wu 1989; Politis and Romano 1994), and shows no picture twice, as a
    bootstrap does and no ranking of detections ever sees. Half of an odd number is a little less or more.
    The bias falls as N to the power of minus `rate`, so what a half has more of it says how much of it the
    whole has (Quenouille 1956).
    """
    kept = np.where(np.arange(len(sample)) % 2, images - images // 2, images // 2)
    defined = np.isfinite(sample)
    values, kept = sample[defined], kept[defined]
    center = float(values.mean())
    spread = np.sqrt(np.sum((values - center) ** 2 * kept / (images - kept)) / max(1, len(values) - 1))
    excess = float(np.mean((images / kept) ** rate - 1))
    return float(spread), (center - value) / excess


def interval(
    value: float | None,
    sample: NDArray[np.float64],
    images: int,
    rate: float = 1.0,
    level: float = LEVEL,
) -> Range | None:
    """Return a 95 % interval of a value in percent, given its values on halves of the images.

    The normal interval shifted by the bias (Davison and Hinkley 1997, Sec. 5.2), with Student's quantile of
    N - 1, laid out in log odds, so that it ends before 0 and 100 and is longer on the side of the middle
    (Brown, Cai and DasGupta 2001); `rate` as in `Outcomes`. No number in it was fitted.
    `benchmarks/coverage.py` measures how often it holds the true value.

    None for an undefined value, one that is undefined on most halves, or a single image.
    """
    from scipy.stats import t as student

    defined = sample[np.isfinite(sample)]
    if value is None or images < 2 or len(defined) < 2 or 2 * len(defined) < len(sample):
        return None
    spread, bias = deviation_and_bias(value, sample, images, rate)
    half = float(student.ppf((1 + level) / 2, images - 1)) * spread
    middle = value - bias
    if half == 0 or not 0 < middle < 100:
        return Range(min(100.0, max(0.0, middle - half)), max(0.0, min(100.0, middle + half)))
    odds, half = middle / (100 - middle), half * 100 / (middle * (100 - middle))
    low, high = (odds * np.exp(side * half) for side in (-1, 1))
    return Range(float(100 * low / (1 + low)), float(100 * high / (1 + high)))


def with_intervals(metrics: Sequence[Metric], outcomes: Outcomes) -> tuple[Metric, ...]:
    """Return metrics that were counted from outcomes with their 95 % intervals over the images."""
    order = [m.label for m in outcomes.metrics()]
    n = len(outcomes.ids)
    found = dict(zip(order, halved(outcomes).T)) if n > 1 else {}
    counted = []
    for metric in metrics:
        own = None
        if metric.label in found:
            own = interval(metric.value, found[metric.label], n, outcomes.bias_rate)
        update = {} if own is None else {"low": own.low, "high": own.high}
        counted.append(metric.model_copy(update=update))
    return tuple(counted)
