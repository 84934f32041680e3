"""COCO's average precision of boxes and masks, through hotcoco."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hotcoco import COCO, COCOeval

from carryover.configs.garbage import without_garbage_collection
from carryover.core.data.objects.dataset import DetectionDataset
from carryover.transfer.results.outcomes.detections import Detections
from carryover.transfer.tasks.detection.coco_columns import Columns, IouType, Truth, columns_of, read_truth
from carryover.transfer.tasks.detection.coco_matching import MOST, coco_outcomes
from carryover.transfer.tasks.detection.predictions import ImagePrediction

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


@without_garbage_collection()
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
    known = read_truth(truth, iou_type)
    detections = columns_of(known, predictions, iou_type)
    # (IoU thresholds, recalls, categories, area ranges, detections an image); -1 where undefined.
    precision = _evaluated(known, detections, iou_type)[..., -1]
    everything, small, medium, large = (precision[..., i] for i in range(len(AREA_RANGES)))
    column = _columns(known)
    return CocoResult(
        ap=_mean(everything),
        ap50=_mean(everything[0]),
        ap75=_mean(everything[5]),
        aps=_mean(small),
        apm=_mean(medium),
        apl=_mean(large),
        per_class={name: _mean(everything[:, :, column[label]]) for label, name in enumerate(known.classes)},
        outcomes=coco_outcomes(known, detections),
    )


def _columns(truth: Truth) -> np.ndarray:
    """Return each class's position in the order of COCO's category ids, in which means are summed."""
    return np.argsort(np.argsort(truth.category_ids))


def _evaluated(truth: Truth, detections: Columns, iou_type: IouType) -> np.ndarray:
    """Return the precision that COCOeval accumulates."""
    column = _columns(truth)
    images = [{"id": n, "width": w, "height": h} for n, (w, h) in enumerate(truth.sizes, start=1)]
    categories = [
        {"id": int(column[label]) + 1, "name": name}
        for label, name in sorted(enumerate(truth.classes), key=lambda entry: column[entry[0]])
    ]

    objects = truth.objects
    there = COCO.from_arrays(
        images,
        categories,
        image_ids=objects.image + 1,
        category_ids=column[objects.label] + 1,
        boxes=objects.boxes,
        area=objects.area,
        iscrowd=objects.crowd,
        segmentation=None if objects.masks is None else list(objects.masks),
    )
    rows = [detections.image + 1, *detections.boxes.T, detections.score, column[detections.label] + 1]
    if detections.masks is None:
        found = there.load_res(np.stack(rows, axis=1))
    else:
        found = there.load_res(np.stack(rows, axis=1), segmentation=list(detections.masks))
        found.update_anns(ids=np.arange(1, len(detections) + 1), area=detections.area)
    evaluation = COCOeval(there, found, iou_type)
    evaluation.params.maxDets = [MOST]
    evaluation.evaluate()
    evaluation.accumulate()
    assert evaluation.eval is not None
    precision: np.ndarray = evaluation.eval["precision"]
    return precision


def _mean(precision: np.ndarray) -> float:
    defined = precision[precision > -1]
    return 100 * float(defined.mean()) if defined.size else float("nan")
