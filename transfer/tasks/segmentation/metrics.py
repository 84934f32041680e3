"""Confusion matrices of a segmenter's pixels."""

import numpy as np

from carryover.core.data.masks.dataset import IGNORED


def confusion(
    truth: np.ndarray, predicted: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count pixels by label and prediction; `IGNORED` pixels of the truth are left out.

    truth, predicted: integer arrays of one shape. Returns the labels, predictions and counts (int64) of the
    pairs that occur.
    """
    counted = truth != IGNORED
    cells = truth[counted].astype(np.int64) * classes + predicted[counted].astype(np.int64)
    pixels = np.bincount(cells, minlength=classes * classes)
    there = np.flatnonzero(pixels)
    return there // classes, there % classes, pixels[there]
