"""Predictions of a detector for one image: every backend returns them to the metrics."""

from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from carryover.configs.errors import UserError, WorkError
from carryover.core.data.objects.dataset import Rle


@dataclass(frozen=True)
class ImagePrediction:
    """The n detections in one image; an image without detections has n = 0.

    Attributes
    ----------
    image_id
        The `DetectionImage.id` they belong to.
    boxes
        (n, 4) ``[x1, y1, x2, y2)`` in pixels of the original image, continuous and 0-based.
    scores
        (n,) confidences.
    labels
        (n,) integers in 0..C-1.
    masks
        n compressed RLEs of the size of the original image, or None where there are no masks.
    """

    image_id: str | int
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: tuple[Rle, ...] | None = None

    def __post_init__(self) -> None:
        n = len(self.scores)
        if self.boxes.shape != (n, 4) or self.scores.shape != (n,) or self.labels.shape != (n,):
            raise ValueError(
                f"image {self.image_id}: boxes {self.boxes.shape}, scores {self.scores.shape} and labels"
                f" {self.labels.shape} must be (n, 4), (n,) and (n,) of one n"
            )
        if self.masks is not None and len(self.masks) != n:
            raise ValueError(f"image {self.image_id}: {len(self.masks)} masks for {n} detections")


def encode_masks(masks: np.ndarray) -> tuple[Rle, ...]:
    """Return (n, height, width) masks of 0 and 1 as n compressed RLEs."""
    return tuple(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks)


def refuse_unscorable(
    predictions: Sequence[ImagePrediction], image_ids: Container[str | int], n_classes: int, name: str
) -> None:
    """Check that predictions can be scored on the data set called `name`.

    Raises UserError for an unknown image, one with two predictions, or a label outside 0..C-1; WorkError
    for boxes or scores that are not finite.
    """
    seen: set[str | int] = set()
    for p in predictions:
        where = f"prediction for image {p.image_id!r}"
        if p.image_id not in image_ids:
            raise UserError(f"{where}: not in {name}")
        if p.image_id in seen:
            raise UserError(f"{where}: there are two of them, and one was expected")
        seen.add(p.image_id)
        if not (np.isfinite(p.boxes).all() and np.isfinite(p.scores).all()):
            raise WorkError(f"{where}: boxes or scores that are not finite")
        if len(p.labels) and not 0 <= p.labels.min() <= p.labels.max() < n_classes:
            low, high = p.labels.min(), p.labels.max()
            raise UserError(f"{where}: labels {low}..{high}, but {name} has {n_classes} classes")
