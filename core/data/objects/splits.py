"""The training and test images of a recipe, read and checked before anything heavy is imported."""

import logging
from dataclasses import dataclass
from typing import Literal

from carryover.configs import UserError
from carryover.core.data.called import called
from carryover.core.data.defects import Defect, refuse_fatal, summarize
from carryover.core.data.objects.across import compare_splits
from carryover.core.data.objects.boxes import read_boxes
from carryover.core.data.objects.coco import read_coco
from carryover.core.data.objects.config import BoxesData, CocoData, DetectionData, VocData
from carryover.core.data.objects.dataset import DetectionDataset
from carryover.core.data.objects.voc import read_voc

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Splits:
    """Training and test data of a detector, with the defects that the recipe accepts."""

    train: DetectionDataset
    test: DetectionDataset
    defects: tuple[Defect, ...]


def read_splits(data: DetectionData, needs_masks: bool) -> Splits:
    """Read both splits.

    Raises
    ------
    UserError
        A missing root or file, defects that the recipe does not forgive (listed by file), splits with
        different classes, a training split without objects, or without masks where `needs_masks`.
    """
    root = data.root.expanduser()
    if not root.is_dir():
        raise UserError(
            f"data.root: {root}: no such directory; set data.root=DIR to the directory of {data.title}"
        )
    if isinstance(data, BoxesData):
        (train, train_defects), (test, test_defects) = read_boxes(data, (data.train, (data.test,)))
    else:
        train, train_defects = _read(data, "train", needs_masks)
        test, test_defects = _read(data, "test", needs_masks)
    for dataset, defects in ((train, train_defects), (test, test_defects)):
        log.info("%s", summarize(defects, dataset.name))
    if train.classes != test.classes:
        raise UserError(
            f"{train.name} and {test.name} have different classes: {difference(train.classes, test.classes)}"
        )
    objects = [len(i.annotation) - int(i.annotation.iscrowd.sum()) for i in train.images]
    if not any(objects):
        raise UserError(f"{train.name}: no object of {', '.join(train.classes)} in any image")
    if all(i.annotation.difficult.all() for i in train.images):
        raise UserError(
            f"{train.name}: all {sum(objects)} objects are marked difficult: no object is left to train on"
        )
    compared = compare_splits(train, test, data.defects, all_wanted=not isinstance(data, CocoData))
    if compared:
        log.info("%s", summarize(compared, called(data)))
    refuse_fatal(compared, called(data))
    if needs_masks:
        for dataset in (train, test):
            if not any(mask for i in dataset.images for mask in i.annotation.masks or ()):
                raise UserError(f"{dataset.name}: model.masks is true, but the annotations hold no masks")
    return Splits(train, test, (*train_defects, *test_defects, *compared))


def _read(
    data: VocData | CocoData, part: Literal["train", "test"], needs_masks: bool
) -> tuple[DetectionDataset, list[Defect]]:
    root = data.root.expanduser()
    if isinstance(data, VocData):
        lists = data.train if part == "train" else (data.test,)
        splits = [data.year_and_list(s) for s in lists]
        return read_voc(root, splits, data.classes, data.defects, data.orientation, data.first_pixel)
    split = data.train if part == "train" else data.test
    file, images = root / split.annotations, root / split.images
    return read_coco(file, images, data.defects, orientation=data.orientation, needs_masks=needs_masks)


def difference(ours: tuple[str, ...], theirs: tuple[str, ...]) -> str:
    """Return the differences of two lists of classes."""
    only = sorted(set(ours) ^ set(theirs))
    return ", ".join(map(repr, only[:10])) if only else "the same names in another order"
