"""The training and test pairs of a recipe, read and checked before anything heavy is imported."""

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np

from carryover.configs import UserError
from carryover.core.data.called import called
from carryover.core.data.defects import Defect, refuse_fatal, summarize
from carryover.core.data.leakage import test_in_train
from carryover.core.data.masks.check import check_pairs
from carryover.core.data.masks.compare import MaskCounts, compare_masks
from carryover.core.data.masks.config import SegmentationData
from carryover.core.data.masks.dataset import IGNORED, SegmentationDataset
from carryover.core.data.masks.layouts import code_of, pairs_of, split_name

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Splits:
    """Training and test data of a segmenter, with the defects that the recipe accepts.

    Attributes
    ----------
    train_pixels, test_pixels
        (256,) pixels of each label in the masks of a split.
    """

    train: SegmentationDataset
    test: SegmentationDataset
    defects: tuple[Defect, ...]
    train_pixels: np.ndarray
    test_pixels: np.ndarray


def read_splits(data: SegmentationData) -> Splits:
    """Read both splits.

    Raises
    ------
    UserError
        A missing root, folder or list, or defects that the recipe does not forgive (listed by kind).
    """
    splits = scan_splits(data)
    log.info("%s", summarize(splits.defects, called(data)))
    refuse_fatal(splits.defects, called(data))
    return splits


def check_masks(data: SegmentationData) -> list[Defect]:
    """Return every defect of both splits, with every pixel decoded, and log how common each class is.

    Behind ``carryover data check masks ROOT --recipe NAME``; raises UserError as `read_splits` does.
    """
    splits = scan_splits(data)
    for dataset, pixels in ((splits.train, splits.train_pixels), (splits.test, splits.test_pixels)):
        log.info("%s: %d usable pairs; %s", dataset.name, len(dataset.images), shares(dataset, pixels))
    return list(splits.defects)


def scan_splits(data: SegmentationData) -> Splits:
    """Read as `read_splits` does, but return fatal defects with the others instead of raising them."""
    root = data.root.expanduser()
    if not root.is_dir():
        raise UserError(
            f"data.root: {root}: no such directory; set data.root=DIR to the directory of {data.title}"
        )
    train, train_defects, train_counts = _read(data, "train")
    test, test_defects, test_counts = _read(data, "test")
    compared: list[Defect] = []
    if train.images and test.images:
        compared = compare_masks(train_counts, test_counts, data.classes, data.defects, root)
        pictures = [image.path for image in train.images], [image.path for image in test.images]
        compared += test_in_train(*pictures, data.defects.test_in_train)
    defects = (*train_defects, *test_defects, *compared)
    return Splits(train, test, defects, train_counts.pixels, test_counts.pixels)


def shares(dataset: SegmentationDataset, pixels: np.ndarray) -> str:
    """Return in words which part of all pixels each class has."""
    parts = 100 * pixels / max(1, pixels.sum())
    of_each = ", ".join(f"{name} {part:.1f} %" for name, part in zip(dataset.classes, parts, strict=False))
    return f"of all pixels: {of_each}; ignored {parts[IGNORED]:.1f} %"


def _read(
    data: SegmentationData, part: Literal["train", "test"]
) -> tuple[SegmentationDataset, list[Defect], MaskCounts]:
    name, code = split_name(data, part), code_of(data)
    images, defects, counts = check_pairs(pairs_of(data, part), code, data.defects, name, data.orientation)
    return SegmentationDataset(name, data.classes, images, code), defects, counts
