"""Read splits of a data set whose boxes are in XML (LabelImg), YOLO's text or a csv."""

from collections.abc import Sequence

from carryover.configs.errors import UserError
from carryover.core.data.defects import Defect, refuse_fatal
from carryover.core.data.names import say_once
from carryover.core.data.objects.box_files import BoxFiles, BoxSection
from carryover.core.data.objects.dataset import DetectionDataset
from carryover.core.data.objects.settle import settled_dataset


def read_boxes(
    data: BoxSection, parts: Sequence[Sequence[str]]
) -> list[tuple[DetectionDataset, list[Defect]]]:
    """Read parts (each of one or several splits) of a data set, and the defects that were forgiven.

    The classes of all parts are the recipe's, those that a file names, or the names that occur, sorted.

    Raises UserError where something is not there, and one that lists all fatal defects of a part.
    """
    scanned = scan_boxes(data, parts)
    for _, defects in scanned:
        refuse_fatal(defects, f"boxes in {data.root}")
    return scanned


def scan_boxes(
    data: BoxSection, parts: Sequence[Sequence[str]]
) -> list[tuple[DetectionDataset, list[Defect]]]:
    """Read as `read_boxes` does, but return fatal defects with the others instead of raising them.

    A part of no split is all images.
    """
    files = BoxFiles(data)
    records, faults = [], []
    for splits in parts:
        ids, found = _members(files, splits)
        records.append(files.records(ids))
        faults.append(found)
    classes = files.classes or sorted({o.name for part in records for r in part for o in r.objects})
    if not classes:
        raise UserError(f"{files.folder}: no object in any image to take the classes from; list the classes")
    if files.tables:
        unnamed = sorted(files.names.images.keys() - files.rows.keys())
        say_once(
            f"{files.folder}: images in no row of a table are in no split, unless a list names it", unnamed
        )
    result = []
    for splits, part, found in zip(parts, records, faults, strict=True):
        name = " + ".join(splits) or "all images"
        dataset = settled_dataset(
            name, part, classes, None, data.defects, found, data.orientation, files.first_pixel
        )
        result.append((dataset, found))
    return result


def _members(files: BoxFiles, splits: Sequence[str]) -> tuple[list[str], list[Defect]]:
    """Return the images of splits, each once, and what is wrong with that."""
    data = files.data
    if not splits:
        return list(files.found.annotated), []
    ids: dict[str, None] = {}
    defects: list[Defect] = []
    for split in splits:
        members, lists = files.found.members(split, data.splits, data.splits_seed)
        where = lists[0] if lists else files.folder
        if not members:
            defects.append(data.defects.defect(where, "empty_split", f"the split {split} has no image"))
        for image_id in members:
            if image_id in ids:
                message = f"image {image_id} is in two of the splits {', '.join(splits)}"
                defects.append(data.defects.defect(where, "duplicate_id", message))
        ids |= dict.fromkeys(members)
    return list(ids), defects
