"""One number of a table: the mean over seeds, and everything that must not be averaged away."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from carryover.transfer.report.collection import Numbered
from carryover.transfer.report.statistics import (
    ANY_VALUE,
    Bounds,
    interval_of_mean,
    mean,
    possible_values,
    sample_std,
    within,
)

_NORMAL = 1.959963984540054
"""The normal distribution's quantile of 97.5 %."""


@dataclass(frozen=True)
class Source:
    """One record's number."""

    number: int
    path: Path
    checkpoint_sha256: str
    pretrain_seed: int | None
    seed: int
    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Cell:
    """A mean over independent runs.

    Attributes
    ----------
    values
        The independent numbers behind the mean: one a pretraining where several pretrainings were
        evaluated (each its own mean over evaluation seeds), else one an evaluation seed.
    mean, std
        Their mean and sample standard deviation; None where there is none (nothing defined; one run; reruns
        that disagree).
    over
        What differs from one of `values` to the next.
    clashing
        The different numbers that reruns of one trial gave; then there is no mean.
    missing
        Evaluation seeds that others in this column have and this cell lacks.
    possible
        The least and the largest value that the metric can have: where intervals end.
    rank
        1 for the best of its column, 2 for the second, else 0.
    """

    sources: tuple[Source, ...]
    values: tuple[float, ...]
    over: Literal["pretraining seeds", "evaluation seeds"]
    clashing: tuple[float, ...] = ()
    missing: tuple[int, ...] = ()
    possible: Bounds = ANY_VALUE
    rank: int = 0

    @cached_property
    def mean(self) -> float | None:
        return mean(self.values) if self.values else None

    @cached_property
    def std(self) -> float | None:
        return sample_std(self.values)

    @property
    def agrees(self) -> bool:
        """Whether all runs gave one number, as those do that draw nothing by their seed (k-NN)."""
        return len(set(self.values)) == 1

    @property
    def n(self) -> int:
        """Number of independent runs behind the mean."""
        return len(self.values)

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval: over test images where all runs gave one number, else seeds; None: not known."""
        if self.n > 1 and not self.agrees:
            found = interval_of_mean(self.values)
            return None if found is None else within(found, self.possible)
        known = [(s.low, s.high) for s in self.sources if s.value is not None]
        low, high = known[0] if self.n and known else (None, None)
        return None if low is None or high is None else (low, high)

    @property
    def cut_off(self) -> bool:
        """Return whether the interval ends where the metric's values do."""
        return self.interval is not None and bool({*self.interval} & {*self.possible})

    def brackets(self) -> str:
        """Return the interval as a reader sees it, ``[58.0, 64.5]``; "" where there is none."""
        found = self.interval
        return "" if found is None else f"[{found[0]:.1f}, {found[1]:.1f}]"

    def text(self) -> str:
        """Return the cell as a reader sees it: ``61.3 ± 0.4``."""
        if self.clashing:
            return " | ".join(f"{v:.1f}" for v in self.clashing)
        if not self.sources:
            return ""
        if self.mean is None:
            return "–"
        return f"{self.mean:.1f}" if self.std is None else f"{self.mean:.1f} ± {self.std:.1f}"


def joint_interval(cell: Cell) -> tuple[float, float] | None:
    """Return a 95 % interval of a mean over both test images and seeds; None where neither is known.

    Of one run its own over the test images. Runs of several seeds saw the same images, so that their mean has
    the images' variance whole and the seeds' over their number; with two or three seeds Student's interval of
    the seeds alone would say next to nothing. It ends where the metric's values do.
    """
    variances = joint_variances(cell)
    if cell.mean is None or variances is None:
        return None
    if cell.n == 1:
        return cell.interval
    half = _NORMAL * sum(variances) ** 0.5
    return within((cell.mean - half, cell.mean + half), cell.possible)


def joint_variances(cell: Cell) -> tuple[float, float] | None:
    """Return the variances of a mean over test images and over seeds; None where neither is known.

    That over images is of the intervals of the single runs, 0 where they have none; that over seeds is 0 for
    a single run.
    """
    widths = [s.high - s.low for s in cell.sources if s.low is not None and s.high is not None]
    if cell.mean is None or (not widths and cell.n < 2):
        return None
    of_images = mean(widths) / (2 * _NORMAL) if widths else 0.0
    return of_images**2, (cell.std or 0.0) ** 2 / cell.n


def build_cell(runs: Sequence[Numbered], metric: str, missing: tuple[int, ...] = ()) -> Cell:
    """Form the cell of one metric from the runs of one pretraining under one evaluation.

    A trial is one checkpoint under one evaluation seed. Exact repetitions of a trial count once; repetitions
    that disagree leave the cell without a mean.
    """
    sources = tuple(_source(run, metric) for run in runs)
    units = {m.unit for run in runs for m in run.record.metrics if m.label == metric}
    possible = possible_values(units.pop()) if len(units) == 1 else ANY_VALUE
    trials: dict[tuple[int | None, int], set[float]] = defaultdict(set)
    for source in sources:
        if source.value is not None:
            trials[source.pretrain_seed, source.seed].add(source.value)
    if any(len(found) > 1 for found in trials.values()):
        every = sorted({v for found in trials.values() for v in found})
        return Cell(sources, (), "evaluation seeds", tuple(every), missing, possible)
    pretrained: dict[int | None, list[float]] = defaultdict(list)
    for (pretrain_seed, _), found in sorted(trials.items(), key=lambda t: (str(t[0][0]), t[0][1])):
        pretrained[pretrain_seed] += found
    if len(pretrained) > 1:
        means = tuple(mean(values) for values in pretrained.values())
        return Cell(sources, means, "pretraining seeds", (), missing, possible)
    values = tuple(v for found in pretrained.values() for v in found)
    return Cell(sources, values, "evaluation seeds", (), missing, possible)


def _source(run: Numbered, metric: str) -> Source:
    record = run.record
    found = next((m for m in record.metrics if m.label == metric), None)
    values = (None, None, None) if found is None else (found.value, found.low, found.high)
    return Source(run.number, run.path, record.checkpoint_sha256, record.pretrain_seed, record.seed, *values)
