"""Detection data set, independent of the layout it was read from."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from carryover.core.data.pictures import Orientation

Polygon = list[float]
"""One closed outline ``[x1, y1, x2, y2, ...]`` in pixels, COCO's form."""

Rle = dict[str, Any]
"""A run-length encoded mask ``{"size": [height, width], "counts": ...}``, COCO's form."""

Segmentation = list[Polygon] | Rle
"""The mask of one object: polygons whose union it is, or one RLE; an empty list is an empty mask."""


@dataclass(frozen=True)
class Annotation:
    """The n labeled objects of one image.

    Boxes are ``[x1, y1, x2, y2)`` in continuous, 0-based pixel coordinates: a box over a whole image of
    width W and height H is ``(0, 0, W, H)``. Labels count from 0 in the order of the data set's classes.

    Attributes
    ----------
    boxes
        (n, 4) float32, pixels.
    labels
        (n,) int64 in 0..C-1.
    difficult
        (n,) bool, Pascal VOC's flag: neither found nor missed in scoring.
    iscrowd
        (n,) bool, COCO's flag: one region over many objects.
    area
        (n,) float32, square pixels: what the file states (COCO: of the mask), else of the box.
    masks
        One `Segmentation` an object, or None where the data set has no masks.
    """

    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    iscrowd: np.ndarray
    area: np.ndarray
    masks: tuple[Segmentation, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DetectionImage:
    """One image file with its annotation.

    Attributes
    ----------
    width, height
        Pixels of the picture as it is read, with its orientation applied if it is to be.
    turned
        Whether the file carries an orientation other than upright.
    """

    id: str | int
    path: Path
    width: int
    height: int
    annotation: Annotation
    orientation: Orientation = "exif"
    turned: bool = False


@dataclass(frozen=True)
class DetectionDataset:
    """A split, or several joined ones, read and checked.

    Attributes
    ----------
    name
        What to call it in logs and records, for example ``VOC2007 trainval``.
    classes
        Class names in label order.
    kind
        The layout it came from.
    category_ids
        COCO's (sparse) category ids in label order; 1..C for VOC.
    year
        The year of a VOC split; None for COCO and where splits of several years are joined.
    altered
        Whether something was read otherwise than the file states it (ids, flags, areas, masks), so that the
        file as it stands is no ground truth for reference evaluators.
    """

    name: str
    classes: tuple[str, ...]
    images: tuple[DetectionImage, ...]
    kind: Literal["voc", "coco"]
    category_ids: tuple[int, ...] = field(default=())
    year: int | None = None
    altered: bool = False


def decode_masks(image: DetectionImage) -> np.ndarray:
    """Return the masks of an image's n objects, (n, height, width) uint8 of 0 and 1.

    Raises ValueError where the data set has no masks.
    """
    segmentations = image.annotation.masks
    if segmentations is None:
        raise ValueError(f"{image.path}: its annotation holds no masks")
    from pycocotools import mask as coco_mask

    masks = np.zeros((len(segmentations), image.height, image.width), dtype=np.uint8)
    for mask, segmentation in zip(masks, segmentations, strict=True):
        if segmentation:
            mask[:] = coco_mask.decode(to_rle(segmentation, image.height, image.width))
    return masks


def to_rle(segmentation: Segmentation, height: int, width: int) -> Rle:
    """Return polygons, an uncompressed or a compressed RLE as one compressed RLE of (height, width)."""
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            return coco_mask.frPyObjects(segmentation, height, width)
        return segmentation
    if not segmentation:
        return coco_mask.encode(np.zeros((height, width), dtype=np.uint8, order="F"))
    return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
