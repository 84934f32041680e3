"""Read the Pascal VOC layout: JPEGImages/, Annotations/*.xml and ImageSets/Main/*.txt."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException, ElementTree
from PIL import UnidentifiedImageError

from configs.errors import UserError
from transfer.detect.datasets import Annotation, DetectionDataset, DetectionImage
from transfer.detect.defects import Defect, DefectPolicy, refuse_fatal, settle_box
from transfer.detect.image_files import in_parallel, read_size

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
"""The twenty classes in the order of the VOC development kit."""

Split = tuple[int | None, str]
"""(year, name of the list in ImageSets/Main); the year may be None where the root is one VOC folder."""

EDGES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class _Object:
    number: int
    name: str
    # As in the file: 1-based, with both ends inside the box.
    edges: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True)
class _Record:
    """One image as found on disk, before any policy is applied."""

    id: str
    image: Path
    xml: Path
    size: tuple[int, int] | None = None
    stated_size: tuple[int, int] | None = None
    objects: tuple[_Object, ...] = ()
    # (kind, file, message); what keeps the whole image from being used, and what only an object.
    image_problems: tuple[tuple[str, Path, str], ...] = ()
    object_problems: tuple[tuple[str, Path, str], ...] = ()


def read_voc(
    root: Path,
    splits: Sequence[Split],
    classes: Sequence[str] | None = VOC_CLASSES,
    policy: DefectPolicy | None = None,
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
    dataset, defects = scan_voc(root, splits, classes, policy or DefectPolicy())
    refuse_fatal(defects, f"VOC data in {root}")
    return dataset, defects


def scan_voc(
    root: Path, splits: Sequence[Split], classes: Sequence[str] | None, policy: DefectPolicy
) -> tuple[DetectionDataset, list[Defect]]:
    """Read as `read_voc` does, but return fatal defects with the others instead of raising them."""
    defects: list[Defect] = []
    records: list[_Record] = []
    seen: dict[str, Path] = {}
    for year, split in splits:
        folder = _voc_folder(root, year)
        listing = _listing(folder, split)
        images = _images_by_stem(folder / "JPEGImages")
        ids = _read_ids(listing)
        if not ids:
            defects.append(Defect(listing, "empty_split", "the split lists no image", "fatal"))
        fresh: list[str] = []
        for image_id in ids:
            if image_id in seen:
                message = f"image {image_id} is listed again (first in {seen[image_id]})"
                defects.append(Defect(listing, "duplicate_id", message, policy.duplicate_id))
                continue
            seen[image_id] = listing
            fresh.append(image_id)
        records += in_parallel(lambda i, f=folder, files=images: _read_record(f, files, i), fresh)
    if classes is None:
        classes = sorted({o.name for record in records for o in record.objects})
        if not classes:
            raise UserError(f"{root}: no object in {splits} to take the classes from; list the classes")
    labels = {name: label for label, name in enumerate(classes)}
    if len(labels) < len(classes):
        raise UserError(f"classes: a name occurs twice in {list(classes)}")
    settled = [_settle(record, labels, policy, defects) for record in records]
    years = {year for year, _ in splits}
    dataset = DetectionDataset(
        name=" + ".join(f"VOC{year or ''} {split}" for year, split in splits),
        classes=tuple(classes),
        images=tuple(image for image in settled if image is not None),
        kind="voc",
        category_ids=tuple(range(1, len(classes) + 1)),
        year=years.pop() if len(years) == 1 else None,
    )
    return dataset, defects


def _voc_folder(root: Path, year: int | None) -> Path:
    """Return the folder with JPEGImages, Annotations and ImageSets for a year."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected VOCdevkit, or a folder with JPEGImages in it")
    if (root / "JPEGImages").is_dir() or (root / "Annotations").is_dir():
        if year is not None and root.name in {f"VOC{y}" for y in range(2005, 2013)} - {f"VOC{year}"}:
            raise UserError(f"{root}: this is not the VOC{year} that was asked for; give its parent as root")
        return root
    if year is not None and (root / f"VOC{year}" / "JPEGImages").is_dir():
        return root / f"VOC{year}"
    inside = sorted(path.parent for path in root.glob("*/JPEGImages"))
    if len(inside) == 1 and year is None:
        return inside[0]
    found = ", ".join(path.name for path in inside) or "none"
    raise UserError(
        f"{root}: expected a VOC{year or ''} folder with JPEGImages in it; folders found: {found}"
    )


def _listing(folder: Path, split: str) -> Path:
    listing = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not listing.is_file():
        there = sorted(path.stem for path in listing.parent.glob("*.txt") if "_" not in path.stem)
        raise UserError(f"{listing}: no such split; splits found: {', '.join(there) or 'none'}")
    return listing


def _read_ids(listing: Path) -> list[str]:
    """Return the image ids of a list; the lists of single classes carry a second column of -1, 0, 1."""
    lines = [line.split() for line in listing.read_text(encoding="utf-8").splitlines()]
    return [" ".join(words[:-1] if len(words) > 1 and words[-1] in {"-1", "0", "1"} else words)
            for words in lines if words]  # fmt: skip


def _images_by_stem(folder: Path) -> dict[str, Path]:
    """Return the image files by name without suffix; a .jpg goes before another file of its name."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    others = {path.stem: path for path in files if path.suffix.lower() in {".png", ".jpeg", ".bmp", ".webp"}}
    return others | {path.stem: path for path in files if path.suffix.lower() == ".jpg"}


def _read_record(folder: Path, images: dict[str, Path], image_id: str) -> _Record:
    image = images.get(image_id, folder / "JPEGImages" / f"{image_id}.jpg")
    xml = folder / "Annotations" / f"{image_id}.xml"
    problems: list[tuple[str, Path, str]] = []
    size = stated_size = None
    try:
        size = read_size(image)
    except FileNotFoundError:
        problems.append(("missing_image", image, "no such image file"))
    except (OSError, UnidentifiedImageError) as error:
        problems.append(("unreadable_image", image, f"not a readable image ({error})"))
    objects: list[_Object] = []
    object_problems: list[tuple[str, Path, str]] = []
    try:
        tree = ElementTree.fromstring(xml.read_bytes())
    except FileNotFoundError:
        problems.append(("missing_annotation", xml, f"no XML for image {image_id}"))
    except (ParseError, DefusedXmlException, OSError, LookupError, ValueError) as error:
        problems.append(("unparsable_annotation", xml, f"not XML that can be read safely ({error})"))
    else:
        stated_size = _stated_size(tree)
        for number, element in enumerate(tree.findall("object"), start=1):
            found = _read_object(element, number)
            if isinstance(found, str):
                object_problems.append(("malformed_object", xml, f"object {number}: {found}"))
            else:
                objects.append(found)
    return _Record(
        image_id, image, xml, size, stated_size, tuple(objects), tuple(problems), tuple(object_problems)
    )


def _stated_size(tree: Element) -> tuple[int, int] | None:
    try:
        return round(float(tree.findtext("size/width", ""))), round(float(tree.findtext("size/height", "")))
    except (ValueError, OverflowError):
        return None


def _read_object(element: Element, number: int) -> _Object | str:
    """Return the object, or what is wrong with it."""
    name = (element.findtext("name") or "").strip()
    if not name:
        return "it has no <name>"
    texts = [element.findtext(f"bndbox/{edge}") for edge in EDGES]
    try:
        xmin, ymin, xmax, ymax = (float(text or "") for text in texts)
    except ValueError:
        return f"'{name}': its <bndbox> needs four numbers {', '.join(EDGES)}, not {texts}"
    if not all(map(math.isfinite, (xmin, ymin, xmax, ymax))):
        return f"'{name}': its box ({', '.join(map(str, texts))}) is not finite"
    if xmax < xmin or ymax < ymin:
        return f"'{name}': its box ends before it begins ({', '.join(map(str, texts))})"
    difficult = (element.findtext("difficult") or "").strip() == "1"
    return _Object(number, name, (xmin, ymin, xmax, ymax), difficult)


def _settle(
    record: _Record, labels: dict[str, int], policy: DefectPolicy, defects: list[Defect]
) -> DetectionImage | None:
    """Apply the policy to one image; its defects are added to `defects`."""
    usable = True
    for kind, file, message in record.image_problems:
        action = policy.action(kind)
        defects.append(Defect(file, kind, message, action))
        usable &= action == "keep"
    for kind, file, message in record.object_problems:
        defects.append(Defect(file, kind, message, policy.action(kind)))
    if record.size is None:
        return None
    width, height = record.size
    if record.stated_size is not None and record.stated_size != record.size:
        stated = "{} x {}".format(*record.stated_size)
        message = f"states a size of {stated}, but {record.image.name} is {width} x {height}"
        defects.append(Defect(record.xml, "size_mismatch", message, policy.size_mismatch))
        usable &= policy.size_mismatch == "keep"
    few = ", ".join([*list(labels)[:5], "..."] if len(labels) > 6 else labels)
    boxes: list[tuple[float, ...]] = []
    kept: list[_Object] = []
    for item in record.objects:
        what = f"object {item.number} ('{item.name}' at {', '.join(f'{e:g}' for e in item.edges)})"
        if item.name not in labels:
            message = f"{what}: not among the {len(labels)} classes ({few})"
            defects.append(Defect(record.xml, "unknown_class", message, policy.unknown_class))
            continue
        xmin, ymin, xmax, ymax = item.edges
        box = (xmin - 1, ymin - 1, xmax, ymax)
        is_flat = xmax == xmin or ymax == ymin
        settled = settle_box(box, is_flat, record.size, policy, record.xml, what)
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
    return DetectionImage(record.id, record.image, width, height, annotation)
