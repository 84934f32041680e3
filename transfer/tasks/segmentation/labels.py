"""Training images of a segmentation recipe."""

from dataclasses import replace

import numpy as np

from carryover.core.data.masks.dataset import load_labels
from carryover.core.data.masks.splits import Splits
from carryover.core.data.shares import draw_share
from carryover.transfer.tasks.segmentation.config import SegmentationConfig


def labeled_part(config: SegmentationConfig, splits: Splits) -> Splits:
    """Return the splits with `label_fraction` of the training images, and the test split whole.

    A class is in an image or not, whatever the number of its pixels.
    """
    if config.label_fraction == 1:
        return splits
    train, seed = splits.train, config.seed if config.label_seed is None else config.label_seed
    classes = len(train.classes)
    of_each = np.zeros((len(train.images), 256), dtype=np.int64)
    for row, image in zip(of_each, train.images):
        row += np.bincount(load_labels(image.mask, train.code, image.orientation).ravel(), minlength=256)
    present = (of_each[:, :classes] > 0).astype(np.int64)
    chosen = draw_share(present, train.classes, config.label_fraction, seed, "pixel")
    some = replace(train, images=tuple(train.images[i] for i in chosen))
    return replace(splits, train=some, train_pixels=of_each[chosen].sum(axis=0))
