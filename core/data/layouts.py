"""How each kind of data set lies on disk: from a root to files, labels and class names."""

import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.v2 import functional as F

from carryover.configs import UserError
from carryover.core.data.config import DataConfig
from carryover.core.data.datasets import Dataset, FileImages, MemoryImages, Paths


@dataclass(frozen=True)
class _Files:
    """What a layout holds: names relative to root, a label each (or none at all), class names by label."""

    root: Path
    names: list[str]
    labels: list[int]
    classes: list[str]


def open_layout(config: DataConfig) -> Dataset:
    """Find the images of a data set; nothing is decoded (except CIFAR, which comes in one piece).

    Raises UserError naming the path that is missing or empty, and the layout that was expected there.
    """
    root = config.root
    if root is None:
        raise UserError(f"data.root is not set: say where the {config.title} data set lies (data.root=/path)")
    root = root.expanduser()
    if config.kind in ("cifar10", "cifar100"):
        return _cifar(config, root)
    if not root.is_dir():
        raise UserError(f"data.root: {root}: no such folder; expected {_EXPECTED[config.kind]}")
    files = _LAYOUTS[config.kind](config, root)
    if not files.names:
        raise UserError(f"{root}: no images; expected {_EXPECTED[config.kind]}")
    paths = Paths.of(files.root, files.names)
    return FileImages(paths, files.labels or None, files.classes, config.resize, config.max_unreadable)


def _imagefolder(config: DataConfig, root: Path) -> _Files:
    """Read root/<split>/<class>/.../image; for train, where there are no splits, root/<class>/.../image."""
    folder = root / config.split
    if not folder.is_dir():
        if config.split != "train" or any((root / other).is_dir() for other in ("val", "test")):
            raise UserError(f"{folder}: no such folder (data.split: {config.split}); {_holds(root)}")
        folder = root
    classes = sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    if not classes:
        return _Files(folder, list(_images_below(folder)), [], [])
    loose = [e.name for e in os.scandir(folder) if _is_image(e.name)]
    if loose:
        raise UserError(
            f"{folder}: holds images ({loose[0]}) beside folders ({classes[0]});"
            f" expected {_EXPECTED['imagefolder']}"
        )
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = list(_images_below(folder / name))
        if not found:
            raise UserError(
                f"{folder / name}: no images in this class; expected files ending in"
                f" {', '.join(IMG_EXTENSIONS)}"
            )
        names += [f"{name}/{image}" for image in found]
        labels += [label] * len(found)
    return _Files(folder, names, labels, classes)


def _tiny_imagenet(config: DataConfig, root: Path) -> _Files:
    """Read train/<wnid>/images/*.JPEG, or val/images by val/val_annotations.txt; classes are the wnids."""
    train = root / "train"
    if not train.is_dir():
        raise UserError(f"{train}: no such folder; expected {_EXPECTED['tiny_imagenet']}")
    wnids = sorted(e.name for e in os.scandir(train) if e.is_dir() and not e.name.startswith("."))
    names: list[str] = []
    labels: list[int] = []
    if config.split == "train":
        for label, wnid in enumerate(wnids):
            found = list(_images_below(train / wnid / "images"))
            if not found:
                raise UserError(f"{train / wnid / 'images'}: no images in this class")
            names += [f"train/{wnid}/images/{image}" for image in found]
            labels += [label] * len(found)
        return _Files(root, names, labels, wnids)

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
    return _Files(root, names, labels, wnids)


def _image_list(config: DataConfig, root: Path) -> _Files:
    """Read one ``path[ label]`` a line, paths relative to root; labels are class indices from 0."""
    assert config.list_file is not None
    file = config.list_file.expanduser()
    if not file.is_file() and (root / file).is_file():
        file = root / file
    names: list[str] = []
    labels: list[int] = []
    for number, line in _lines(file):
        before, _, last = line.rpartition("\t" if "\t" in line else " ")
        labelled = bool(before.strip()) and last.strip().isdecimal()
        if names and labelled != bool(labels):
            raise UserError(
                f"{file}, line {number}: {'a label' if labelled else 'no label'}, unlike the lines before;"
                " expected 'path label' on every line or 'path' on every line"
            )
        names.append(before.strip() if labelled else line)
        if labelled:
            labels.append(int(last))
    return _Files(root, names, labels, [str(label) for label in range(max(labels, default=-1) + 1)])


def _cifar(config: DataConfig, root: Path) -> MemoryImages:
    """Read torchvision's pickled batches, whose checksums torchvision verifies before it unpickles them."""
    maker = CIFAR10 if config.kind == "cifar10" else CIFAR100
    layout = f"{config.kind} as torchvision keeps it: {root / maker.base_folder}/{maker.train_list[0][0]} ..."
    try:
        if config.download:
            root.mkdir(parents=True, exist_ok=True)
            with (root / f".{config.kind}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                data = maker(root, config.split == "train", download=True)
        else:
            data = maker(root, config.split == "train")
    except (RuntimeError, OSError) as error:
        asked = "could not be fetched" if config.download else "set data.download=true to fetch it"
        raise UserError(f"{root}: missing or damaged; expected {layout} ({asked}: {error})") from error
    pixels = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    if config.resize is not None:
        pixels = F.resize(pixels, [config.resize], antialias=True)
    return MemoryImages(pixels, [int(t) for t in data.targets], list(data.classes))


def _images_below(folder: Path) -> Iterator[str]:
    """Yield the images under a folder, relative to it, sorted; hidden files are not images."""
    if not folder.is_dir():
        return
    for directory, below, files in os.walk(folder, followlinks=True):
        below.sort()
        prefix = os.path.relpath(directory, folder)
        for name in sorted(files):
            if _is_image(name):
                yield name if prefix == "." else f"{prefix}/{name}"


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMG_EXTENSIONS) and not name.startswith(".")


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    try:
        text = file.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def _holds(root: Path) -> str:
    found = sorted(p.name for p in root.iterdir() if p.is_dir())
    return f"{root} holds {', '.join(found[:8])}" if found else f"{root} holds no folders"


_LAYOUTS: dict[str, Callable[[DataConfig, Path], _Files]] = {
    "imagefolder": _imagefolder,
    "tiny_imagenet": _tiny_imagenet,
    "list": _image_list,
}
_EXPECTED = {
    "imagefolder": "one folder a class with its images, under train (val, ...) or in the root itself",
    "tiny_imagenet": "Tiny-ImageNet's train/<wnid>/images/*.JPEG and val/val_annotations.txt",
    "list": "the folder that the paths in data.list_file are relative to",
}
