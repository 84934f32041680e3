"""Read COCO's instance annotations: polygons, both kinds of RLE, crowds, sparse category ids."""

import json
import math
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic_core import from_json

from carryover.configs.errors import UserError
from carryover.core.data.decoding import decoding_defects
from carryover.core.data.defects import Defect, DefectPolicy, refuse_fatal, settle_box
from carryover.core.data.names import as_number, as_size, flag, located, say_once
from carryover.core.data.objects.coco_masks import mask_area, settle_segmentation
from carryover.core.data.objects.compare import FEW, MANY, compare_boxes, repeated_objects
from carryover.core.data.objects.dataset import Annotation, DetectionDataset, DetectionImage, Segmentation
from carryover.core.data.pictures import Header, Orientation, in_parallel, read_header


@dataclass(frozen=True)
class _Object:
    box: tuple[float, float, float, float]
    label: int
    iscrowd: bool
    area: float
    mask: Segmentation
    altered: bool
    stated_box: tuple[float, float, float, float]


@dataclass(frozen=True)
class _File:
    """Context in which annotations are read; `labels` has the requested categories."""

    path: Path
    policy: DefectPolicy
    names: dict[int, str]
    labels: dict[int, int]
    has_masks: bool
    needs_masks: bool
    renumbered: list[str]
    measured: list[str]
    left_out: list[str]
    lost_masks: list[str]

    def defect(self, kind: str, message: str) -> Defect:
        return self.policy.defect(self.path, kind, message)


@dataclass(frozen=True)
class _ImageEntry:
    id: int | str
    path: Path
    width: int
    height: int
    turned: bool


def read_coco(
    annotation_file: Path,
    image_root: Path,
    policy: DefectPolicy | None = None,
    classes: Sequence[str] | None = None,
    orientation: Orientation = "exif",
    needs_masks: bool = True,
) -> tuple[DetectionDataset, list[Defect]]:
    """Read a COCO instances file and the defects that were forgiven.

    Labels are the categories in the order of their ids (which may be sparse), or `classes` by name where
    given: objects of other categories are then defects of the kind ``unknown_class``. Images without
    annotations belong to the data set. Masks are kept in the file's own form (see `decode_masks`);
    they are None where no annotation of the file has one. An annotation without an area gets its mask's, or
    its box's. What is wrong with masks is no defect unless `needs_masks`; sound ones are compared with their
    boxes all the same.

    Raises UserError for a file that is not COCO's, and one that lists all fatal defects.
    """
    dataset, defects = scan_coco(
        annotation_file, image_root, policy or DefectPolicy(), classes, orientation, needs_masks
    )
    refuse_fatal(defects, f"COCO data in {annotation_file}")
    return dataset, defects


def scan_coco(
    annotation_file: Path,
    image_root: Path,
    policy: DefectPolicy,
    classes: Sequence[str] | None = None,
    orientation: Orientation = "exif",
    needs_masks: bool = True,
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
    entries = _images(content["images"], annotation_file, image_root, policy, defects, orientation)
    known = {i["id"] for i in content["images"] if isinstance(i, dict) and isinstance(i.get("id"), int | str)}
    has_masks = any(isinstance(a, dict) and a.get("segmentation") for a in content["annotations"])
    labels = {category_id: label for label, category_id in enumerate(category_ids)}
    context = _File(annotation_file, policy, names, labels, has_masks, needs_masks, [], [], [], [])
    objects = _annotations(content["annotations"], entries, known, context, defects)
    say_once(f"{annotation_file.name}: annotation ids that repeat are renumbered", context.renumbered)
    say_once(f"{annotation_file.name}: areas that are no positive number are measured", context.measured)
    dataset = DetectionDataset(
        name=annotation_file.stem,
        classes=tuple(names[category_id] for category_id in category_ids),
        images=tuple(
            DetectionImage(
                e.id,
                e.path,
                e.width,
                e.height,
                _annotation(objects[e.id], has_masks),
                orientation,
                e.turned,
            )
            for e in entries.values()
        ),
        kind="coco",
        category_ids=category_ids,
        altered=bool(context.renumbered or context.left_out)
        or any(o.altered for found in objects.values() for o in found),
    )
    defects += _lost_masks(context, dataset)
    defects += repeated_objects(annotation_file, dataset.images, policy)
    defects += compare_boxes(
        annotation_file,
        dataset.images,
        {i: [o.stated_box for o in found] for i, found in objects.items()},
        policy,
    )
    return dataset, defects


def _lost_masks(file: _File, dataset: DetectionDataset) -> list[Defect]:
    """Return one defect where more than a quarter of the stated masks came to nothing."""
    lost = file.lost_masks
    stated = len(lost) + sum(bool(mask) for i in dataset.images for mask in i.annotation.masks or ())
    if not file.needs_masks or stated < FEW or len(lost) <= MANY * stated:
        return []
    message = f"{len(lost)} of {stated} masks cannot be read, the first: {lost[0]}"
    return [file.defect("lost_masks", message)]


def load_coco_json(annotation_file: Path) -> dict[str, list[Any]]:
    """Return a COCO file's content; UserError where it lacks images, annotations or categories."""
    try:
        content = _parsed(annotation_file.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{annotation_file}: no such file; expected COCO's instances as JSON") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{annotation_file}: not JSON that can be read ({error})") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{annotation_file}: expected a list under '{key}', as in COCO's instances files")
    return content


def _parsed(text: bytes) -> Any:
    # Three times as fast as json, which also reads what is only nearly JSON (a byte order mark).
    try:
        return from_json(text)
    except ValueError:
        return json.loads(text)


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
            defects.append(policy.defect(file, "duplicate_id", message))
            continue
        names[entry["id"]] = str(entry["name"])
    return names


def _images(
    listed: list[Any],
    file: Path,
    root: Path,
    policy: DefectPolicy,
    defects: list[Defect],
    orientation: Orientation,
) -> dict[int | str, _ImageEntry]:
    """Return the usable images by id, in the file's order."""
    if not listed:
        defects.append(policy.defect(file, "empty_split", "the file lists no image"))
    unique: dict[int | str, dict[str, Any]] = {}
    for number, entry in enumerate(listed):
        image_id = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(image_id, int | str) or not isinstance(entry.get("file_name"), str):
            message = f"images[{number}] needs an 'id' and a 'file_name'"
            defects.append(policy.defect(file, "malformed_object", message))
        elif image_id in unique:
            message = f"image id {image_id} occurs again, as {entry['file_name']}"
            defects.append(policy.defect(file, "duplicate_id", message))
        else:
            unique[image_id] = entry
    paths = in_parallel(lambda entry: located(root, entry["file_name"]), unique.values())
    moved = [e["file_name"] for e, path in zip(unique.values(), paths) if path != root / e["file_name"]]
    say_once(f"{file.name}: images found by the end of their names in {root}", moved)
    unknown: list[str] = []
    entries: dict[int | str, _ImageEntry] = {}
    headers = in_parallel(lambda path: _header_or_error(path, orientation), paths)
    for (image_id, entry), path, header in zip(unique.items(), paths, headers, strict=True):
        if isinstance(header, OSError):
            kind = "missing_image" if isinstance(header, FileNotFoundError) else "unreadable_image"
            message = "no such image file" if kind == "missing_image" else f"not a readable image ({header})"
            defects.append(policy.defect(path, kind, message))
            continue
        size, stated = header.size, as_size(entry.get("width"), entry.get("height"))
        if stated is None and (entry.get("width"), entry.get("height")) != (None, None):
            unknown.append(entry["file_name"])
        if stated not in {size, None}:
            message = f"{file.name} states {stated[0]} x {stated[1]}, but the image is {size[0]} x {size[1]}"
            defects.append(policy.defect(path, "size_mismatch", message))
            if policy.size_mismatch != "keep":
                continue
        entries[image_id] = _ImageEntry(image_id, path, *size, header.turned)
    say_once(f"{file.name}: images whose stated size is none; their files' own is taken", unknown)
    defects += _repeated_images(entries, policy)
    bad = decoding_defects([entry.path for entry in entries.values()], root, file.name, policy)
    defects += bad
    left_out = {defect.file for defect in bad}
    return {image_id: entry for image_id, entry in entries.items() if entry.path not in left_out}


def _repeated_images(entries: dict[int | str, _ImageEntry], policy: DefectPolicy) -> list[Defect]:
    ids: dict[Path, list[int | str]] = {}
    for entry in entries.values():
        ids.setdefault(entry.path, []).append(entry.id)
    return [
        policy.defect(path, "repeated_image", f"is the file of images {', '.join(map(str, several))}")
        for path, several in ids.items()
        if len(several) > 1
    ]


def _header_or_error(path: Path, orientation: Orientation) -> Header | OSError:
    try:
        return read_header(path, orientation)
    except OSError as error:
        return error


def _annotations(
    listed: list[Any],
    entries: dict[int | str, _ImageEntry],
    known: set[int | str],
    file: _File,
    defects: list[Defect],
) -> dict[int | str, list[_Object]]:
    """Return the objects of every usable image; those of `known` images that were dropped go unmentioned."""
    collected: dict[int | str, list[_Object]] = {image_id: [] for image_id in entries}
    seen: set[int | str] = set()
    for number, entry in enumerate(listed):
        if not isinstance(entry, dict):
            defects.append(file.defect("malformed_object", f"annotations[{number}] is {entry!r}"))
            continue
        annotation_id, image_id = entry.get("id"), entry.get("image_id")
        what = f"annotation {f'[{number}]' if annotation_id is None else annotation_id}"
        if not isinstance(annotation_id, int | str | None) or not isinstance(image_id, int | str):
            message = f"{what}: its image_id is {image_id!r}; ids are numbers or text"
            defects.append(file.defect("malformed_object", message))
            continue
        if annotation_id is not None and annotation_id in seen:
            file.renumbered.append(str(annotation_id))
        image_id = _as_known(image_id, known)
        if image_id not in known:
            message = f"{what}: there is no image {image_id!r} in the file"
            defects.append(file.defect("orphan_annotation", message))
        elif image_id in entries:
            found, faults = _settle(entry, what, entries[image_id], file)
            defects += faults
            collected[image_id] += [found] if found else []
            file.left_out.extend([] if found else [what])
        if annotation_id is not None:
            seen.add(annotation_id)
    return collected


def _settle(
    entry: dict[str, Any], what: str, image: _ImageEntry, file: _File
) -> tuple[_Object | None, list[Defect]]:
    """Return an annotation as the policy wants it, with what was wrong with it; None drops it."""
    category_id, box = _as_known(entry.get("category_id"), file.names), _as_numbers(entry.get("bbox"))
    if not isinstance(category_id, int) or category_id not in file.labels:
        name = file.names.get(category_id) if isinstance(category_id, int) else None
        of = f"'{name}', which is not among the classes" if name else "unknown"
        return None, [file.defect("unknown_class", f"{what}: its category {category_id!r} is {of}")]
    problem = _box_problem(box)
    if box is None or problem:
        return None, [file.defect("malformed_object", f"{what}: {problem}")]
    x, y, w, h = map(float, box)
    what = f"{what} ('{file.names[category_id]}' at {box} in {image.path.name})"
    size = (image.width, image.height)
    settled = settle_box((x, y, x + w, y + h), w == 0 or h == 0, size, file.policy, file.path, what)
    if settled.box is None:
        return None, list(settled.defects)
    crowd = flag(entry.get("iscrowd"))
    if crowd is None:
        message = f"{what}: its iscrowd is {entry.get('iscrowd')!r}, neither yes nor no"
        return None, [*settled.defects, file.defect("malformed_object", message)]
    mask: Segmentation = []
    faults: list[Defect] = []
    stated = entry.get("segmentation")
    if file.has_masks:
        mask, faults = settle_segmentation(stated, (x, y, w, h), *size, file.policy, file.path, what)
    if stated and not mask and any(fault.kind == "degenerate_mask" for fault in faults):
        file.lost_masks.append(faults[0].message)
    if not file.needs_masks:
        faults = []
    if any(fault.kind == "missing_mask" and fault.action == "drop" for fault in faults):
        return None, [*settled.defects, *faults]
    area = as_number(entry.get("area"))
    if area is None or area <= 0:
        if "area" in entry:
            file.measured.append(str(entry.get("id")))
        area = mask_area(mask, *size) if mask else w * h
    spelled = entry.get("iscrowd") in (None, 0, 1) and area == entry.get("area", area)
    spelled &= settled.box == (x, y, x + w, y + h) and box == entry["bbox"]
    spelled &= category_id == entry["category_id"]
    altered = (
        not spelled
        or (file.has_masks and mask != stated)
        or (file.has_masks and file.needs_masks and not mask)
    )
    found = _Object(settled.box, file.labels[category_id], crowd, area, mask, altered, (x, y, x + w, y + h))
    return found, [*settled.defects, *faults]


def _as_known(stated: Any, known: Container[Any]) -> Any:
    """Return an id as the file has it elsewhere: numbers and their text are the same."""
    if not isinstance(stated, int | str) or stated in known:
        return stated
    other = str(stated) if isinstance(stated, int) else int(stated) if stated.strip().isdecimal() else stated
    return other if other in known else stated


def _as_numbers(box: Any) -> Any:
    """Return a box whose numbers are text as numbers."""
    if isinstance(box, list) and any(isinstance(value, str) for value in box):
        read = [as_number(value) if isinstance(value, str) else value for value in box]
        return box if None in read else read
    return box


def _box_problem(box: Any) -> str | None:
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return f"its bbox needs four finite numbers x, y, width, height, not {box!r}"
    if box[2] < 0 or box[3] < 0:
        return f"its bbox {box} has a negative size"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _annotation(objects: list[_Object], has_masks: bool) -> Annotation:
    return Annotation(
        boxes=np.array([o.box for o in objects], dtype=np.float32).reshape(-1, 4),
        labels=np.array([o.label for o in objects], dtype=np.int64),
        difficult=np.zeros(len(objects), dtype=bool),
        iscrowd=np.array([o.iscrowd for o in objects], dtype=bool),
        area=np.array([o.area for o in objects], dtype=np.float32),
        masks=tuple(o.mask for o in objects) if has_masks else None,
    )
