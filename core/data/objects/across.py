"""Comparisons of training and test split before training: classes and images."""

from collections.abc import Hashable, Iterator
from pathlib import Path

from carryover.configs.counted import counted_of
from carryover.core.data.defects import LISTED, Defect, DefectPolicy
from carryover.core.data.leakage import test_in_train
from carryover.core.data.objects.dataset import DetectionDataset, DetectionImage


def compare_splits(
    train: DetectionDataset, test: DetectionDataset, policy: DefectPolicy, all_wanted: bool = False
) -> list[Defect]:
    """Return classes without an object in one of the splits, and test images that are training images.

    Parameters
    ----------
    all_wanted
        Every class should be trained on: a recipe names them. Otherwise those that are tested should:
        exporters list names that occur nowhere, such as that of the whole data set.
    """
    taught, tested = _labels(train), _labels(test)
    every = range(len(train.classes))
    defects = [
        *_absent(
            "absent_class",
            train,
            policy,
            [i for i in every if i not in taught and (all_wanted or i in tested)],
        ),
        *_absent(
            "untested_class",
            test,
            policy,
            [i for i in every if i not in tested and (all_wanted or i in taught)],
        ),
    ]
    copies = test_in_train(
        [image.path for image in train.images], [image.path for image in test.images], policy.test_in_train
    )
    return [*defects, *copies, *_saved_again(train, test, policy, {defect.file for defect in copies})]


def _absent(kind: str, split: DetectionDataset, policy: DefectPolicy, labels: list[int]) -> Iterator[Defect]:
    if not labels:
        return
    names = ", ".join(f"'{split.classes[label]}'" for label in labels[:LISTED])
    more = ", ..." if len(labels) > LISTED else ""
    purpose = "train on" if kind == "absent_class" else "test on"
    message = (
        f"{counted_of(labels, split.classes, 'class', 'has', 'have')} no object to {purpose}: {names}{more}"
    )
    yield policy.defect(Path(split.name), kind, message)


def _labels(dataset: DetectionDataset) -> set[int]:
    """Return the labels of objects that count: no crowds, none that is marked difficult."""
    counted = (i.annotation.labels[~(i.annotation.iscrowd | i.annotation.difficult)] for i in dataset.images)
    return {int(label) for labels in counted for label in labels}


def _saved_again(
    train: DetectionDataset, test: DetectionDataset, policy: DefectPolicy, known: set[Path]
) -> Iterator[Defect]:
    """Yield test images with a training image's name, size and boxes: the same image, encoded again.

    A name or an id alone says nothing: many data sets count both splits from 1.
    """
    trained = {key: image.path for image in train.images if (key := _what_it_shows(image)) is not None}
    for image in test.images:
        key = _what_it_shows(image)
        if key in trained and image.path not in known:
            message = f"has the name, size and boxes of the training image {trained[key]}"
            yield policy.defect(image.path, "test_in_train", message)


def _what_it_shows(image: DetectionImage) -> Hashable:
    """Return a key of what is annotated; None where there is too little to tell pictures apart."""
    found = image.annotation
    if not len(found):
        return None
    return image.path.stem, image.width, image.height, found.boxes.tobytes(), found.labels.tobytes()
