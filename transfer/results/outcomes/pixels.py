"""The confusion of every test image's pixels: mIoU, aAcc and mAcc."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from carryover.transfer.results.outcomes.base import Counts, Outcomes, metric
from carryover.transfer.results.record import Metric

_SAMPLES = 64


@dataclass(frozen=True)
class Scores:
    """Percentages; NaN where undefined.

    Attributes
    ----------
    iou, accuracy
        Of each class, (C,): pixels in truth and prediction over those in either, and over those in truth.
    miou, macc
        Their means over the classes where they are defined.
    aacc
        Share of all pixels that is right.
    """

    iou: np.ndarray
    accuracy: np.ndarray
    miou: float
    macc: float
    aacc: float


def scores(matrix: np.ndarray) -> Scores:
    """Score a confusion matrix (C, C) of all images, label by prediction (Long et al. 2015, Sec. 5).

    The IoU of a class that is in neither truth nor prediction, and the accuracy of one that is not in truth,
    are undefined and left out of the means (as in mmseg's IoUMetric).
    """
    right = np.diag(matrix).astype(np.float64)
    in_truth, in_prediction = matrix.sum(axis=1), matrix.sum(axis=0)
    iou = _ratio(right, in_truth + in_prediction - right)
    accuracy = _ratio(right, in_truth)
    overall = _ratio(right.sum()[None], in_truth.sum()[None])
    return Scores(iou, accuracy, _mean(iou), _mean(accuracy), float(overall[0]))


@dataclass(frozen=True, eq=False)
class Pixels(Outcomes):
    """Confusion matrices (C, C) of N images, of which only the entries that are not zero are kept.

    Attributes
    ----------
    names
        The C classes.
    image, label, prediction
        (E,): an entry's image, true class and predicted class.
    pixels
        (E,) int64, how many there are.
    """

    kind: ClassVar[str] = "pixels"

    names: tuple[str, ...]
    image: NDArray[np.int32]
    label: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    pixels: NDArray[np.int64]

    def settings(self) -> dict[str, Any]:
        return {"names": list(self.names)}

    def arrays(self) -> dict[str, np.ndarray]:
        return {k: getattr(self, k) for k in ("image", "label", "prediction", "pixels")}

    @classmethod
    def of(cls, ids: tuple[str, ...], settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        names = ("image", "label", "prediction", "pixels")
        return cls(ids, tuple(settings["names"]), *(arrays[n] for n in names))

    def matrix(self) -> NDArray[np.int64]:
        """Return the confusion matrix (C, C) of all images together, label by prediction."""
        return self._matrices(np.ones((1, len(self.ids)), dtype=np.int64))[0]

    def measured(self) -> int:
        """Return for how many classes the IoU is defined: mIoU is a mean over these."""
        return int(np.isfinite(scores(self.matrix()).iou).sum())

    def metrics(self) -> tuple[Metric, ...]:
        found, n = scores(self.matrix()), len(self.ids)
        return (metric("mIoU", found.miou, n), metric("aAcc", found.aacc, n), metric("mAcc", found.macc, n))

    def by_class(self) -> dict[str, dict[str, float]]:
        found = scores(self.matrix())
        named = {"IoU": found.iou, "accuracy": found.accuracy}
        return {
            name: {c: float(v) for c, v in zip(self.names, values) if np.isfinite(v)}
            for name, values in named.items()
        }

    def resampled(self, counts: Counts) -> NDArray[np.float64]:
        parts = (counts[i : i + _SAMPLES] for i in range(0, len(counts), _SAMPLES))
        found = [scores(matrix) for part in parts for matrix in self._matrices(part)]
        return np.array([[s.miou, s.aacc, s.macc] for s in found])

    def _matrices(self, counts: Counts) -> NDArray[np.int64]:
        c = len(self.names)
        cells = self.label.astype(np.int64) * c + self.prediction
        order = np.argsort(cells, kind="stable")
        occupied, first = np.unique(cells[order], return_index=True)
        matrices = np.zeros((len(counts), c * c), dtype=np.int64)
        if len(occupied):
            weighted = counts[:, self.image[order]] * self.pixels[order]
            matrices[:, occupied] = np.add.reduceat(weighted, first, axis=1)
        return matrices.reshape(-1, c, c)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return 100 * np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan
