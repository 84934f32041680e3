"""Read COCO's instance annotations: polygons, both kinds of RLE, crowds, sparse category ids."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import UserError
from transfer.detect.coco_masks import settle_segmentation
from transfer.detect.datasets import Annotation, DetectionDataset, DetectionImage, Segmentation
from transfer.detect.defects import Defect, DefectPolicy, refuse_fatal, settle_box
from transfer.detect.image_files import in_parallel, read_size


@dataclass
class _Objects:
    """The objects of one image while they are being collected."""

    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    iscrowd: list[bool] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    masks: list[Segmentation] = field(default_factory=list)


@dataclass(frozen=True)
class _ImageEntry:
    id: int | str
    path: Path
    width: int
    height: int


def read_coco(
    annotation_file: Path,
    image_root: Path,
    policy: DefectPolicy | None = None,
    classes: Sequence[str] | None = None,
) -> tuple[DetectionDataset, list[Defect]]:
    """Read a COCO instances file and the defects that were forgiven.

    Labels are the categories in the order of their ids (which may be sparse), or `classes` by name where
    given: objects of other categories are then defects of the kind ``unknown_class``. Images without
    annotations belong to the data set. Masks are kept in the file's own form (see `decode_masks`);
    they are None where no annotation of the file has one. An annotation without an area gets its box's.

    Raises UserError for a file that is not COCO's, and one that lists all fatal defects.
    """
    dataset, defects = scan_coco(annotation_file, image_root, policy or DefectPolicy(), classes)
    refuse_fatal(defects, f"COCO data in {annotation_file}")
    return dataset, defects


def scan_coco(
    annotation_file: Path,
    image_root: Path,
    policy: DefectPolicy,
    classes: Sequence[str] | None = None,
) -> tuple[DetectionDataset, list[Defect]]:
    """Read as `read_coco` does, but return fatal defects with the others instead of raising them."""
    content = load_coco_json(annotation_file)
    if not image_root.is_dir():
        raise UserError(f"{image_root}: no such folder; expected the images of {annotation_file.name}")
    defects: list[Defect] = []
    names = _categories(content["categories"], annotation_file, policy, defects)
    if classes is None:
        category_ids = tuple(sorted(names))
    else:
        by_name = {name: category_id for category_id, name in names.items()}
        absent = [name for name in classes if name not in by_name]
        if absent:
            raise UserError(f"{annotation_file}: no category is called {', '.join(absent)}")
        category_ids = tuple(by_name[name] for name in classes)
    entries = _images(content["images"], annotation_file, image_root, policy, defects)
    known = {entry["id"] for entry in content["images"] if isinstance(entry, dict) and "id" in entry}
    objects = _annotations(
        content["annotations"], entries, known, names, category_ids, annotation_file, policy, defects
    )
    has_masks = any(isinstance(a, dict) and a.get("segmentation") for a in content["annotations"])
    dataset = DetectionDataset(
        name=annotation_file.stem,
        classes=tuple(names[category_id] for category_id in category_ids),
        images=tuple(
            DetectionImage(e.id, e.path, e.width, e.height, _annotation(objects[e.id], has_masks))
            for e in entries.values()
        ),
        kind="coco",
        category_ids=category_ids,
    )
    return dataset, defects


def load_coco_json(annotation_file: Path) -> dict[str, list[Any]]:
    """Return a COCO file's content; UserError where it lacks images, annotations or categories."""
    try:
        content = json.loads(annotation_file.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{annotation_file}: no such file; expected COCO's instances as JSON") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{annotation_file}: not JSON that can be read ({error})") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{annotation_file}: expected a list under '{key}', as in COCO's instances files")
    return content


def _categories(
    entries: list[Any], file: Path, policy: DefectPolicy, defects: list[Defect]
) -> dict[int, str]:
    """Return the class names by category id."""
    names: dict[int, str] = {}
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int) or not entry.get("name"):
            raise UserError(f"{file}: categories[{number}] needs an integer 'id' and a 'name', not {entry!r}")
        if entry["id"] in names or entry["name"] in names.values():
            message = f"category {entry['id']} '{entry['name']}' occurs twice (by id or by name)"
            defects.append(Defect(file, "duplicate_id", message, policy.duplicate_id))
            continue
        names[entry["id"]] = str(entry["name"])
    return names


def _images(
    listed: list[Any], file: Path, root: Path, policy: DefectPolicy, defects: list[Defect]
) -> dict[int | str, _ImageEntry]:
    """Return the usable images by id, in the file's order."""
    if not listed:
        defects.append(Defect(file, "empty_split", "the file lists no image", "fatal"))
    unique: dict[int | str, dict[str, Any]] = {}
    for number, entry in enumerate(listed):
        image_id = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(image_id, int | str) or not isinstance(entry.get("file_name"), str):
            message = f"images[{number}] needs an 'id' and a 'file_name'"
            defects.append(Defect(file, "malformed_object", message, policy.malformed_object))
        elif image_id in unique:
            message = f"image id {image_id} occurs again, as {entry['file_name']}"
            defects.append(Defect(file, "duplicate_id", message, policy.duplicate_id))
        else:
            unique[image_id] = entry
    paths = [root / entry["file_name"] for entry in unique.values()]
    entries: dict[int | str, _ImageEntry] = {}
    for (image_id, entry), path, size in zip(
        unique.items(), paths, in_parallel(_size_or_error, paths), strict=True
    ):
        if isinstance(size, OSError):
            kind = "missing_image" if isinstance(size, FileNotFoundError) else "unreadable_image"
            message = "no such image file" if kind == "missing_image" else f"not a readable image ({size})"
            defects.append(Defect(path, kind, message, policy.action(kind)))
            continue
        stated = (entry.get("width"), entry.get("height"))
        if stated not in {size, (None, None)}:
            message = f"{file.name} states {stated[0]} x {stated[1]}, but the image is {size[0]} x {size[1]}"
            defects.append(Defect(path, "size_mismatch", message, policy.size_mismatch))
            if policy.size_mismatch != "keep":
                continue
        entries[image_id] = _ImageEntry(image_id, path, *size)
    return entries


def _size_or_error(path: Path) -> tuple[int, int] | OSError:
    try:
        return read_size(path)
    except OSError as error:
        return error


def _annotations(
    listed: list[Any],
    entries: dict[int | str, _ImageEntry],
    known: set[int | str],
    names: dict[int, str],
    category_ids: tuple[int, ...],
    file: Path,
    policy: DefectPolicy,
    defects: list[Defect],
) -> dict[int | str, _Objects]:
    """Return the objects of every usable image."""
    labels = {category_id: label for label, category_id in enumerate(category_ids)}
    has_masks = any(isinstance(a, dict) and a.get("segmentation") for a in listed)
    collected = {image_id: _Objects() for image_id in entries}
    seen: set[int | str] = set()

    def found(kind: str, message: str) -> None:
        defects.append(Defect(file, kind, message, policy.action(kind)))

    for number, entry in enumerate(listed):
        if not isinstance(entry, dict):
            found("malformed_object", f"annotations[{number}] is not an object")
            continue
        what = f"annotation {entry.get('id', f'[{number}]')}"
        if entry.get("id") in seen:
            found("duplicate_id", f"{what}: its id occurs twice")
            continue
        if entry.get("id") is not None:
            seen.add(entry["id"])
        image_id, category_id, box = entry.get("image_id"), entry.get("category_id"), entry.get("bbox")
        if image_id not in known:
            found("orphan_annotation", f"{what}: there is no image {image_id!r} in the file")
            continue
        if image_id not in entries:
            continue
        if category_id not in labels:
            of = f"'{names[category_id]}' is not among the classes" if category_id in names else "unknown"
            found("unknown_class", f"{what}: its category {category_id!r} is {of}")
            continue
        problem = _box_problem(box)
        if problem:
            found("malformed_object", f"{what}: {problem}")
            continue
        assert box is not None
        image = entries[image_id]
        x, y, w, h = map(float, box)
        what = f"{what} ('{names[category_id]}' at {box} in {image.path.name})"
        settled = settle_box(
            (x, y, x + w, y + h), w == 0 or h == 0, (image.width, image.height), policy, file, what
        )
        defects += settled.defects
        if settled.box is None:
            continue
        mask: Segmentation | None = []
        if has_masks:
            mask, faults = settle_segmentation(
                entry.get("segmentation"), image.width, image.height, policy, file, what
            )
            defects += faults
            if mask is None:
                continue
        objects = collected[image_id]
        objects.boxes.append(settled.box)
        objects.labels.append(labels[category_id])
        objects.iscrowd.append(bool(entry.get("iscrowd", 0)))
        objects.areas.append(float(entry["area"]) if _is_number(entry.get("area")) else w * h)
        objects.masks.append(mask)
    return collected


def _box_problem(box: Any) -> str | None:
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return f"its bbox needs four finite numbers x, y, width, height, not {box!r}"
    if box[2] < 0 or box[3] < 0:
        return f"its bbox {box} has a negative size"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _annotation(objects: _Objects, has_masks: bool) -> Annotation:
    return Annotation(
        boxes=np.array(objects.boxes, dtype=np.float32).reshape(-1, 4),
        labels=np.array(objects.labels, dtype=np.int64),
        difficult=np.zeros(len(objects.labels), dtype=bool),
        iscrowd=np.array(objects.iscrowd, dtype=bool),
        area=np.array(objects.areas, dtype=np.float32),
        masks=tuple(objects.masks) if has_masks else None,
    )
