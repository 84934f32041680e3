"""The kinds of data sets that come with carryover: from a root to files, labels and classes (torch-free)."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from carryover.configs import UserError
from carryover.configs.counted import counted
from carryover.core.data.digest import Contents, images_below, listed, named_in
from carryover.core.data.flat_split import EXPECTED, labels_of_flat_split, truth_files
from carryover.core.data.label_table import EXPECTED as EXPECTED_LABELS
from carryover.core.data.label_table import contents_of_labels, labeled_files
from carryover.core.data.named_splits import Found, Names, list_files
from carryover.core.data.names import is_hidden, read_text
from carryover.core.data.pictures import IMAGE_SUFFIXES
from carryover.core.data.readers import Files, ImageSection, Reader, images_of_split

log = logging.getLogger(__name__)

FOLDER_A_CLASS = "one folder a class with its images, under train (val, ...) or in the root itself"
NO_CLASSES = (
    "no folder in it: images without labels; expected one folder a class, or a list (kind: list), or,"
    f" {EXPECTED}"
)
_TINY_IMAGENET = "Tiny-ImageNet's train/<wnid>/images/*.JPEG and val/val_annotations.txt"
_CIFAR_FILES = {
    "cifar10": ("cifar-10-batches-py", "data_batch_*", "test_batch", "batches.meta"),
    "cifar100": ("cifar-100-python", "train", "test", "meta"),
}


def _imagefolder(config: ImageSection, root: Path) -> Files:
    """Read root/<split>/<class>/.../image; for train, where there are no splits, root/<class>/.../image.

    A split without class folders takes its labels from the list that comes with it (`core.data.flat_split`).
    """
    if config.splits:
        return _drawn(config, root)
    folder = root / config.split
    if not folder.is_dir():
        if config.split != "train" or any((root / other).is_dir() for other in ("val", "test")):
            raise UserError(f"{folder}: no such folder (data.split: {config.split}); {_holds(root)}")
        folder = root
    classes = _folders_in(folder)
    if not classes:
        flat = list(_images_below(folder))
        truth, taught = truth_files(root, config.split), classes_beside(root, config.split)
        if not truth or not taught:
            return Files(folder, flat, [], [])
        return Files(folder, flat, labels_of_flat_split(truth, flat, taught), taught)
    if stray := stray_image(folder):
        raise UserError(f"{folder}: {stray}")
    names: list[str] = []
    labels: list[int] = []
    others: Counter[str] = Counter()
    for label, name in enumerate(classes):
        found = list(_images_below(folder / name, others))
        if not found:
            raise UserError(
                f"{folder / name}: no images in this class; expected files ending in"
                f" {', '.join(IMAGE_SUFFIXES)}"
            )
        names += [f"{name}/{image}" for image in found]
        labels += [label] * len(found)
    if others:
        log.warning("%s: %s", folder, passed_over(others))
    return Files(folder, names, labels, classes)


def _drawn(config: ImageSection, root: Path) -> Files:
    """Read a split of class folders in the root itself: what a draw or a list gives of all images."""
    classes = _folders_in(root)
    if classes and all(name.lower() in SPLITS and _folders_in(root / name) for name in classes):
        train = next((name for name in classes if name.lower().startswith("train")), classes[0])
        test = next((name for name in reversed(classes) if name != train), "test")
        raise UserError(
            f"{root}: its folders ({', '.join(classes)}) are splits of class folders, not classes; take them:"
            f" data.splits=null data.split={train} data.test_split={test}"
        )
    if stray := stray_image(root):
        raise UserError(f"{root}: {stray}")
    index = {name: label for label, name in enumerate(classes)}
    others: Counter[str] = Counter()
    names = [f"{name}/{image}" for name in classes for image in _images_below(root / name, others)]
    shared = Counter(name.rpartition(".")[0] for name in names)
    # Of two pictures that differ in their suffix alone, each keeps it.
    by_id = {stem if shared[stem := name.rpartition(".")[0]] == 1 else name: root / name for name in names}
    if others:
        log.warning("%s: %s", root, passed_over(others))
    groups = {image_id: image_id.split("/")[0] for image_id in by_id}
    found = Found(root, root, Names(by_id), list(by_id), groups=groups)
    ids, _ = found.members(config.split, config.splits, config.splits_seed)
    absent = [image_id for image_id in ids if image_id not in by_id]
    if absent:
        raise UserError(
            f"{root}: {counted(absent, 'listed image is', 'listed images are')} not there:"
            f" {', '.join(absent[:5])}"
        )
    kept = [by_id[image_id].relative_to(root).as_posix() for image_id in ids]
    return Files(root, kept, [index[name.split("/")[0]] for name in kept], classes)


SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")
"""What exporters call the folders of splits."""


_OF_OTHER_READERS = frozenset(
    {".heic", ".heif", ".jxl", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw", ".exr", ".czi", ".dcm"}
)
"""Suffixes of pictures that Pillow does not know of itself."""


def passed_over(suffixes: Counter[str]) -> str:
    """Return which pictures are not read, by their suffix."""
    counted = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common())
    return f"pictures that are not read: {counted}; read are {', '.join(IMAGE_SUFFIXES)}"


def one_class(classes: list[str]) -> str:
    """Return why a split of one class cannot be evaluated."""
    return (
        f"only one class ({', '.join(classes)}), so there is nothing to tell apart; expected"
        f" {FOLDER_A_CLASS}: do the class folders lie deeper?"
    )


def stray_image(folder: Path) -> str:
    """Return what is wrong with a split that holds images beside its class folders; "" for none."""
    loose = sorted(e.name for e in os.scandir(folder) if not e.is_dir() and _is_image(e.name))
    folders = _folders_in(folder)
    if not loose or not folders:
        return ""
    return f"holds images ({loose[0]}) beside folders ({folders[0]}); expected {FOLDER_A_CLASS}"


def classes_beside(root: Path, split: str) -> list[str]:
    """Return the class folders of the training split, or of another one beside `split`."""
    for other in ("train", *_folders_in(root)):
        if other != split and (root / other).is_dir() and (classes := _folders_in(root / other)):
            return classes
    return []


def _folders_in(folder: Path) -> list[str]:
    """Return the names of the folders directly inside one, sorted; hidden ones are none."""
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and not is_hidden(e.name))


def _imagefolder_files(config: ImageSection, root: Path) -> Contents:
    if config.splits:
        lists = [path for told in config.splits.values() for path in list_files(root, str(told))]
        return Contents(tuple((f.name, f) for f in lists), tuple(images_below(root)))
    found = images_of_split(config, root)
    folder = root / config.split
    if not folder.is_dir() or _folders_in(folder):
        return found
    return found + Contents(tuple((file.name, file) for file in truth_files(root, config.split)))


def _tiny_imagenet(config: ImageSection, root: Path) -> Files:
    """Read train/<wnid>/images/*.JPEG, or val/images by val/val_annotations.txt; classes are the wnids."""
    train = root / "train"
    if not train.is_dir():
        raise UserError(f"{train}: no such folder; expected {_TINY_IMAGENET}")
    wnids = _folders_in(train)
    names: list[str] = []
    labels: list[int] = []
    if config.split == "train":
        for label, wnid in enumerate(wnids):
            found = list(_images_below(train / wnid / "images"))
            if not found:
                raise UserError(f"{train / wnid / 'images'}: no images in this class")
            names += [f"train/{wnid}/images/{image}" for image in found]
            labels += [label] * len(found)
        return Files(root, names, labels, wnids)

    annotations = root / "val" / "val_annotations.txt"
    index = {wnid: label for label, wnid in enumerate(wnids)}
    for number, line in _lines(annotations):
        image, wnid, *_ = [*line.split("\t"), ""]
        if wnid not in index:
            raise UserError(
                f"{annotations}, line {number}: class {wnid!r} has no folder in {train};"
                " expected an image's name, a tab and its class"
            )
        names.append(f"val/images/{image}")
        labels.append(index[wnid])
    return Files(root, names, labels, wnids)


def _image_list(config: ImageSection, root: Path) -> Files:
    """Read one ``path[ label]`` a line, paths relative to root; labels are class indices from 0."""
    assert config.list_file is not None
    file = config.list_file.expanduser()
    if not file.is_file() and (root / file).is_file():
        file = root / file
    names: list[str] = []
    labels: list[int] = []
    for number, line in _lines(file):
        before, _, last = line.rpartition("\t" if "\t" in line else " ")
        labeled = bool(before.strip()) and last.strip().isdecimal()
        if names and labeled != bool(labels):
            raise UserError(
                f"{file}, line {number}: {'a label' if labeled else 'no label'}, unlike the lines before;"
                " expected 'path label' on every line or 'path' on every line"
            )
        names.append(before.strip() if labeled else line)
        if labeled:
            labels.append(int(last))
    return Files(root, names, labels, [str(label) for label in range(max(labels, default=-1) + 1)])


def _inaturalist(config: ImageSection, root: Path) -> Files:
    """Read <split>.json with images, annotations and categories; classes are the categories by id.

    Their names repeat: 2018's are numbers. Raises UserError for a missing or malformed file, an image without
    a category, or an absent image.
    """
    from pydantic import ValidationError

    from carryover.core.data.inaturalist import read_annotations

    file = root / f"{config.split}.json"
    try:
        read = read_annotations(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(s) for s in first["loc"])
        raise UserError(f"{file}: not iNaturalist's annotations: {where}: {first['msg']}") from None
    order = {category.id: label for label, category in enumerate(sorted(read.categories, key=lambda c: c.id))}
    label_of = {a.image_id: order.get(a.category_id) for a in read.annotations}
    bare = [image.file_name for image in read.images if label_of.get(image.id) is None]
    if bare:
        raise UserError(f"{file}: {counted(bare, 'image')} without a known category: {', '.join(bare[:5])}")
    absent = [image.file_name for image in read.images if not (root / image.file_name).is_file()]
    if absent:
        raise UserError(
            f"{file}: {counted(absent, 'image is', 'images are')} not there: {', '.join(absent[:5])}"
        )
    labels = [label for image in read.images if (label := label_of[image.id]) is not None]
    names = [f"{category.id}:{category.name}" for category in sorted(read.categories, key=lambda c: c.id)]
    return Files(root, [image.file_name for image in read.images], labels, names)


def _cifar(config: ImageSection, root: Path) -> Any:
    from carryover.core.data.cifar import read_cifar

    return read_cifar(config, root)


def _cifar_files(config: ImageSection, root: Path) -> Contents:
    folder, *patterns = _CIFAR_FILES[config.kind]
    found = sorted({path for pattern in patterns for path in (root / folder).glob(pattern)})
    return Contents(texts=tuple((path.name, path) for path in found))


def _tiny_imagenet_files(config: ImageSection, root: Path) -> Contents:
    annotations = ("val_annotations.txt", root / "val" / "val_annotations.txt")
    texts = () if config.split == "train" else (annotations,)
    return Contents(texts, tuple(images_below(root / config.split)))


def _listed_files(config: ImageSection, root: Path) -> Contents:
    assert config.list_file is not None
    return listed(root, config.list_file)


def _inaturalist_files(config: ImageSection, root: Path) -> Contents:
    file = root / f"{config.split}.json"
    return Contents(((file.name, file),), tuple(named_in(file, root)))


def _images_below(folder: Path, others: Counter[str] | None = None) -> Iterator[str]:
    """Yield the images under a folder, relative to it, sorted; hidden files are not images.

    `others` counts suffixes of pictures that are not read.
    """
    if not folder.is_dir():
        return
    for directory, below, files in os.walk(folder, followlinks=True):
        below[:] = sorted(name for name in below if not is_hidden(name))
        prefix = os.path.relpath(directory, folder)
        for name in sorted(files):
            if _is_image(name):
                yield name if prefix == "." else f"{prefix}/{name}"
            elif others is not None and is_other_picture(name):
                others[Path(name).suffix.lower()] += 1


def is_other_picture(name: str) -> bool:
    """Return whether a file is a picture, by its suffix, that no data set is read from."""
    suffix = Path(name).suffix.lower()
    known = suffix in Image.registered_extensions() or suffix in _OF_OTHER_READERS
    return known and not (_is_image(name) or is_hidden(name))


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    try:
        text = read_text(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def _holds(root: Path) -> str:
    found = sorted(p.name for p in root.iterdir() if p.is_dir())
    return f"{root} holds {', '.join(found[:8])}" if found else f"{root} holds no folders"


IMAGEFOLDER = Reader(FOLDER_A_CLASS, _imagefolder, _imagefolder_files)
CIFAR10 = Reader("CIFAR-10 as torchvision keeps it", _cifar, _cifar_files, ("train", "test"))
CIFAR100 = Reader("CIFAR-100 as torchvision keeps it", _cifar, _cifar_files, ("train", "test"))
TINY_IMAGENET = Reader(_TINY_IMAGENET, _tiny_imagenet, _tiny_imagenet_files, ("train", "val"))
LIST = Reader("the folder that the paths in data.list_file are relative to", _image_list, _listed_files)
CSV = Reader(EXPECTED_LABELS, labeled_files, contents_of_labels)
INATURALIST = Reader("iNaturalist's own annotations, <split>.json", _inaturalist, _inaturalist_files)
