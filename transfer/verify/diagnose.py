"""From measurements to a cause: paired differences, corrected for their number, and a margin."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.stats import t as student

from carryover.transfer.report.statistics import holm
from carryover.transfer.verify.evidence import Evidence
from carryover.transfer.verify.findings import Finding, Reading
from carryover.transfer.verify.hypotheses import Look
from carryover.transfer.verify.statistics import Mismatch

# What they were chosen and judged on: docs/verify.md.
LEVEL: Final = 0.01
MARGIN: Final = 3.0
"""Percentage points by which another reading must be better; for another encoder twice as many."""
CLOSER: Final = 0.5
"""Share of the file's own distance to which another reading must bring that of its batch statistics."""
FLOOR: Final = 0.1
"""Distance of batch statistics up to which nothing is read into it."""
BROKEN: Final = 0.3
"""Distance from which on running statistics may be another network's; without labels twice as far."""
_DEVIATIONS: Final = 4.0


@dataclass(frozen=True)
class Compared:
    """One reading beside the file as it is."""

    look: Look
    evidence: Evidence
    difference: float | None
    deviation: float | None
    p: float | None
    gain: float | None
    gain_deviation: float | None

    @property
    def better(self) -> bool:
        """Return whether it classifies better by a significant difference and the margin."""
        margin = 2 * MARGIN if self.look.cause == "encoder" else MARGIN
        return (
            self.difference is not None
            and self.p is not None
            and self.difference >= margin
            and self.p < LEVEL
        )

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
        Compared(look, evidence, row[0], row[1], adjusted.get(i), row[3], row[4])
        for i, (look, evidence, row) in enumerate(zip(looks[1:], found[1:], rows))
    ]


def name(base: Evidence, compared: Sequence[Compared], estimated: Compared | None) -> Finding | None:
    """Return the reading, or the batch statistics, that explain why the file is off; None where it is not.

    A reading is named in two cases. It classifies better, by a significant paired difference and a margin,
    and its batch statistics are not farther from its running ones. Or it brings batch statistics that were
    far from the running ones to less than half that distance, and classifies no worse (not an encoder, nor a
    size). Of several the one with the closest statistics is named, then the best.
    """
    able = [c for c in compared if _explains(base, c)]
    if able:
        best = min(able, key=lambda c: (_distance(c.evidence), -(c.difference or 0.0)))
        return Finding(best.look.cause, best.look.words, _why(base, best), best.look.remedy)  # type: ignore[arg-type]
    if estimated is None or base.mismatch is None:
        return None
    far = base.mismatch.value
    # Images of another kind move statistics too, and estimating them anew then helps a little.
    if estimated.difference is None:
        broken = far >= 2 * BROKEN
    else:
        broken = far >= BROKEN and estimated.better and estimated.difference >= 2 * MARGIN
    if broken:
        return Finding(
            "batch-norm statistics",
            "the running statistics are not those of this network",
            _why(base, estimated),
            "take a checkpoint that was saved whole, with its buffers",
        )
    return None


def reading_of(cause: str, words: str, evidence: Evidence, compared: Compared | None = None) -> Reading:
    """Return a reading as it is reported."""
    knn, linear = (None if x is None else 100 * float(x.mean()) for x in (evidence.knn, evidence.linear))
    distance = None if evidence.mismatch is None else evidence.mismatch.value
    if compared is None or compared.difference is None or compared.deviation is None:
        return Reading(cause, words, knn, linear, mismatch=distance)
    half = _half(evidence, 0.025, compared.deviation)
    d = compared.difference
    return Reading(cause, words, knn, linear, d, d - half, d + half, compared.p, distance)


def _explains(base: Evidence, c: Compared) -> bool:
    if base.mismatch is None or c.evidence.mismatch is None:
        return c.better
    before, after = base.mismatch.value, c.evidence.mismatch.value
    if c.look.cause != "encoder" and after > max(before, FLOOR):
        return False
    if c.better:
        return True
    # What an image looks like at another size moves statistics as other images do.
    if c.look.cause in ("encoder", "size") or c.worse or c.gain is None or c.gain_deviation is None:
        return False
    clearly = c.gain > _DEVIATIONS * c.gain_deviation
    return before >= FLOOR and after <= CLOSER * before and clearly


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
            f"so read, {c.difference:+.1f} points ({low:+.1f} to {high:+.1f})"
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
