"""Read the Pascal VOC layout: JPEGImages/, Annotations/*.xml and ImageSets/Main/*.txt."""

from collections.abc import Sequence
from pathlib import Path

from carryover.configs.errors import UserError
from carryover.core.data.defects import Defect, DefectPolicy, refuse_fatal
from carryover.core.data.objects.dataset import DetectionDataset
from carryover.core.data.objects.settle import FirstPixel, settled_dataset
from carryover.core.data.objects.voc_xml import VocRecord, read_record
from carryover.core.data.pictures import Orientation, in_parallel
from carryover.core.data.voc_lists import (
    LISTINGS,
    VocFiles,
    ids_of_folder,
    images_by_name,
    is_of_one_class,
    listed,
    side_by_side,
)

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
"""The twenty classes in the order of the VOC development kit."""

Split = tuple[int | None, str]
"""(year, name of the list in ImageSets/Main); the year may be None where the root is one VOC folder."""


def read_voc(
    root: Path,
    splits: Sequence[Split],
    classes: Sequence[str] | None = VOC_CLASSES,
    policy: DefectPolicy | None = None,
    orientation: Orientation = "exif",
    first_pixel: FirstPixel = 1,
) -> tuple[DetectionDataset, list[Defect]]:
    """Read splits of a VOC data set and the defects that were forgiven.

    Parameters
    ----------
    root
        ``VOCdevkit`` (holding ``VOC2007``, ``VOC2012``), one such folder, or any folder that itself holds
        JPEGImages, Annotations and ImageSets.
    splits
        For example ``[(2007, "trainval"), (2012, "trainval")]``, joined in this order.
    classes
        Class names in label order; None takes the names found in these splits, sorted.
    policy
        What each kind of defect means; `DefectPolicy`'s defaults when None.
    first_pixel
        The coordinate of the first pixel of a row or column in the files.

    Boxes are 1-based and inclusive in the files and become ``[xmin - 1, ymin - 1, xmax, ymax)``, as in
    Detectron2 (``data/datasets/pascal_voc.py``); where they count from 0,
    ``[xmin, ymin, xmax + 1, ymax + 1)``. Difficult objects are kept, with their flag.

    Raises UserError where there is no such split, and one that lists all fatal defects.
    """
    dataset, defects = scan_voc(root, splits, classes, policy or DefectPolicy(), orientation, first_pixel)
    refuse_fatal(defects, f"VOC data in {root}")
    return dataset, defects


def scan_voc(
    root: Path,
    splits: Sequence[Split],
    classes: Sequence[str] | None,
    policy: DefectPolicy,
    orientation: Orientation = "exif",
    first_pixel: FirstPixel = 1,
) -> tuple[DetectionDataset, list[Defect]]:
    """Read as `read_voc` does, but return fatal defects with the others instead of raising them."""
    defects: list[Defect] = []
    records: list[VocRecord] = []
    seen: dict[str, Path] = {}
    for year, split in splits:
        folder, listing = voc_split(root, year, split)
        if listing is None:
            ids = _unique(folder, ids_of_folder(folder), seen, policy, defects)
        else:
            ids = _unique(listing, [line.id for line in listed(listing)], seen, policy, defects)
        records += _read_records(VocFiles.of(folder), ids, orientation)
    years = {year for year, _ in splits}
    name = " + ".join(f"VOC{year or ''} {split}" for year, split in splits)
    year = years.pop() if len(years) == 1 else None
    dataset = settled_dataset(name, records, classes, year, policy, defects, orientation, first_pixel)
    if not dataset.classes:
        raise UserError(f"{root}: no object in {name} to take the classes from; list the classes")
    return dataset, defects


def scan_voc_folder(
    folder: Path, classes: Sequence[str] | None, policy: DefectPolicy
) -> tuple[DetectionDataset, list[Defect]]:
    """Read every image that any list of one VOC folder names, once; fatal defects are returned too.

    Where images and annotations lie side by side, all of the folder. The lists of single classes
    (``aeroplane_train.txt``) are passed over: they repeat the others.
    """
    defects: list[Defect] = []
    files = VocFiles.of(folder)
    listings = [path for path in sorted((folder / LISTINGS).glob("*.txt")) if not is_of_one_class(path)]
    ids: dict[str, None] = {}
    if files.images == files.annotations:
        ids = dict.fromkeys(ids_of_folder(folder))
    elif not listings:
        defects.append(policy.defect(folder / LISTINGS, "empty_split", "holds no list of images"))
    for listing in listings:
        ids |= dict.fromkeys(_unique(listing, [line.id for line in listed(listing)], {}, policy, defects))
    records = _read_records(files, list(ids))
    return settled_dataset(folder.name, records, classes, None, policy, defects), defects


def voc_folders(root: Path) -> list[Path]:
    """Return the VOC folders of a root: itself, or those directly inside it; none is a UserError.

    Where there is none, folders with images and XML side by side, as exporters write one for each split.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected VOCdevkit, or a folder with JPEGImages in it")
    if (root / "JPEGImages").is_dir() or (root / "Annotations").is_dir():
        return [root]
    inside = sorted(path.parent for path in root.glob("*/JPEGImages")) or side_by_side(root)
    if not inside:
        raise UserError(
            f"{root}: expected JPEGImages, Annotations and ImageSets in it or in its folders, or a folder for"
            " each split with images and XML side by side"
        )
    return inside


def voc_split(root: Path, year: int | None, split: str) -> tuple[Path, Path | None]:
    """Return a split's VOC folder and its list; the list is None where the split is a folder of its own.

    Raises UserError where there is no such folder or split.
    """
    folders = voc_folders(root)
    beside = [folder for folder in folders if folder == root / split]
    if beside and folders == side_by_side(root):
        return beside[0], None
    folder = _voc_folder(root, year)
    return folder, _listing(folder, split)


def _voc_folder(root: Path, year: int | None) -> Path:
    """Return the folder with JPEGImages, Annotations and ImageSets for a year."""
    folders = voc_folders(root)
    if folders == [root]:
        if year is not None and root.name in {f"VOC{y}" for y in range(2005, 2013)} - {f"VOC{year}"}:
            raise UserError(f"{root}: this is not the requested VOC{year}; give its parent as root")
        return root
    named = [folder for folder in folders if folder.name == f"VOC{year}"]
    if named:
        return named[0]
    if len(folders) == 1 and not folders[0].name.startswith("VOC"):
        return folders[0]
    found = ", ".join(folder.name for folder in folders)
    raise UserError(f"{root}: it holds no VOC{year or ''}; folders with JPEGImages in them: {found}")


def _read_records(files: VocFiles, ids: Sequence[str], orientation: Orientation = "exif") -> list[VocRecord]:
    images = images_by_name(files.images)
    return in_parallel(lambda image_id: read_record(files, images, image_id, orientation), ids)


def _listing(folder: Path, split: str) -> Path:
    listing = folder / LISTINGS / f"{split}.txt"
    if not listing.is_file():
        lists = sorted(listing.parent.glob("*.txt"))
        there = [path.stem for path in lists if not is_of_one_class(path)]
        raise UserError(f"{listing}: no such split; splits found: {', '.join(there) or 'none'}")
    return listing


def _unique(
    where: Path, ids: Sequence[str], seen: dict[str, Path], policy: DefectPolicy, defects: list[Defect]
) -> list[str]:
    """Return the ids of a list or folder that are not in `seen`, and add them to it."""
    fresh: list[str] = []
    if not ids:
        defects.append(policy.defect(where, "empty_split", "the split lists no image"))
    for image_id in ids:
        if image_id in seen:
            message = f"image {image_id} is listed again (first in {seen[image_id]})"
            defects.append(policy.defect(where, "duplicate_id", message))
            continue
        seen[image_id] = where
        fresh.append(image_id)
    return fresh
