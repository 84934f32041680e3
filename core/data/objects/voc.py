"""Read the Pascal VOC layout: JPEGImages/, Annotations/*.xml and ImageSets/Main/*.txt."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from carryover.configs.errors import UserError
from carryover.core.data.decoding import undecodable
from carryover.core.data.defects import Defect, DefectPolicy, refuse_fatal, settle_box
from carryover.core.data.names import is_hidden, read_text
from carryover.core.data.objects.dataset import Annotation, DetectionDataset, DetectionImage
from carryover.core.data.objects.voc_xml import VocObject, VocRecord, read_record
from carryover.core.data.pictures import IMAGE_SUFFIXES, Orientation, in_parallel

LISTINGS = Path("ImageSets", "Main")
_SUFFIXES = frozenset(IMAGE_SUFFIXES)

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

    Boxes are 1-based and inclusive in the files and become ``[xmin - 1, ymin - 1, xmax, ymax)``, as in
    Detectron2 (``data/datasets/pascal_voc.py``). Difficult objects are kept, with their flag.

    Raises UserError where there is no such split, and one that lists all fatal defects.
    """
    dataset, defects = scan_voc(root, splits, classes, policy or DefectPolicy(), orientation)
    refuse_fatal(defects, f"VOC data in {root}")
    return dataset, defects


def scan_voc(
    root: Path,
    splits: Sequence[Split],
    classes: Sequence[str] | None,
    policy: DefectPolicy,
    orientation: Orientation = "exif",
) -> tuple[DetectionDataset, list[Defect]]:
    """Read as `read_voc` does, but return fatal defects with the others instead of raising them."""
    defects: list[Defect] = []
    records: list[VocRecord] = []
    seen: dict[str, Path] = {}
    for year, split in splits:
        folder = _voc_folder(root, year)
        ids = _unique_ids(_listing(folder, split), seen, policy, defects)
        records += _read_records(folder, ids, orientation)
    years = {year for year, _ in splits}
    name = " + ".join(f"VOC{year or ''} {split}" for year, split in splits)
    year = years.pop() if len(years) == 1 else None
    dataset = _dataset(name, records, classes, year, policy, defects, orientation)
    if not dataset.classes:
        raise UserError(f"{root}: no object in {name} to take the classes from; list the classes")
    return dataset, defects


def scan_voc_folder(
    folder: Path, classes: Sequence[str] | None, policy: DefectPolicy
) -> tuple[DetectionDataset, list[Defect]]:
    """Read every image that any list of one VOC folder names, once; fatal defects are returned too.

    The lists of single classes (``aeroplane_train.txt``) are passed over: they repeat the others.
    """
    defects: list[Defect] = []
    listings = [path for path in sorted((folder / LISTINGS).glob("*.txt")) if not _is_of_one_class(path)]
    if not listings:
        defects.append(Defect(folder / LISTINGS, "empty_split", "holds no list of images", "fatal"))
    ids: dict[str, None] = {}
    for listing in listings:
        ids |= dict.fromkeys(_unique_ids(listing, {}, policy, defects))
    records = _read_records(folder, list(ids))
    return _dataset(folder.name, records, classes, None, policy, defects), defects


def voc_folders(root: Path) -> list[Path]:
    """Return the VOC folders of a root: itself, or those directly inside it; none is a UserError."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected VOCdevkit, or a folder with JPEGImages in it")
    if (root / "JPEGImages").is_dir() or (root / "Annotations").is_dir():
        return [root]
    inside = sorted(path.parent for path in root.glob("*/JPEGImages"))
    if not inside:
        raise UserError(f"{root}: expected JPEGImages, Annotations and ImageSets in it or in its folders")
    return inside


def _voc_folder(root: Path, year: int | None) -> Path:
    """Return the folder with JPEGImages, Annotations and ImageSets for a year."""
    folders = voc_folders(root)
    if folders == [root]:
        if year is not None and root.name in {f"VOC{y}" for y in range(2005, 2013)} - {f"VOC{year}"}:
            raise UserError(f"{root}: this is not the VOC{year} that was asked for; give its parent as root")
        return root
    named = [folder for folder in folders if folder.name == f"VOC{year}"]
    if named:
        return named[0]
    if len(folders) == 1 and not folders[0].name.startswith("VOC"):
        return folders[0]
    found = ", ".join(folder.name for folder in folders)
    raise UserError(f"{root}: it holds no VOC{year or ''}; folders with JPEGImages in them: {found}")


def _dataset(
    name: str,
    records: Sequence[VocRecord],
    classes: Sequence[str] | None,
    year: int | None,
    policy: DefectPolicy,
    defects: list[Defect],
    orientation: Orientation = "exif",
) -> DetectionDataset:
    if classes is None:
        classes = sorted({o.name for record in records for o in record.objects})
    labels = {name: label for label, name in enumerate(classes)}
    if len(labels) < len(classes):
        raise UserError(f"classes: a name occurs twice in {list(classes)}")
    settled = [_settle(record, labels, policy, defects, orientation) for record in records]
    readable = [image for image in settled if image is not None]
    bad = undecodable([image.path for image in readable], readable[0].path.parent, name) if readable else {}
    for path, found in bad.items():
        message = f"cannot be decoded ({found.reason})"
        defects.append(Defect(path, found.kind, message, policy.action(found.kind)))
    return DetectionDataset(
        name=name,
        classes=tuple(classes),
        images=tuple(image for image in readable if image.path not in bad),
        kind="voc",
        category_ids=tuple(range(1, len(classes) + 1)),
        year=year,
    )


def _read_records(folder: Path, ids: Sequence[str], orientation: Orientation = "exif") -> list[VocRecord]:
    images = _images_by_name(folder / "JPEGImages")
    return in_parallel(lambda image_id: read_record(folder, images, image_id, orientation), ids)


def _listing(folder: Path, split: str) -> Path:
    listing = folder / LISTINGS / f"{split}.txt"
    if not listing.is_file():
        lists = sorted(listing.parent.glob("*.txt"))
        there = [path.stem for path in lists if not _is_of_one_class(path)]
        raise UserError(f"{listing}: no such split; splits found: {', '.join(there) or 'none'}")
    return listing


def _unique_ids(
    listing: Path, seen: dict[str, Path], policy: DefectPolicy, defects: list[Defect]
) -> list[str]:
    """Return the ids of a list that are not in `seen`, and add them to it."""
    fresh: list[str] = []
    lines = _lines(listing)
    if not lines:
        defects.append(Defect(listing, "empty_split", "the split lists no image", "fatal"))
    for words in lines:
        image_id = _image_id(words)
        if image_id in seen:
            message = f"image {image_id} is listed again (first in {seen[image_id]})"
            defects.append(Defect(listing, "duplicate_id", message, policy.duplicate_id))
            continue
        seen[image_id] = listing
        fresh.append(image_id)
    return fresh


def _lines(listing: Path) -> list[list[str]]:
    lines = (line.split() for line in read_text(listing).splitlines())
    return [words for words in lines if words]


def _image_id(words: list[str]) -> str:
    """Return the image that a line names: without a flag behind it, a path in front of it, quotes or suffix.

    Folders below JPEGImages stay part of it. Of two paths (DeepLab's lists) the first is the image's.
    """
    words = words[:-1] if _has_flag(words) else words
    if len(words) == 2 and all(Path(word).suffix.lower() in _SUFFIXES for word in words):
        words = words[:1]
    name = " ".join(words).strip("'\"").replace("\\", "/").lstrip("/")
    name = name.split("JPEGImages/")[-1]
    return name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in _SUFFIXES else name


def _has_flag(words: list[str]) -> bool:
    """Whether a line carries the column of the lists of single classes: absent, difficult, present."""
    return len(words) > 1 and words[-1] in {"-1", "0", "1"}


def _is_of_one_class(listing: Path) -> bool:
    return any(_has_flag(words) for words in _lines(listing)[:1])


def _images_by_name(folder: Path) -> dict[str, Path]:
    """Return the image files below a folder by path without suffix; a .jpg goes before its namesakes."""
    found: dict[str, Path] = {}
    for directory, below, names in os.walk(folder, followlinks=True):
        below[:] = sorted(name for name in below if not is_hidden(name))
        for name in sorted(names, key=lambda name: not name.lower().endswith(".jpg")):
            path = Path(directory, name)
            if path.suffix.lower() in _SUFFIXES and not name.startswith("."):
                found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    return found


def _settle(
    record: VocRecord,
    labels: dict[str, int],
    policy: DefectPolicy,
    defects: list[Defect],
    orientation: Orientation,
) -> DetectionImage | None:
    """Apply the policy to one image; its defects are added to `defects`."""
    usable = True
    for kind, file, message in record.image_problems:
        action = policy.action(kind)
        defects.append(Defect(file, kind, message, action))
        usable &= action == "keep"
    for kind, file, message in record.object_problems:
        defects.append(Defect(file, kind, message, policy.action(kind)))
    if record.header is None:
        return None
    width, height = size = record.header.size
    if record.stated_size is not None and record.stated_size != size:
        stated = "{} x {}".format(*record.stated_size)
        message = f"states a size of {stated}, but {record.image.name} is {width} x {height}"
        defects.append(Defect(record.xml, "size_mismatch", message, policy.size_mismatch))
        usable &= policy.size_mismatch == "keep"
    few = ", ".join([*list(labels)[:5], "..."] if len(labels) > 6 else labels)
    boxes: list[tuple[float, ...]] = []
    kept: list[VocObject] = []
    for item in record.objects:
        what = f"object {item.number} ('{item.name}' at {', '.join(f'{e:g}' for e in item.edges)})"
        if item.name not in labels:
            message = f"{what}: not among the {len(labels)} classes ({few})"
            defects.append(Defect(record.xml, "unknown_class", message, policy.unknown_class))
            continue
        xmin, ymin, xmax, ymax = item.edges
        box = (xmin - 1, ymin - 1, xmax, ymax)
        is_flat = xmax == xmin or ymax == ymin
        settled = settle_box(box, is_flat, size, policy, record.xml, what)
        defects += settled.defects
        if settled.box is not None:
            boxes.append(settled.box)
            kept.append(item)
    if not usable:
        return None
    corners = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    annotation = Annotation(
        boxes=corners,
        labels=np.array([labels[item.name] for item in kept], dtype=np.int64),
        difficult=np.array([item.difficult for item in kept], dtype=bool),
        iscrowd=np.zeros(len(kept), dtype=bool),
        area=(corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]),
    )
    turned = record.header.turned
    return DetectionImage(record.id, record.image, width, height, annotation, orientation, turned)
