"""Derive a cause from measurements: paired differences, corrected for their number, and a margin."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.stats import t as student

from carryover.configs.counted import signed
from carryover.transfer.report.statistics import holm
from carryover.transfer.verify.evidence import Evidence
from carryover.transfer.verify.findings import Finding, Reading
from carryover.transfer.verify.hypotheses import Look
from carryover.transfer.verify.statistics import Mismatch

# What they were developed and judged on: docs/verify.md.
LEVEL: Final = 0.01
MARGIN: Final = 3.0
"""Points by which another reading must be better; for an encoder, and without a batch norm, twice that."""
FITS: Final = 0.03
"""Distance of batch statistics up to which a reading fits the images: those it was trained on had 0.003."""
OVERWHELMING: Final = 4 * MARGIN
"""Points by which a reading that is no size must be better to be named whatever the statistics say."""
FLOOR: Final = 0.1
"""Distance of batch statistics from which on a reading that fits needs to be no better, but no worse."""
CLOSER: Final = 0.5
"""Share of the file's own distance to which the reading that fits must bring it."""
_DEVIATIONS: Final = 4.0
FOREIGN: Final = 0.2
"""Running statistics are another network's where so many layers' are no nearer than exchanged ones."""


@dataclass(frozen=True)
class Compared:
    """One reading beside the file as it is; `p` is adjusted for all readings, `single` of this one alone."""

    look: Look
    evidence: Evidence
    difference: float | None
    deviation: float | None
    p: float | None
    single: float | None
    gain: float | None
    gain_deviation: float | None

    def better(self, among: int = 1) -> bool:
        """Return whether it classifies better by a margin, significantly as one of `among` readings."""
        norms = self.evidence.mismatch is not None
        margin = 2 * MARGIN if self.look.cause == "encoder" or not norms else MARGIN
        if self.difference is None or self.p is None or self.single is None:
            return False
        return self.difference >= margin and (self.single if among == 1 else self.p) < LEVEL

    @property
    def worse(self) -> bool:
        """Return whether it classifies significantly worse."""
        if self.difference is None or not self.deviation:
            return False
        return self.difference + _half(self.evidence, LEVEL, self.deviation) < 0


def compare(looks: Sequence[Look], found: Sequence[Evidence]) -> list[Compared]:
    """Compare every reading with the first one, image by image; p-values are adjusted for their number."""
    base = found[0]
    rows = []
    for evidence in found[1:]:
        rows.append((*_paired(base, evidence), *_gained(base.mismatch, evidence.mismatch)))
    known = [i for i, row in enumerate(rows) if row[2] is not None]
    adjusted = dict(zip(known, holm([rows[i][2] or 0.0 for i in known])))
    return [
        Compared(look, evidence, row[0], row[1], adjusted.get(i), row[2], row[3], row[4])
        for i, (look, evidence, row) in enumerate(zip(looks[1:], found[1:], rows))
    ]


def name(base: Evidence, compared: Sequence[Compared], estimated: Compared | None) -> Finding | None:
    """Return the reading, or the batch statistics, that explain why the file is off; None where it is not.

    Of a network with batch norms the statistics, which need no labels, choose one reading: the closest one,
    if it fits these images (`FITS`) and the file as it is does not by far. One test of its accuracy then
    confirms it. Where no reading fits, the images are of another kind than the training's: whatever reads
    better on them says nothing of the training, and only running statistics that are no nearer than exchanged
    ones in every reading are named. Encoders, each with statistics of its own, and networks without a batch
    norm are told apart by accuracy alone, by twice the margin and adjusted for the number of readings.
    """
    able = [c for c in compared if _explains(base, c, compared)]
    if able:
        best = min(able, key=lambda c: (_distance(c.evidence), -(c.difference or 0.0)))
        return Finding(best.look.cause, best.look.words, _why(base, best), best.look.remedy)  # type: ignore[arg-type]
    if estimated is None or base.mismatch is None:
        return None
    nearest = max((m.own for m in _mismatches(base, compared)), default=1.0)
    strange = 1 - nearest >= FOREIGN
    if strange and (estimated.difference is None or estimated.better()):
        return Finding(
            "batch-norm statistics",
            "the running statistics are not those of this network",
            f"in {1 - nearest:.0%} of the layers no nearer to these images than with channels exchanged;"
            f" estimated anew: {_why(base, estimated)}",
            "take a checkpoint that was saved whole, with its buffers",
        )
    return None


def undecided(base: Evidence, compared: Sequence[Compared]) -> list[str]:
    """Return what speaks for another reading without deciding it, in words."""
    if base.mismatch is None:
        return []
    closest = min((m.value for m in _mismatches(base, compared)), default=base.mismatch.value)
    if closest > FITS:
        return [
            "mean/std, channel order, stem, padding and size: in no reading are batch statistics those of the"
            f" pretraining (closest {closest:.2f}): these images are of another kind; try some of its own"
        ]
    said = []
    for c in compared:
        m = c.evidence.mismatch
        closer = m is not None and m.value <= CLOSER * base.mismatch.value and m.value <= FITS
        if closer and c.look.cause != "encoder":
            d = "" if c.difference is None else f", {signed(c.difference)} points"
            said.append(f"{c.look.cause}: {c.look.words}: batch statistics closer{d}; not confirmed")
    return said


def reading_of(cause: str, words: str, evidence: Evidence, compared: Compared | None = None) -> Reading:
    """Return a reading as it is reported."""
    knn, linear = (None if x is None else 100 * float(x.mean()) for x in (evidence.knn, evidence.linear))
    distance = None if evidence.mismatch is None else evidence.mismatch.value
    if compared is None or compared.difference is None or compared.deviation is None:
        return Reading(cause, words, knn, linear, mismatch=distance)
    half = _half(evidence, 0.025, compared.deviation)
    d = compared.difference
    return Reading(cause, words, knn, linear, d, d - half, d + half, compared.p, distance)


def _explains(base: Evidence, c: Compared, compared: Sequence[Compared]) -> bool:
    if base.mismatch is None or c.evidence.mismatch is None or c.look.cause == "encoder":
        return c.better(len(compared))
    before, after = base.mismatch.value, c.evidence.mismatch.value
    rivals = [r for r in compared if r.look.cause != "encoder" and r.evidence.mismatch is not None]
    closest = min(r.evidence.mismatch.value for r in rivals if r.evidence.mismatch is not None)
    if c.look.cause != "size" and c.better(len(compared)) and (c.difference or 0.0) >= OVERWHELMING:
        return True
    if after > closest or after > max(min(FITS, CLOSER * before), before / 10):
        return False
    assert c.gain is not None and c.gain_deviation is not None
    clear = c.gain > _DEVIATIONS * c.gain_deviation
    # The size of what images show moves statistics and accuracy as the size of the images does.
    certain = clear and before >= FLOOR and c.look.cause != "size" and not c.worse
    if certain:
        return True
    if c.look.cause == "size" and before < FLOOR:
        return False
    # Where statistics choose clearly it is one reading that is tested, else one of many.
    return c.better(1 if clear else len(compared))


def _mismatches(base: Evidence, compared: Sequence[Compared]) -> list[Mismatch]:
    found = [base.mismatch, *(c.evidence.mismatch for c in compared if c.look.cause != "encoder")]
    return [m for m in found if m is not None]


def _distance(evidence: Evidence) -> float:
    return 0.0 if evidence.mismatch is None else round(evidence.mismatch.value, 2)


def _paired(base: Evidence, other: Evidence) -> tuple[float | None, float | None, float | None]:
    """Return difference and deviation in points, and the one-sided p-value of no improvement."""
    if base.scores is None or other.scores is None:
        return None, None, None
    d = 100 * (other.scores - base.scores)
    difference, deviation = float(d.mean()), float(d.std(ddof=1) / np.sqrt(len(d)))
    if deviation == 0:
        return difference, deviation, 1.0 if difference <= 0 else 0.0
    return difference, deviation, float(student.sf(difference / deviation, len(d) - 1))


def _half(evidence: Evidence, level: float, deviation: float) -> float:
    """Return how far a one-sided interval of `1 - level` reaches beyond a mean of that deviation."""
    assert evidence.knn is not None
    return float(student.isf(level, len(evidence.knn) - 1)) * deviation


def _gained(base: Mismatch | None, other: Mismatch | None) -> tuple[float | None, float | None]:
    """Return by how much the batch statistics are closer, and the deviation of that on images drawn anew."""
    if base is None or other is None:
        return None, None
    paired = base.sample - other.sample
    return base.value - other.value, float(paired.std(ddof=1))


def _why(base: Evidence, c: Compared) -> str:
    parts = []
    if c.difference is not None and c.deviation is not None:
        half = _half(c.evidence, 0.025, c.deviation)
        low, high = c.difference - half, c.difference + half
        parts.append(
            f"so read, {signed(c.difference)} points ({signed(low)} to {signed(high)})"
            f" on the same {_count(base)} images"
        )
    if base.mismatch is not None and c.evidence.mismatch is not None:
        parts.append(
            f"batch statistics at a distance of {c.evidence.mismatch.value:.2f} from the running ones"
            f" instead of {base.mismatch.value:.2f}"
        )
    return "; ".join(parts)


def _count(evidence: Evidence) -> str:
    assert evidence.knn is not None
    return f"{len(evidence.knn):,}"
