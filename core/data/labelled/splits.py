"""The images of a classification evaluation: both splits opened, their classes compared, labels chosen."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from carryover.configs import UserError
from carryover.configs.counted import counted
from carryover.core.data.called import called
from carryover.core.data.datasets import Dataset, FileImages
from carryover.core.data.defects import Defect, refuse_fatal, summarize
from carryover.core.data.labelled import subsets
from carryover.core.data.labelled.config import ClassifyData
from carryover.core.data.labelled.labels import FractionOfLabels, ImagesPerClass, Labels, ListedImages
from carryover.core.data.labelled.subsets import Indices
from carryover.core.data.layouts import NO_CLASSES, one_class
from carryover.core.data.leakage import identical, repeated_images, test_in_train
from carryover.core.data.opening import look_at, open_dataset, reasons_unreadable, report_unreadable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Splits:
    """Training and test images of the same classes, both with labels.

    The training images are not looked at before it is known which of them are used.
    """

    data: ClassifyData
    train: Dataset
    test: Dataset
    train_labels: list[int]
    classes: list[str]


@dataclass(frozen=True)
class LabeledSubset:
    """The training images whose labels are used.

    Attributes
    ----------
    images
        These images, checked, and decoded if they are few.
    indices
        Their positions in the training split.
    counts
        How many of every class.
    what
        The choice in words, for records.
    """

    images: Dataset
    indices: Indices
    counts: dict[str, int]
    what: str

    @property
    def labels(self) -> list[int]:
        """Their classes."""
        assert self.images.labels is not None
        return self.images.labels

    @property
    def positions(self) -> Indices:
        """Their positions in `images`: all of them."""
        return np.arange(len(self.images), dtype=np.int64)

    @property
    def digest(self) -> str:
        """A hash of which images these are."""
        return hashlib.sha256(self.indices.tobytes()).hexdigest()


def open_splits(data: ClassifyData) -> Splits:
    """Open both splits.

    Raises UserError for a split without labels, for splits whose classes differ, and for test images that are
    training images too, unless the recipe keeps them.
    """
    from carryover.core.data.prepared import build_dataset

    return _compared(data, open_dataset(data.train), build_dataset(data.test))


def look_at_splits(data: ClassifyData, labels: Labels, seed: int) -> None:
    """Open, check and compare the splits and choose labels as an evaluation does; decode no pixels.

    Imports no torch.

    Raises what `open_splits`, `open_selection` and `choose_labeled` raise.
    """
    splits = _compared(data, open_dataset(data.train), look_at(data.test))
    _compared_selection(data, splits, None if data.selection is None else look_at(data.selection))
    indices, _ = _chosen(labels, splits, seed)
    chosen = splits.train.take(indices)
    if isinstance(chosen, FileImages) and data.check != "none":
        report_unreadable(reasons_unreadable(chosen.paths, data.train), len(chosen), data.train)


def _compared(data: ClassifyData, train: Dataset, test: Dataset) -> Splits:
    for dataset, split in ((train, data.split), (test, data.test_split)):
        if dataset.labels is None:
            raise UserError(f"{Path(data.root or '') / split}: {NO_CLASSES}")
    unseen = sorted(set(test.classes) - set(train.classes))
    if unseen:
        known = _some(list(train.classes))
        raise UserError(
            f"the test split has {counted(unseen, 'class')} that training lacks: {_some(unseen)};"
            f" it has: {known}"
        )
    untested = sorted(set(train.classes) - set(test.classes))
    if untested:
        raise UserError(
            f"the test split lacks {len(untested)} of {counted(train.classes, 'training class')}:"
            f" {_some(untested)}"
        )
    if len(train.classes) < 2:
        raise UserError(f"{Path(data.root or '') / data.split}: {one_class(list(train.classes))}")
    _refuse_repeated(data, test, train)
    return Splits(data, train, test, list(train.labels or []), list(train.classes))


def open_selection(data: ClassifyData, splits: Splits) -> Dataset | None:
    """Open the split to choose on, if the recipe names one.

    Raises UserError for one without labels, whose classes are not those of the training images, or whose
    images are to be tested on.
    """
    from carryover.core.data.prepared import build_dataset

    found = None if data.selection is None else build_dataset(data.selection)
    return _compared_selection(data, splits, found)


def _compared_selection(data: ClassifyData, splits: Splits, dataset: Dataset | None) -> Dataset | None:
    if data.selection is None or dataset is None:
        return None
    where = f"data.selection_split: {Path(data.root or '') / data.selection.split}"
    if dataset.labels is None:
        raise UserError(f"{where}: {NO_CLASSES}")
    if list(dataset.classes) != splits.classes:
        other = sorted(set(dataset.classes) ^ set(splits.classes))
        raise UserError(f"{where}: its classes are not those of the training images: {_some(other)}")
    _refuse_repeated(data, dataset)
    if dataset.paths and splits.test.paths:
        shared = test_in_train(dataset.paths, splits.test.paths, data.test_in_train, "data.test_in_train")
        refuse_fatal(shared, called(data))
    return dataset


def _refuse_repeated(data: ClassifyData, tested: Dataset, train: Dataset | None = None) -> None:
    """Raise UserError for files that occur twice where the recipe does not keep them; log the others."""
    parts = [part for part in (train, tested) if part is not None and part.paths]
    same = identical([path for part in parts for path in part.paths or ()])
    found: list[Defect] = []
    if len(parts) == 2:
        taught, asked = (list(part.paths or ()) for part in parts)
        found += test_in_train(taught, asked, data.test_in_train, "data.test_in_train", same)
    for part in parts:
        names = [part.classes[label] for label in part.labels or ()]
        found += repeated_images(part.paths or (), names, same, data.two_labels, data.duplicate_image)
    refuse_fatal(found, called(data))
    if found:
        log.warning("%s", summarize(found, called(data)))


def choose_labeled(labels: Labels, splits: Splits, seed: int) -> LabeledSubset:
    """Choose the training images whose labels are used, and log how many there are of every class.

    Raises UserError when the data does not give what was asked for (see `core.data.labelled.subsets`).
    """
    from carryover.core.data.prepared import prepare

    indices, what = _chosen(labels, splits, seed)
    counts = subsets.per_class(splits.train_labels, splits.classes, indices)
    log.info("training on %s (%s)", subsets.describe(counts), what)
    images = splits.train if len(indices) == len(splits.train) else splits.train.take(indices)
    return LabeledSubset(prepare(images, splits.data.train), indices, counts, what)


def _chosen(labels: Labels, splits: Splits, seed: int) -> tuple[Indices, str]:
    """Return the positions of the images whose labels are used, and the choice in words."""
    targets, classes = splits.train_labels, splits.classes
    if isinstance(labels, FractionOfLabels):
        drawn_by = seed if labels.seed is None else labels.seed
        indices = subsets.take_fraction(targets, classes, labels.fraction, drawn_by)
        what = f"{100 * labels.fraction:g} % of every class, drawn by seed {drawn_by}"
    elif isinstance(labels, ImagesPerClass):
        drawn_by = seed if labels.seed is None else labels.seed
        indices = subsets.take_per_class(targets, classes, labels.images, drawn_by)
        what = f"{labels.images} of every class, drawn by seed {drawn_by}"
    elif isinstance(labels, ListedImages):
        names, source = subsets.read_list(labels.list)
        if splits.train.paths is None:
            raise UserError(f"labels: a list of file names needs images in files; these are not ({source})")
        indices = subsets.take_listed(splits.train.paths, targets, classes, names, source)
        what = f"list {source}"
    else:
        indices = subsets.take_all(targets, classes)
        what = "all"
    if isinstance(labels, ListedImages) and labels.images_per_class is not None:
        _require_counts(subsets.per_class(targets, classes, indices), *labels.images_per_class, labels.list)
    return indices, what


def _require_counts(counts: dict[str, int], fewest: int, most: int, source: str) -> None:
    wrong = [f"'{name}' has {n}" for name, n in counts.items() if not fewest <= n <= most]
    if wrong:
        raise UserError(
            f"{source}: {fewest} to {most} images of every class were expected, but {_some(wrong)};"
            " is this the data set that the list is of?"
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more
