"""Which training images of a detection recipe are trained on."""

import logging
from dataclasses import replace

import numpy as np

from carryover.core.data.objects.splits import Splits
from carryover.core.data.shares import take_share
from carryover.transfer.tasks.detection.config import DetectionConfig

log = logging.getLogger(__name__)


def labelled_part(config: DetectionConfig, splits: Splits) -> Splits:
    """Return the splits with `label_fraction` of the training images, and the test split whole."""
    if config.label_fraction == 1:
        return splits
    train, seed = splits.train, config.seed if config.label_seed is None else config.label_seed
    counts = np.zeros((len(train.images), len(train.classes)), dtype=np.int64)
    for row, image in zip(counts, train.images):
        known = image.annotation.labels[~image.annotation.iscrowd]
        row += np.bincount(known, minlength=len(train.classes))
    chosen, absent = take_share(counts, train.classes, config.label_fraction, seed)
    share = f"{100 * config.label_fraction:g} % of the training images"
    log.info("%s: %d of %d, drawn by seed %d", share, len(chosen), len(train.images), seed)
    if absent:
        log.warning("%s have no object of %s", share, ", ".join(absent))
    return replace(splits, train=replace(train, images=tuple(train.images[i] for i in chosen)))
