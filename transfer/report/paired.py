"""Rows compared on the same test images: every difference with its interval and a p-value."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from carryover.configs import UserError
from carryover.configs.nearest import nearest
from carryover.transfer.report.collection import Collection, Evaluation, Numbered, Pretraining
from carryover.transfer.report.naming import PICTURES, metric_name
from carryover.transfer.report.statistics import (
    LEVEL,
    holm,
    mean,
    possible_differences,
    possible_values,
    within,
)
from carryover.transfer.results.intervals import deviation_and_bias, halved
from carryover.transfer.results.outcomes.base import Outcomes
from carryover.transfer.results.reading import StoredRecord
from carryover.transfer.results.record import Metric
from carryover.transfer.results.rescore import outcomes_of


@dataclass(frozen=True)
class PairedDifference:
    """One row minus the reference by one metric, over the same test images.

    Attributes
    ----------
    low, high
        95 % interval of the difference, for one comparison.
    p
        The chance of a difference as large where there is none, adjusted for all comparisons (Holm 1979).
    images, runs
        How many test images both saw, and how many runs of either are behind the means.
    """

    heading: str
    metric: str
    label: str
    difference: float
    low: float
    high: float
    p: float
    images: int
    runs: tuple[int, int]
    higher_is_better: bool

    @property
    def verdict(self) -> str:
        """Return the verdict: "better", "worse" or "no difference found"."""
        if self.p >= 1 - LEVEL:
            return "no difference found"
        return "better" if (self.difference > 0) == self.higher_is_better else "worse"


@dataclass(frozen=True)
class Difference:
    """A difference of two means with its 95 % interval and its p-value, of so many runs each."""

    difference: float
    low: float
    high: float
    p: float
    runs: tuple[int, int]


@dataclass(frozen=True)
class Paired:
    """All comparisons with one row; `left_out` says which could not be made, and why."""

    reference: str
    differences: tuple[PairedDifference, ...]
    left_out: tuple[str, ...]


def paired(collection: Collection, reference: str) -> Paired:
    """Compare every row with the one called `reference`, by every headline metric of every evaluation.

    Both rows are counted on the same random halves of the test images (`results.intervals`), so that what
    makes an image hard for both cancels. Of several runs (seeds) the means are compared, and their spread
    over seeds is added. The p-value is of the normal distribution with the sample's deviation.

    Raises UserError for a name that no row has.
    """
    rows = {label: pretraining for pretraining, label in collection.labels.items()}
    if reference not in rows:
        guess = nearest(reference, list(rows))
        hint = f"did you mean '{guess}'?" if guess else f"there are: {', '.join(rows)}"
        raise UserError(f"--paired: no row of the report is called '{reference}'; {hint}")
    found: list[PairedDifference] = []
    left_out: list[str] = []
    for evaluation in collection.evaluations:
        base = collection.runs.get((rows[reference], evaluation), ())
        if not base or evaluation.task in PICTURES:
            continue
        ours = ResampledRuns.of(base)
        for label, pretraining in rows.items():
            runs = collection.runs.get((pretraining, evaluation), ())
            if not runs or label == reference:
                continue
            theirs = ResampledRuns.of(runs)
            heading = collection.captions[evaluation]
            problem = ours.problem or theirs.problem or mismatch(ours, theirs)
            if problem:
                left_out.append(f"{heading}, {label}: {problem}")
                continue
            found += _differences(collection, evaluation, heading, pretraining, theirs, ours)
    adjusted = holm([d.p for d in found])
    return Paired(reference, tuple(replace(d, p=p) for d, p in zip(found, adjusted)), tuple(left_out))


@dataclass(frozen=True)
class ResampledRuns:
    """Runs of one row under one evaluation: their metrics, and those on halves of the images (B, M)."""

    ids: tuple[str, ...]
    metrics: tuple[tuple[Metric, ...], ...]
    samples: tuple[NDArray[np.float64], ...]
    problem: str = ""
    bias_rate: float = 1.0

    @classmethod
    def of(cls, runs: Sequence[Numbered]) -> "ResampledRuns":
        outcomes: list[Outcomes] = []
        for run in runs:
            try:
                outcomes.append(outcomes_of(StoredRecord(run.path, run.record)))
            except UserError as error:
                return cls((), (), (), str(error))
        if len({o.ids for o in outcomes}) > 1:
            return cls((), (), (), "its runs saw different test images")
        counted = tuple(o.metrics() for o in outcomes)
        samples = tuple(halved(o) for o in outcomes)
        return cls(outcomes[0].ids, counted, samples, bias_rate=outcomes[0].bias_rate)


def mismatch(one: ResampledRuns, other: ResampledRuns) -> str:
    if one.ids == other.ids:
        return ""
    shared = len(set(one.ids) & set(other.ids))
    return f"the two saw different test images ({shared} of {len(one.ids)} and {len(other.ids)} are the same)"


def _differences(
    collection: Collection,
    evaluation: Evaluation,
    heading: str,
    pretraining: Pretraining,
    ours: ResampledRuns,
    base: ResampledRuns,
) -> list[PairedDifference]:
    found = []
    for metric in collection.headlines(evaluation):
        one = difference_of(ours, base, metric)
        if one is not None:
            name, label, runs = metric_name(metric), collection.labels[pretraining], one.runs
            bounds = (one.difference, one.low, one.high, one.p)
            better = metric.higher_is_better
            found.append(PairedDifference(heading, name, label, *bounds, len(ours.ids), runs, better))
    return found


def difference_of(ours: ResampledRuns, base: ResampledRuns, metric: Metric) -> Difference | None:
    """Return ours minus base by one metric; None where it is undefined in a run. See `paired`."""
    from scipy.stats import norm

    at = [m.label for m in ours.metrics[0]].index(metric.label)
    values = [[v for m in side.metrics if (v := m[at].value) is not None] for side in (ours, base)]
    if [len(v) for v in values] != [len(ours.metrics), len(base.metrics)]:
        return None
    difference = mean(values[0]) - mean(values[1])
    sample = np.mean([s[:, at] for s in ours.samples], axis=0)
    sample = sample - np.mean([s[:, at] for s in base.samples], axis=0)
    over_seeds = sum(float(np.var(side, ddof=1)) / len(side) for side in values if len(side) > 1)
    if np.isfinite(sample).sum() < 2:
        return None
    deviation, bias = deviation_and_bias(difference, sample, len(ours.ids), ours.bias_rate)
    spread = float(np.sqrt(deviation**2 + over_seeds))
    half = float(norm.ppf((1 + LEVEL) / 2)) * spread
    # The bias of either side (see results.intervals) is taken off their difference as well.
    middle = difference - bias
    p = float(2 * norm.sf(abs(middle) / spread)) if spread > 0 else float(difference == 0)
    possible = possible_differences(possible_values(metric.unit))
    low, high = within((middle - half, middle + half), possible)
    return Difference(difference, low, high, p, (len(values[0]), len(values[1])))
