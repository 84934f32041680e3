"""COCO's average precision of boxes and masks, through faster-coco-eval."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from pycocotools import mask as coco_mask

from carryover.configs.errors import UserError
from carryover.core.data.objects.coco import load_coco_json
from carryover.core.data.objects.dataset import DetectionDataset, to_rle
from carryover.transfer.results.outcomes.detections import Detections
from carryover.transfer.tasks.detection.coco_matching import GroundTruth, IouType, coco_outcomes
from carryover.transfer.tasks.detection.predictions import ImagePrediction, refuse_unscorable

log = logging.getLogger(__name__)

AREA_RANGES = ("all", "small", "medium", "large")


@dataclass(frozen=True)
class CocoResult:
    """COCO's AP in percent, with at most 100 detections an image.

    NaN, where COCO's tools print -1: there is no object to find of that size (32 and 96 pixels square
    part small, medium and large), or of that class. No detections at all are an AP of 0.

    Attributes
    ----------
    ap, ap50, ap75
        Over IoU 0.50:0.95, at 0.50 and at 0.75.
    aps, apm, apl
        Small, medium and large objects, over IoU 0.50:0.95.
    per_class
        AP over IoU 0.50:0.95 by class name; classes without objects do not count in the means.
    outcomes
        What every detection matched.
    """

    ap: float
    ap50: float
    ap75: float
    aps: float
    apm: float
    apl: float
    per_class: dict[str, float]
    outcomes: Detections


def coco_ap(
    truth: DetectionDataset | Path, predictions: Sequence[ImagePrediction], iou_type: IouType
) -> CocoResult:
    """Score boxes (``bbox``) or masks (``segm``) as pycocotools' COCOeval does.

    `truth` is a data set as read (what the defect policy dropped is not scored), or a COCO annotation file
    as it stands, whose labels are then its categories in the order of their ids: give the file where the
    number is to be compared with a published one. Crowd regions are ignored as COCO does; VOC's difficult
    flag means nothing here. Images without a prediction count as images without detections. In the metric of
    masks an object without one is ignored, and what is found at its box counts for nothing. Of detections
    with equal scores that of the image with the smaller id goes first, and within one the earlier one.

    Raises UserError for predictions that do not belong to the data set and for predictions without masks,
    WorkError for boxes or scores that are not finite.
    """
    known = _from_file(truth, iou_type) if isinstance(truth, Path) else _from_dataset(truth, iou_type)
    # Neither COCO's loader nor its evaluator survives an empty list in all versions: index it ourselves.
    ground_truth, detections = COCO(), COCO()
    ground_truth.dataset = known.content
    detections.dataset = known.content | {"annotations": _detections(known, predictions, iou_type, truth)}
    ground_truth.createIndex()
    detections.createIndex()
    evaluation = COCOeval_faster(ground_truth, detections, iou_type, print_function=log.debug)
    evaluation.params.catIds = sorted(known.category_ids)
    evaluation.evaluate()
    evaluation.accumulate()
    # (IoU thresholds, recalls, categories, area ranges, detections an image); -1 where undefined.
    precision = evaluation.eval["precision"][..., -1]
    everything, small, medium, large = (precision[..., i] for i in range(len(AREA_RANGES)))
    outcomes = coco_outcomes(evaluation, known, iou_type)
    column = {category_id: k for k, category_id in enumerate(sorted(known.category_ids))}
    return CocoResult(
        ap=_mean(everything),
        ap50=_mean(everything[0]),
        ap75=_mean(everything[5]),
        aps=_mean(small),
        apm=_mean(medium),
        apl=_mean(large),
        per_class={
            name: _mean(everything[:, :, column[category_id]])
            for name, category_id in zip(known.classes, known.category_ids, strict=True)
        },
        outcomes=outcomes,
    )


def _mean(precision: np.ndarray) -> float:
    defined = precision[precision > -1]
    return 100 * float(defined.mean()) if defined.size else float("nan")


def _name(truth: DetectionDataset | Path) -> str:
    return str(truth) if isinstance(truth, Path) else truth.name


def _from_file(path: Path, iou_type: IouType) -> GroundTruth:
    content = load_coco_json(path)
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in content["images"]}
    annotations = []
    # An id of 0 would read as "unmatched" inside the evaluation.
    for number, annotation in enumerate(content["annotations"], start=1):
        if not {"image_id", "category_id", "bbox"} <= annotation.keys():
            raise UserError(f"{path}: annotations[{number - 1}] needs image_id, category_id and bbox")
        width, height = annotation["bbox"][2:]
        complete = {"area": width * height, "iscrowd": 0} | annotation | {"id": number}
        if iou_type == "segm" and not complete.get("segmentation"):
            complete |= _without_a_mask(complete["bbox"], *sizes.get(complete["image_id"], (None, None)))
        annotations.append(complete)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    return GroundTruth(
        {"images": content["images"], "annotations": annotations, "categories": categories},
        {image["id"]: image["id"] for image in content["images"]},
        tuple(category["id"] for category in categories),
        tuple(category["name"] for category in categories),
    )


def _without_a_mask(box: Sequence[float], height: int | None, width: int | None) -> dict[str, Any]:
    """Return what stands for a mask that is not there: a crowd over the box (x, y, width, height).

    Without a mask it is no object of this metric: what covers it is neither right nor wrong.
    """
    x, y, w, h = box
    rectangle = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    size = (height or math.ceil(y + h), width or math.ceil(x + w))
    return {"segmentation": to_rle(rectangle, *size), "iscrowd": 1}


def _from_dataset(dataset: DetectionDataset, iou_type: IouType) -> GroundTruth:
    ids = [image.id for image in dataset.images]
    # Tied detections are ranked by image id: keep COCO's own.
    numbers: dict[str | int, int] = {i: i for i in ids if isinstance(i, int)}
    if len(numbers) < len(ids):
        numbers = {i: n for n, i in enumerate(ids, start=1)}
    annotations: list[dict[str, Any]] = []
    for image in dataset.images:
        a = image.annotation
        if iou_type == "segm" and a.masks is None:
            raise UserError(f"{dataset.name}: its annotations hold no masks, so masks cannot be scored")
        for i, (x1, y1, x2, y2) in enumerate(a.boxes.astype(np.float64)):
            annotation = {
                "id": len(annotations) + 1,
                "image_id": numbers[image.id],
                "category_id": dataset.category_ids[a.labels[i]],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": float(a.area[i]),
                "iscrowd": int(a.iscrowd[i]),
            }
            if iou_type == "segm" and a.masks is not None:
                mask = a.masks[i]
                annotation |= (
                    {"segmentation": to_rle(mask, image.height, image.width)}
                    if mask
                    else _without_a_mask(annotation["bbox"], image.height, image.width)
                )
            annotations.append(annotation)
    content = {
        "images": [{"id": numbers[i.id], "width": i.width, "height": i.height} for i in dataset.images],
        "annotations": annotations,
        "categories": [
            {"id": category_id, "name": name}
            for category_id, name in zip(dataset.category_ids, dataset.classes, strict=True)
        ],
    }
    return GroundTruth(content, numbers, dataset.category_ids, dataset.classes)


def _detections(
    known: GroundTruth,
    predictions: Sequence[ImagePrediction],
    iou_type: IouType,
    truth: DetectionDataset | Path,
) -> list[dict[str, Any]]:
    """Return the detections in COCO's form, boxes as float32 differences like Detectron2's."""
    listed: list[dict[str, Any]] = []
    refuse_unscorable(predictions, known.image_ids, len(known.classes), _name(truth))
    for p in predictions:
        if iou_type == "segm" and p.masks is None and len(p.scores):
            raise UserError(f"prediction for image {p.image_id!r}: it holds no masks to score")
        boxes = p.boxes.astype(np.float32)
        boxes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64)
        areas = boxes[:, 2] * boxes[:, 3]
        masks = p.masks if iou_type == "segm" and p.masks is not None else ()
        if masks:
            areas = coco_mask.area(list(masks)).astype(np.float64)
        for i, score in enumerate(p.scores.tolist()):
            detection = {
                "id": len(listed) + 1,
                "image_id": known.image_ids[p.image_id],
                "category_id": known.category_ids[p.labels[i]],
                "bbox": boxes[i].tolist(),
                "area": float(areas[i]),
                "iscrowd": 0,
                "score": score,
            }
            listed.append(detection | ({"segmentation": masks[i]} if masks else {}))
    return listed
