"""mIoU, mAcc and aAcc from one confusion matrix over all pixels of a split."""

import math
from dataclasses import dataclass

import numpy as np

from carryover.core.data.masks.dataset import IGNORED
from carryover.transfer.results.record import Metric


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


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Count pixels by (label, prediction), (C, C) int64; `IGNORED` pixels of the truth are left out.

    truth, predicted: integer arrays of one shape.
    """
    counted = truth != IGNORED
    cells = truth[counted].astype(np.int64) * classes + predicted[counted].astype(np.int64)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def scores(matrix: np.ndarray) -> Scores:
    """Score a confusion matrix (C, C) of all images together (Long et al. 2015, Sec. 5).

    The IoU of a class that is in neither truth nor prediction, and the accuracy of one that is not in truth,
    are undefined and left out of the means (as in mmseg's IoUMetric).
    """
    right = np.diag(matrix).astype(np.float64)
    in_truth, in_prediction = matrix.sum(axis=1), matrix.sum(axis=0)
    iou = _ratio(right, in_truth + in_prediction - right)
    accuracy = _ratio(right, in_truth)
    overall = _ratio(right.sum()[None], in_truth.sum()[None])
    return Scores(iou, accuracy, _mean(iou), _mean(accuracy), float(overall[0]))


def as_metrics(found: Scores, n: int) -> tuple[Metric, ...]:
    """Return a record's metrics: mIoU, aAcc and mAcc of `n` images."""
    values = {"mIoU": found.miou, "aAcc": found.aacc, "mAcc": found.macc}
    return tuple(Metric(name=k, value=None if math.isnan(v) else v, n=n) for k, v in values.items())


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return 100 * np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan
