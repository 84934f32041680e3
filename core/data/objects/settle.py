"""Build a data set from the statements of annotation files; the policy decides every defect."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np

from carryover.configs.counted import counted, counted_of
from carryover.configs.errors import UserError
from carryover.core.data.decoding import decoding_defects
from carryover.core.data.defects import Defect, DefectPolicy, settle_box
from carryover.core.data.objects.compare import repeated_objects
from carryover.core.data.objects.dataset import Annotation, DetectionDataset, DetectionImage
from carryover.core.data.objects.voc_xml import VocObject, VocRecord
from carryover.core.data.pictures import Orientation

FirstPixel = Literal[0, 1, "edges"]
"""Convention of coordinates: pixels from 0 or 1, both ends inside the box; or box edges."""

_ENDS: Final[dict[FirstPixel, tuple[int, int]]] = {1: (1, 0), 0: (0, 1), "edges": (0, 0)}
"""Offsets of the start and the end of a box to 0-based continuous coordinates."""


def settled_dataset(
    name: str,
    records: Sequence[VocRecord],
    classes: Sequence[str] | None,
    year: int | None,
    policy: DefectPolicy,
    defects: list[Defect],
    orientation: Orientation = "exif",
    first_pixel: FirstPixel = 1,
) -> DetectionDataset:
    """Return the records of one or several splits as the policy wants them; defects are added to `defects`.

    Parameters
    ----------
    classes
        Class names in label order; None takes the names that occur, sorted.
    year
        Of a VOC split.
    """
    if classes is None:
        classes = sorted({o.name for record in records for o in record.objects})
    labels = {name: label for label, name in enumerate(classes)}
    if len(labels) < len(classes):
        raise UserError(f"classes: a name occurs twice in {list(classes)}")
    if first_pixel == 1:
        defects += _counted_from_zero(name, records, policy)
    settled = [_settle(record, labels, policy, defects, orientation, first_pixel) for record in records]
    readable = [image for image in settled if image is not None]
    defects += repeated_objects(Path(name), readable, policy)
    left_out: set[Path] = set()
    if readable:
        bad = decoding_defects([image.path for image in readable], readable[0].path.parent, name, policy)
        defects += bad
        left_out = {defect.file for defect in bad}
    return DetectionDataset(
        name=name,
        classes=tuple(classes),
        images=tuple(image for image in readable if image.path not in left_out),
        kind="voc",
        category_ids=tuple(range(1, len(classes) + 1)),
        year=year,
    )


def _counted_from_zero(name: str, records: Sequence[VocRecord], policy: DefectPolicy) -> list[Defect]:
    """Return one defect where boxes begin at 0, which no coordinate does that counts from 1."""
    boxes = [(item.edges, record) for record in records for item in record.objects]
    zero = [record for edges, record in boxes if min(edges[:2]) == 0]
    if not zero:
        return []
    # What counts from 1 reaches the width; what counts from 0 ends before it.
    full = sum(
        r.header is not None and (e[2] >= r.header.size[0] or e[3] >= r.header.size[1]) for e, r in boxes
    )
    message = (
        f"{counted_of(zero, boxes, 'box', 'begins', 'begin')} at 0 (the first in {zero[0].xml.name}),"
        f" {full} reach the width or height: coordinates that count from 1 do not;"
        " `data: {first_pixel: 0}` counts them from 0"
    )
    return [policy.defect(Path(name), "counted_from_zero", message)]


def _settle(
    record: VocRecord,
    labels: dict[str, int],
    policy: DefectPolicy,
    defects: list[Defect],
    orientation: Orientation,
    first_pixel: FirstPixel,
) -> DetectionImage | None:
    """Apply the policy to one image; its defects are added to `defects`."""
    usable = True
    for kind, file, message in record.image_problems:
        defects.append(policy.defect(file, kind, message))
        usable &= defects[-1].action == "keep"
    for kind, file, message in record.object_problems:
        defects.append(policy.defect(file, kind, message))
    if record.header is None:
        return None
    width, height = size = record.header.size
    if record.stated_size is not None and record.stated_size != size:
        stated = "{} x {}".format(*record.stated_size)
        message = f"states a size of {stated}, but {record.image.name} is {width} x {height}"
        defects.append(policy.defect(record.xml, "size_mismatch", message))
        usable &= policy.size_mismatch == "keep"
    few = ", ".join([*list(labels)[:5], "..."] if len(labels) > 6 else labels)
    boxes: list[tuple[float, ...]] = []
    kept: list[VocObject] = []
    for item in record.objects:
        place = item.place or f"object {item.number}"
        what = f"{place} ('{item.name}' at {', '.join(f'{e:g}' for e in item.edges)})"
        if item.name not in labels:
            message = f"{what}: not among the {counted(labels, 'class')} ({few})"
            defects.append(policy.defect(record.xml, "unknown_class", message))
            continue
        xmin, ymin, xmax, ymax = item.edges
        before, after = _ENDS[first_pixel]
        box = (xmin - before, ymin - before, xmax + after, ymax + after)
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
        iscrowd=np.array([item.crowd for item in kept], dtype=bool),
        area=(corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]),
    )
    turned = record.header.turned
    return DetectionImage(record.id, record.image, width, height, annotation, orientation, turned)
