"""The training and test pairs of a recipe, read and checked before anything heavy is imported."""

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np

from carryover.configs import UserError
from carryover.core.data.defects import Defect, refuse_fatal, summarize
from carryover.core.data.leakage import test_in_train
from carryover.core.data.masks.check import check_pairs
from carryover.core.data.masks.config import SegmentationData
from carryover.core.data.masks.dataset import IGNORED, SegmentationDataset
from carryover.core.data.masks.layouts import code_of, pairs_of, split_name

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Splits:
    """What a segmenter is trained and tested on, with the defects that the recipe forgave."""

    train: SegmentationDataset
    test: SegmentationDataset
    defects: tuple[Defect, ...]


def read_splits(data: SegmentationData) -> Splits:
    """Read both splits.

    Raises
    ------
    UserError
        A missing root, folder or list, or defects that the recipe does not forgive (listed by file).
    """
    _require_root(data)
    train, train_defects, _ = _read(data, "train")
    test, test_defects, _ = _read(data, "test")
    for dataset, defects in ((train, train_defects), (test, test_defects)):
        log.info("%s: %d images; %s", dataset.name, len(dataset.images), summarize(defects, dataset.name))
    shared = test_in_train(
        [i.path for i in train.images], [i.path for i in test.images], data.defects.action("test_in_train")
    )
    refuse_fatal([*train_defects, *test_defects, *shared], data.title)
    return Splits(train, test, (*train_defects, *test_defects, *shared))


def check_masks(data: SegmentationData) -> list[Defect]:
    """Return every defect of both splits, with every pixel decoded, and log how common each class is.

    Behind ``carryover data check masks ROOT --recipe NAME``; raises UserError as `read_splits` does.
    """
    _require_root(data)
    defects: list[Defect] = []
    parts: tuple[Literal["train", "test"], ...] = ("train", "test")
    for part in parts:
        dataset, found, pixels = _read(data, part)
        defects += found
        _log_contents(dataset, pixels)
    return defects


def _log_contents(dataset: SegmentationDataset, pixels: np.ndarray) -> None:
    shares = pixels / max(1, pixels.sum())
    log.info(
        "%s: %d usable pairs; of all pixels: %s; ignored %.1f %%",
        dataset.name,
        len(dataset.images),
        ", ".join(
            f"{name} {100 * share:.1f} %" for name, share in zip(dataset.classes, shares, strict=False)
        ),
        100 * shares[IGNORED],
    )
    absent = [name for name, count in zip(dataset.classes, pixels, strict=False) if not count]
    if absent:
        log.warning("%s: no pixel of %s", dataset.name, ", ".join(absent))


def _require_root(data: SegmentationData) -> None:
    root = data.root.expanduser()
    if not root.is_dir():
        raise UserError(f"data.root: {root}: no such directory; say where {data.title} is with data.root=DIR")


def _read(
    data: SegmentationData, part: Literal["train", "test"]
) -> tuple[SegmentationDataset, list[Defect], np.ndarray]:
    name, code = split_name(data, part), code_of(data)
    images, defects, pixels = check_pairs(
        pairs_of(data, part),
        code,
        data.defects,
        name,
        data.orientation,
        data.classes if part == "train" else (),
    )
    return SegmentationDataset(name, data.classes, images, code), defects, pixels
