"""Every test image's score for every class: mean average precision of ranking the images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from carryover.transfer.results.outcomes.base import Counts, Outcomes, metric
from carryover.transfer.results.outcomes.detections import Ranked, resampled_ap
from carryover.transfer.results.record import Metric, Setting

ApRule = Literal["area", "11point"]


def average_precision(scores: np.ndarray, present: NDArray[np.bool_], rule: ApRule) -> float:
    """Return the average precision of ranking images by `scores`, as a fraction.

    "area" is the area under the precision-recall curve made monotone (VOC from 2010 on, and the benchmark's
    own code); "11point" the mean of the best precisions at recall 0, 0.1, ..., 1 (VOC2007's rule). Of images
    with equal scores, the first goes first. NaN where none shows the class.
    """
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(present[order])
    if not present.any():
        return float("nan")
    recall = hits / present.sum()
    precision = hits / np.arange(1, len(order) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if rule == "11point":
        reached = [envelope[recall >= t - 1e-12] for t in np.linspace(0, 1, 11)]
        return float(np.mean([r[0] if len(r) else 0.0 for r in reached]))
    steps = np.diff(recall, prepend=0.0)
    return float((steps * envelope).sum())


@dataclass(frozen=True, eq=False)
class ClassScores(Outcomes):
    """Scores of N images for C classes by D sets of classifiers.

    Attributes
    ----------
    rule
        How average precision is taken.
    params
        Of each set: sets of equal params are draws of one metric, which is their mean.
    presence
        (N, C) int8: 1 where an image shows the class, -1 where it does not; 0 leaves it out.
    scores
        (D, N, C) float32.
    """

    kind: ClassVar[str] = "class scores"
    # As of detections, whose average precision is the same.
    bias_rate: ClassVar[float] = 2 / 3

    rule: ApRule
    params: tuple[Mapping[str, Setting], ...]
    presence: NDArray[np.int8]
    scores: NDArray[np.float32]

    def settings(self) -> dict[str, Any]:
        return {"rule": self.rule, "params": [dict(p) for p in self.params]}

    def arrays(self) -> dict[str, np.ndarray]:
        return {"presence": self.presence, "scores": self.scores}

    @classmethod
    def of(cls, ids: tuple[str, ...], settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        params = tuple(settings["params"])
        return cls(ids, settings["rule"], params, arrays["presence"], arrays["scores"])

    def aps(self) -> NDArray[np.float64]:
        """Return the average precision of every set and class, (D, C), in percent."""
        found = np.empty((len(self.scores), self.presence.shape[1]))
        for c in range(found.shape[1]):
            counted = self.presence[:, c] != 0
            present = self.presence[counted, c] == 1
            for d, scores in enumerate(self.scores):
                found[d, c] = 100 * average_precision(scores[counted, c], present, self.rule)
        return found

    def metrics(self) -> tuple[Metric, ...]:
        values = self._means(self.aps())
        return tuple(metric("mAP", v, len(self.ids), p) for p, v in zip(self._distinct(), values))

    def resampled(self, counts: Counts) -> NDArray[np.float64]:
        weights = np.ascontiguousarray(counts.T.astype(np.float64))
        classes = self.presence.shape[1]
        found = np.empty((len(counts), len(self.scores), classes))
        for c in range(classes):
            shown = np.flatnonzero(self.presence[:, c] != 0)
            there = (self.presence[:, c] == 1) @ weights
            for d, scores in enumerate(self.scores):
                order = shown[np.argsort(-scores[shown, c], kind="stable")]
                ranked = Ranked(order, self.presence[order, c] == 1, np.zeros(len(order), dtype=bool))
                found[:, d, c] = np.where(there > 0, resampled_ap(ranked, there, weights, self.rule), np.nan)
        return np.array([self._means(aps) for aps in found])

    def _distinct(self) -> list[Mapping[str, Setting]]:
        return [p for i, p in enumerate(self.params) if p not in self.params[:i]]

    def _means(self, aps: NDArray[np.float64]) -> list[float]:
        """Return the mean over classes and draws of each metric; a class that no sample shows is left out."""
        of = [self._distinct().index(p) for p in self.params]
        each = [aps[[d for d, own in enumerate(of) if own == m]] for m in range(max(of) + 1)]
        return [float(np.nanmean(a)) if not np.isnan(a).all() else float("nan") for a in each]
