"""Check class folders of images: ImageNet's layout, torchvision's ImageFolder."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from carryover.configs.errors import UserError
from carryover.core.data.decoding import undecodable
from carryover.core.data.defects import Action, Defect
from carryover.core.data.digest import images_below
from carryover.core.data.flat_split import labels_of_flat_split, truth_files
from carryover.core.data.layouts import (
    NO_CLASSES,
    SPLITS,
    classes_beside,
    is_other_picture,
    one_class,
    passed_over,
    stray_image,
)
from carryover.core.data.leakage import identical, repeated_images, test_in_train
from carryover.core.data.names import is_hidden

log = logging.getLogger(__name__)

_ByClass = dict[str, list[Path]]


def check_imagefolder(root: Path) -> list[Defect]:
    """Return the defects of ``root/{train,val,test}/CLASS/...``, or of ``root/CLASS/...``.

    A flat folder of validation images is read with the list of their classes (`core.data.flat_split`).
    Fatal, as in an evaluation: unreadable images (``drop`` where there are no splits: pretraining skips and
    counts them), classes without images, classes that are not in every split, one class alone, images beside
    class folders, and test images that are training images too. Told: pictures whose suffix is not read, and
    images that are byte for byte the same inside a split, in one class or under two.

    Raises UserError where `root` has no class folders.
    """
    if not root.is_dir():
        raise UserError(f"{root}: not a folder; expected train/ and val/, or one folder a class")
    splits = {name: root / name for name in SPLITS if (root / name).is_dir()} or {"": root}
    images = {name: _images_of(root, name, folder) for name, folder in splits.items()}
    if "test" in splits and not images["test"]:
        log.info("%s: no class folders, so images without labels; passed over", splits["test"])
        del images["test"], splits["test"]
    if not images:
        raise UserError(f"{root}: expected train/ and val/, or one folder a class")
    for name, classes in images.items():
        if not classes:
            raise UserError(f"{splits[name]}: {NO_CLASSES}")
        log.info("%s: %d images, %d classes", splits[name], sum(map(len, classes.values())), len(classes))
    defects = [
        Defect(splits[name], kind, message, action)
        for name, classes in images.items()
        for kind, message, action in _of_split(splits[name], classes)
    ]
    defects += _class_mismatches({splits[name]: classes for name, classes in images.items()})
    for name, classes in images.items():
        for class_name, paths in classes.items():
            if not paths:
                message = f"class '{class_name}' has no image"
                defects.append(Defect(splits[name] / class_name, "empty_class", message, "fatal"))
    pictures = {
        name: [path for group in classes.values() for path in group] for name, classes in images.items()
    }
    everything = [path for of_split in pictures.values() for path in of_split]
    # Pretraining skips and counts such images; an evaluation tolerates none that its recipe does not.
    action: Action = "drop" if "" in splits else "fatal"
    for path, found in undecodable(everything, root, str(root)).items():
        message = f"cannot be decoded ({found.reason})"
        defects.append(Defect(path, found.kind, message, action, ("fatal", "1"), "data.max_unreadable"))
    same = identical(everything)
    taught = pictures.get("train", [])
    for name in pictures.keys() - {"train", ""}:
        defects += test_in_train(taught, pictures[name], "fatal", "data.test_in_train", same)
    for name, classes in images.items():
        named = [class_name for class_name, paths in classes.items() for _ in paths]
        defects += repeated_images(pictures[name], named, same)
    return defects


def _of_split(folder: Path, classes: _ByClass) -> Iterator[tuple[str, str, Action]]:
    """Yield what is wrong with one split as such."""
    if stray := stray_image(folder):
        yield "stray_image", stray, "fatal"
    if len(classes) == 1:
        yield "single_class", one_class(list(classes)), "fatal"
    files = (name for _, _, names in os.walk(folder) for name in names)
    others = Counter(Path(name).suffix.lower() for name in files if is_other_picture(name))
    if others:
        yield "passed_over", passed_over(others), "keep"


def _images_of(root: Path, split: str, folder: Path) -> _ByClass:
    found = _images_by_class(folder)
    truth = [] if found or not split else truth_files(root, split)
    classes = classes_beside(root, split) if truth else []
    if not classes:
        return found
    paths = dict(images_below(folder))
    labels = labels_of_flat_split(truth, list(paths), classes)
    found = {name: [] for name in classes}
    for path, label in zip(paths.values(), labels, strict=True):
        found[classes[label]].append(path)
    return found


def _images_by_class(folder: Path) -> _ByClass:
    return {
        entry.name: sorted(path for _, path in images_below(entry))
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and not is_hidden(entry.name)
    }


def _class_mismatches(images: dict[Path, dict[str, list[Path]]]) -> list[Defect]:
    everything = sorted({name for classes in images.values() for name in classes})
    return [
        Defect(folder, "class_mismatch", f"class '{name}' is missing here, but is in another split", "fatal")
        for folder, classes in images.items()
        for name in everything
        if name not in classes
    ]
