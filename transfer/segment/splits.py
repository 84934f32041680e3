"""The training and test pairs of a recipe, read and checked before anything heavy is imported."""

import logging
from dataclasses import dataclass
from typing import Literal

from configs import UserError
from transfer.detect.defects import Defect, refuse_fatal, summarize
from transfer.segment.check import check_pairs
from transfer.segment.data_config import SegmentationData
from transfer.segment.datasets import SegmentationDataset
from transfer.segment.layouts import code_of, pairs_of, split_name

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
    root = data.root.expanduser()
    if not root.is_dir():
        raise UserError(f"data.root: {root}: no such directory; say where {data.title} is with data.root=DIR")
    train, train_defects = _read(data, "train")
    test, test_defects = _read(data, "test")
    for dataset, defects in ((train, train_defects), (test, test_defects)):
        log.info("%s: %d images; %s", dataset.name, len(dataset.images), summarize(defects, dataset.name))
    refuse_fatal([*train_defects, *test_defects], data.title)
    return Splits(train, test, (*train_defects, *test_defects))


def _read(data: SegmentationData, part: Literal["train", "test"]) -> tuple[SegmentationDataset, list[Defect]]:
    name, code = split_name(data, part), code_of(data)
    images, defects = check_pairs(pairs_of(data, part), code, data.defects, name)
    return SegmentationDataset(name, data.classes, images, code), defects
