"""A data set's objects and a detector's detections as the columns that COCO's metric is counted from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from hotcoco import mask as coco_mask
from numpy.typing import NDArray

from carryover.configs.errors import UserError
from carryover.core.data.objects.coco import load_coco_json
from carryover.core.data.objects.dataset import DetectionDataset, Rle, Segmentation, to_rle
from carryover.transfer.tasks.detection.predictions import ImagePrediction, refuse_unscorable

IouType = Literal["bbox", "segm"]


@dataclass(frozen=True, eq=False)
class Columns:
    """n objects or detections.

    Attributes
    ----------
    image, label
        (n,): which image (by its number), which class.
    boxes
        (n, 4) float64 ``[x, y, width, height]``, pixels.
    area
        (n,) float64, square pixels.
    crowd
        (n,) bool; false for detections.
    score
        (n,) float64; 0 for objects.
    masks
        n compressed RLEs in the metric of masks, else None.
    """

    image: NDArray[np.int64]
    label: NDArray[np.int64]
    boxes: NDArray[np.float64]
    area: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    score: NDArray[np.float64]
    masks: tuple[Rle, ...] | None = None

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True, eq=False)
class Truth:
    """Objects to find.

    Attributes
    ----------
    ids
        The images, in the order in which detections of equal scores go.
    sizes
        Width and height of each.
    classes, category_ids
        In label order.
    objects
        Everything labeled in these images and classes, in the order of the file.
    """

    name: str
    ids: tuple[str | int, ...]
    sizes: tuple[tuple[int, int], ...]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    objects: Columns


def read_truth(truth: DetectionDataset | Path, iou_type: IouType) -> Truth:
    """Return the objects of a data set, or of a COCO annotation file as it stands.

    An object without a mask is a crowd over its box in the metric of masks: what covers it is neither right
    nor wrong. Raises UserError for an annotation without image, category or box, for polygons in an image
    without a size, and where masks are asked of a data set that has none.
    """
    return _of_file(truth, iou_type) if isinstance(truth, Path) else _of_dataset(truth, iou_type)


def columns_of(truth: Truth, predictions: Sequence[ImagePrediction], iou_type: IouType) -> Columns:
    """Return all detections, boxes as float32 differences like Detectron2's.

    Raises as `refuse_unscorable` does, and UserError for predictions without masks.
    """
    numbers = {image_id: number for number, image_id in enumerate(truth.ids)}
    refuse_unscorable(predictions, numbers, len(truth.classes), truth.name)
    with_any = [p for p in predictions if len(p.scores)]
    if iou_type == "segm":
        for p in with_any:
            if p.masks is None:
                raise UserError(f"prediction for image {p.image_id!r}: it holds no masks to score")
    corners = np.concatenate([np.empty((0, 4), np.float32), *(p.boxes for p in with_any)]).astype(np.float32)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).astype(np.float64)
    n = [len(p.scores) for p in with_any]
    area = boxes[:, 2] * boxes[:, 3]
    masks = tuple(m for p in with_any for m in p.masks or ()) if iou_type == "segm" else None
    if masks:
        # pycocotools 2.0.11 fails here beyond 255 masks with numpy 2.
        area = coco_mask.area(list(masks)).astype(np.float64)
    return Columns(
        image=np.repeat(np.array([numbers[p.image_id] for p in with_any], dtype=np.int64), n),
        label=np.concatenate([np.empty(0, np.int64), *(p.labels for p in with_any)]).astype(np.int64),
        boxes=boxes,
        area=area,
        crowd=np.zeros(len(boxes), dtype=bool),
        score=np.concatenate([np.empty(0), *(p.scores for p in with_any)]).astype(np.float64),
        masks=masks,
    )


def _of_file(path: Path, iou_type: IouType) -> Truth:
    content = load_coco_json(path)
    images = sorted(content["images"], key=lambda image: image["id"])
    categories = sorted(content["categories"], key=lambda category: category["id"])
    numbers = {image["id"]: number for number, image in enumerate(images)}
    labels = {category["id"]: label for label, category in enumerate(categories)}
    listed = []
    for number, annotation in enumerate(content["annotations"]):
        if not {"image_id", "category_id", "bbox"} <= annotation.keys():
            raise UserError(f"{path}: annotations[{number}] needs image_id, category_id and bbox")
        if annotation["image_id"] in numbers and annotation["category_id"] in labels:
            listed.append(annotation)
    boxes = np.array([a["bbox"] for a in listed], dtype=np.float64).reshape(-1, 4)
    area = boxes[:, 2] * boxes[:, 3]
    stated = [a.get("area") for a in listed]
    area = np.array([own if own is not None else of_box for own, of_box in zip(stated, area.tolist())])
    crowd = np.array([bool(a.get("iscrowd", 0)) for a in listed], dtype=bool)
    masks = None
    if iou_type == "segm":
        sizes = [_size(path, images[numbers[a["image_id"]]], a) for a in listed]
        masks, crowd = _masks([a.get("segmentation") for a in listed], boxes, crowd, sizes)
    return Truth(
        name=str(path),
        ids=tuple(image["id"] for image in images),
        sizes=tuple((image.get("width") or 0, image.get("height") or 0) for image in images),
        classes=tuple(category["name"] for category in categories),
        category_ids=tuple(category["id"] for category in categories),
        objects=Columns(
            image=np.array([numbers[a["image_id"]] for a in listed], dtype=np.int64),
            label=np.array([labels[a["category_id"]] for a in listed], dtype=np.int64),
            boxes=boxes,
            area=area.astype(np.float64),
            crowd=crowd,
            score=np.zeros(len(listed)),
            masks=masks,
        ),
    )


def _of_dataset(dataset: DetectionDataset, iou_type: IouType) -> Truth:
    # Of equal scores the image with the smaller id goes first, where all ids are numbers.
    images = dataset.images
    if all(isinstance(image.id, int) for image in images):
        images = tuple(sorted(images, key=lambda image: image.id))
    found = [image.annotation for image in images]
    if iou_type == "segm" and any(a.masks is None for a in found):
        raise UserError(f"{dataset.name}: its annotations hold no masks, so masks cannot be scored")
    corners = np.concatenate([np.empty((0, 4)), *(a.boxes for a in found)]).astype(np.float64)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    n = [len(a) for a in found]
    crowd = np.concatenate([np.empty(0, dtype=bool), *(a.iscrowd for a in found)]).astype(bool)
    masks = None
    if iou_type == "segm":
        sizes = [(image.height, image.width) for image, times in zip(images, n) for _ in range(times)]
        masks, crowd = _masks([m for a in found for m in a.masks or ()], boxes, crowd, sizes)
    return Truth(
        name=dataset.name,
        ids=tuple(image.id for image in images),
        sizes=tuple((image.width, image.height) for image in images),
        classes=dataset.classes,
        category_ids=dataset.category_ids,
        objects=Columns(
            image=np.repeat(np.arange(len(images), dtype=np.int64), n),
            label=np.concatenate([np.empty(0, np.int64), *(a.labels for a in found)]).astype(np.int64),
            boxes=boxes,
            area=np.concatenate([np.empty(0), *(a.area for a in found)]).astype(np.float64),
            crowd=crowd,
            score=np.zeros(len(boxes)),
            masks=masks,
        ),
    )


def _masks(
    segmentations: Sequence[Segmentation | None],
    boxes: np.ndarray,
    crowd: np.ndarray,
    sizes: Sequence[tuple[int, int]],
) -> tuple[tuple[Rle, ...], NDArray[np.bool_]]:
    """Return a mask an object, and which objects are crowds; `sizes` are height and width."""
    masks, crowds = [], crowd.copy()
    for i, (segmentation, size) in enumerate(zip(segmentations, sizes)):
        if not segmentation:
            x, y, w, h = boxes[i].tolist()
            segmentation, crowds[i] = [[x, y, x + w, y, x + w, y + h, x, y + h]], True
        masks.append(to_rle(segmentation, *size))
    return tuple(masks), crowds


def _size(path: Path, image: dict[str, Any], annotation: dict[str, Any]) -> tuple[int, int]:
    """Return height and width of an annotation's mask."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        height, width = segmentation["size"]
        return height, width
    if image.get("height") and image.get("width"):
        return image["height"], image["width"]
    if segmentation:
        raise UserError(f"{path}: image {image['id']} states no width and height, and its polygons need them")
    x, y, w, h = annotation["bbox"]
    return math.ceil(y + h), math.ceil(x + w)
