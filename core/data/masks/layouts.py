"""Locations of images and masks in each layout."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from carryover.configs import UserError
from carryover.core.data.called import called
from carryover.core.data.digest import images_below
from carryover.core.data.masks.config import (
    Ade20kMasks,
    CityscapesMasks,
    FolderMasks,
    SegmentationData,
    VocMasks,
)
from carryover.core.data.masks.dataset import IGNORED, MaskCode, index_code
from carryover.core.data.names import located
from carryover.core.data.pictures import IMAGE_SUFFIXES
from carryover.core.data.voc_lists import images_by_name, listed

# Cityscapes' own table: the id of each evaluated class, in the order of their train ids.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


@dataclass(frozen=True)
class Pair:
    """An image and its mask; neither need exist."""

    id: str
    image: Path
    mask: Path


def pairs_of(data: SegmentationData, part: Literal["train", "test"]) -> list[Pair]:
    """List the pairs of a split in a fixed order.

    Raises UserError where a folder or a list is missing, or there is no image in it.
    """
    root = data.root.expanduser()
    if isinstance(data, VocMasks):
        parts = data.train if part == "train" else (data.test,)
        return [pair for p in parts for pair in _voc_pairs(root, p.split, root / p.masks)]
    if isinstance(data, FolderMasks):
        folders = data.train if part == "train" else data.test
        return _folder_pairs(root / folders.image_dir, root / folders.mask_dir, data.mask_suffix)
    split = data.train if part == "train" else data.test
    if isinstance(data, Ade20kMasks):
        return _folder_pairs(root / "images" / split, root / "annotations" / split, ".png")
    return _cityscapes_pairs(root, split, data.masks)


def code_of(data: SegmentationData) -> MaskCode:
    """Return how a layout's masks spell labels."""
    if isinstance(data, CityscapesMasks):
        if data.masks == "labelTrainIds":
            return index_code(len(data.classes))
        # Every other id of the table, and what lies outside the image, is void.
        labels = [IGNORED] * 256
        for label, index in enumerate(_CITYSCAPES_IDS):
            labels[index] = label
        return MaskCode(tuple(labels))
    if isinstance(data, Ade20kMasks):
        return index_code(len(data.classes), ignored=(0, IGNORED), first=1)
    if isinstance(data, FolderMasks):
        return _folder_code(data)
    return index_code(len(data.classes))


def split_name(data: SegmentationData, part: Literal["train", "test"]) -> str:
    """Return what a split is called in logs."""
    if part == "test":
        return f"{called(data)} {data.test_label}"
    if isinstance(data, VocMasks):
        return f"{called(data)} {'+'.join(p.split for p in data.train)}"
    if isinstance(data, FolderMasks):
        return f"{called(data)} {data.train.image_dir.as_posix()}"
    return f"{called(data)} {data.train}"


def _folder_code(data: FolderMasks) -> MaskCode:
    if data.palette is None:
        ignored = [data.ignore] if isinstance(data.ignore, int) else []
        # What lies before the first class has no label.
        return index_code(len(data.classes), [*ignored, *range(data.first_index)], first=data.first_index)
    colors = {color: label for label, color in enumerate(data.palette)}
    if isinstance(data.ignore, tuple):
        colors[data.ignore] = IGNORED
    return MaskCode((), colors)


def _voc_pairs(root: Path, split: str, masks: Path) -> list[Pair]:
    listing = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    try:
        lines = listed(listing)
    except OSError as error:
        raise UserError(f"{listing}: the list of the images of '{split}' cannot be read ({error})") from None
    if not lines:
        raise UserError(f"{listing}: lists no image")
    images = images_by_name(root / "JPEGImages")
    return [
        Pair(
            line.id,
            images.get(line.id, root / "JPEGImages" / f"{line.id}.jpg"),
            masks / f"{line.id}.png" if line.mask is None else located(root, line.mask),
        )
        for line in lines
    ]


def _folder_pairs(images: Path, masks: Path, suffix: str) -> list[Pair]:
    found = _images_in(images, (path for _, path in images_below(images)))
    if not masks.is_dir():
        raise UserError(f"{masks}: no such folder of masks")
    pairs = []
    for path in found:
        name = path.relative_to(images).with_suffix("").as_posix()
        pairs.append(Pair(name, path, masks / f"{name}{suffix}"))
    # Masks among the images, told apart by their suffix alone, are not images of their own.
    return [p for p in pairs if images != masks or not p.image.name.endswith(suffix)]


def _cityscapes_pairs(root: Path, split: str, masks: str) -> list[Pair]:
    folder = root / "leftImg8bit" / split
    found = _images_in(folder, folder.glob("*/*_leftImg8bit.png") if folder.is_dir() else ())
    pairs = []
    for path in found:
        stem = path.stem.removesuffix("_leftImg8bit")
        mask = root / "gtFine" / split / path.parent.name / f"{stem}_gtFine_{masks}.png"
        pairs.append(Pair(stem, path, mask))
    return pairs


def _images_in(folder: Path, paths: Iterable[Path]) -> list[Path]:
    found = sorted(p for p in paths if p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        what = "no image in this folder" if folder.is_dir() else "no such folder of images"
        raise UserError(f"{folder}: {what}")
    return found
