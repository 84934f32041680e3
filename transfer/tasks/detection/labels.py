"""Training images of a detection recipe."""

from dataclasses import replace

import numpy as np

from carryover.core.data.objects.splits import Splits
from carryover.core.data.shares import draw_share
from carryover.transfer.tasks.detection.config import DetectionConfig


def labeled_part(config: DetectionConfig, splits: Splits) -> Splits:
    """Return the splits with `label_fraction` of the training images, and the test split whole."""
    if config.label_fraction == 1:
        return splits
    train, seed = splits.train, config.seed if config.label_seed is None else config.label_seed
    counts = np.zeros((len(train.images), len(train.classes)), dtype=np.int64)
    for row, image in zip(counts, train.images):
        known = image.annotation.labels[~image.annotation.iscrowd]
        row += np.bincount(known, minlength=len(train.classes))
    chosen = draw_share(counts, train.classes, config.label_fraction, seed, "object")
    return replace(splits, train=replace(train, images=tuple(train.images[i] for i in chosen)))
