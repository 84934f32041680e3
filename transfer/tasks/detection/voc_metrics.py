"""Pascal VOC's average precision, equal to Detectron2's PascalVOCDetectionEvaluator.

The numbers are what that evaluator's come out as (``detectron2/evaluation/pascal_voc_evaluation.py``),
its peculiarities included, since the published VOC rows are its numbers:

- detections pass through a text file: scores are rounded to 3 decimals, box corners (shifted by one to
  VOC's 1-based pixels) to 1 decimal. Scores that differ by less become ties;
- a box from a to b is b - a + 1 wide, and a detection counts when its IoU is *greater* than the threshold;
- a detection is compared with the one object of its class it overlaps most. If that object was taken by a
  better detection it is a false positive, if it is difficult the detection counts for nothing;
- detections are ranked by numpy's default sort, in the order in which the predictions are given: it is not
  stable, so which of several tied detections goes first is its affair;
- a class without (non-difficult) objects counts as AP 0 in the means. With the area metric and at least
  one detection of it, its AP is 0 / 0, NaN, and so are the means: leave such a class out of the class list.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from carryover.core.data.objects.dataset import DetectionDataset
from carryover.transfer.tasks.detection.predictions import ImagePrediction, refuse_unscorable

log = logging.getLogger(__name__)

COCO_IOUS = tuple(percent / 100 for percent in range(50, 100, 5))
"""0.50, 0.55, ..., 0.95."""

# The recall levels of VOC2007, as Detectron2 spells them: 0.1 * 3 is a little more than 0.3.
RECALL_LEVELS = np.arange(0.0, 1.1, 0.1)

Metric = Literal["11point", "area"]


@dataclass(frozen=True)
class VocClassResult:
    """One class: its AP (percent) at each IoU of the result, and how many objects it has to find."""

    aps: tuple[float, ...]
    objects: int

    @property
    def ap(self) -> float:
        """The mean over the IoU thresholds."""
        return float(np.mean(self.aps))


@dataclass(frozen=True)
class VocResult:
    """AP in percent, means over the classes: over all IoU thresholds, at 0.50 and at 0.75.

    NaN where it is undefined (see above), or where that threshold was not asked for.
    """

    ap: float
    ap50: float
    ap75: float
    per_class: dict[str, VocClassResult]
    ious: tuple[float, ...]


@dataclass(frozen=True)
class _Table:
    """Boxes of many images as columns; `image` indexes the data set's images."""

    image: np.ndarray
    label: np.ndarray
    # (n, 4) float64, VOC's 1-based inclusive pixels.
    box: np.ndarray


def voc_ap(
    dataset: DetectionDataset,
    predictions: Sequence[ImagePrediction],
    metric: Metric,
    ious: Sequence[float] = COCO_IOUS,
) -> VocResult:
    """Score detections as Detectron2's PascalVOCDetectionEvaluator does, to 1e-6 and better.

    `metric` is the mean of 11 precisions (VOC2007) or the area under the precision envelope (VOC2010 on).
    Images without a prediction count as images without detections. Predictions are scored in the order
    given, which decides between ties (see above).

    Raises UserError for predictions that do not belong to the data set, WorkError for ones that are not
    finite.
    """
    objects, difficult = _objects(dataset)
    detections, scores = _detections(dataset, predictions)
    per_class: dict[str, VocClassResult] = {}
    for label, name in enumerate(dataset.classes):
        of_class = objects.label == label
        mine = np.flatnonzero(detections.label == label)
        # Not a stable sort, on purpose: the reference's, on the very array it sorts.
        ranking = mine[np.argsort(-scores[mine])]
        overlap, target = _best_overlaps(_rows(detections, ranking), _rows(objects, of_class))
        is_difficult = difficult[of_class]
        n_objects = int((~is_difficult).sum())
        if n_objects == 0:
            log.warning(
                "%s: no object of class '%s' to find (%d detections); it counts as AP %s in the means",
                dataset.name, name, len(ranking), "NaN" if metric == "area" and len(ranking) else "0",
            )  # fmt: skip
        aps = tuple(
            _average_precision(*_hits_and_misses(overlap, target, is_difficult, iou), n_objects, metric)
            for iou in ious
        )
        per_class[name] = VocClassResult(aps, n_objects)
    means = np.mean([result.aps for result in per_class.values()], axis=0)
    at = {round(iou, 6): float(mean) for iou, mean in zip(ious, means, strict=True)}
    return VocResult(float(means.mean()), at.get(0.5, np.nan), at.get(0.75, np.nan), per_class, tuple(ious))


def _rows(table: _Table, which: np.ndarray) -> _Table:
    return _Table(table.image[which], table.label[which], table.box[which])


def _objects(dataset: DetectionDataset) -> tuple[_Table, np.ndarray]:
    """Return all objects, ordered by image, and which of them are difficult."""
    annotations = [image.annotation for image in dataset.images]
    counts = [len(annotation) for annotation in annotations]
    boxes = np.concatenate([np.empty((0, 4)), *(a.boxes for a in annotations)]).astype(np.float64)
    # The inverse of reading: back to 1-based, inclusive pixels.
    boxes[:, :2] += 1
    labels = np.concatenate([np.empty(0, dtype=np.int64), *(a.labels for a in annotations)])
    difficult = np.concatenate([np.empty(0, dtype=bool), *(a.difficult for a in annotations)])
    return _Table(np.repeat(np.arange(len(counts)), counts), labels, boxes), difficult


def _detections(
    dataset: DetectionDataset, predictions: Sequence[ImagePrediction]
) -> tuple[_Table, np.ndarray]:
    """Return all detections in the order given, with boxes and scores as Detectron2 writes them down."""
    index = {image.id: number for number, image in enumerate(dataset.images)}
    refuse_unscorable(predictions, index, len(dataset.classes), dataset.name)
    images = np.repeat([index[p.image_id] for p in predictions], [len(p.scores) for p in predictions])
    labels = np.concatenate([np.empty(0, dtype=np.int64), *(p.labels for p in predictions)])
    boxes = np.concatenate([np.empty((0, 4), dtype=np.float32), *(p.boxes for p in predictions)])
    scores = np.concatenate([np.empty(0, dtype=np.float32), *(p.scores for p in predictions)])
    shifted = boxes.astype(np.float32) + np.array([1, 1, 0, 0], dtype=np.float32)
    return _Table(images.astype(np.int64), labels, _round(shifted, 1)), _round(scores.astype(np.float32), 3)


def _round(values: np.ndarray, decimals: int) -> np.ndarray:
    """Return float32 values as reading back their decimal text with so many decimals gives, in float64.

    Exact: 24 bits of significand times 10 or 1000 fit float64's 53, so that the product is not rounded.
    """
    scale = 10.0**decimals
    return np.rint(values.astype(np.float64) * scale) / scale


def _best_overlaps(detections: _Table, objects: _Table) -> tuple[np.ndarray, np.ndarray]:
    """Return every detection's largest IoU with an object of its image, and which object that is.

    Both tables hold one class; objects are ordered by image. The IoU is -inf where there is no object.
    """
    first = np.searchsorted(objects.image, detections.image, side="left")
    count = np.searchsorted(objects.image, detections.image, side="right") - first
    best = np.full(len(detections.image), -np.inf)
    best_object = np.zeros(len(detections.image), dtype=np.int64)
    extent = detections.box[:, 2:] - detections.box[:, :2] + 1.0
    area = extent[:, 0] * extent[:, 1]
    object_extent = objects.box[:, 2:] - objects.box[:, :2] + 1.0
    object_area = object_extent[:, 0] * object_extent[:, 1]
    rows = np.flatnonzero(count)
    # One pass for the first object of every image, one for the second, ...: rows shrink quickly.
    for rank in range(count.max(initial=0)):
        rows = rows[count[rows] > rank]
        candidate = first[rows] + rank
        low = np.maximum(detections.box[rows, :2], objects.box[candidate, :2])
        high = np.minimum(detections.box[rows, 2:], objects.box[candidate, 2:])
        sides = np.maximum(high - low + 1.0, 0.0)
        intersection = sides[:, 0] * sides[:, 1]
        iou = intersection / (area[rows] + object_area[candidate] - intersection)
        better = iou > best[rows]
        best[rows[better]] = iou[better]
        best_object[rows[better]] = candidate[better]
    return best, best_object


def _hits_and_misses(
    overlap: np.ndarray, target: np.ndarray, difficult: np.ndarray, iou: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return which ranked detections are true and which false positives; those on difficult are neither."""
    matched = np.flatnonzero(overlap > iou)
    counted = matched[~difficult[target[matched]]]
    # np.unique gives the first, that is the best ranked, detection of every object.
    first = counted[np.unique(target[counted], return_index=True)[1]]
    is_true = np.zeros(len(overlap), dtype=bool)
    is_true[first] = True
    is_false = overlap <= iou
    is_false[counted] = True
    is_false[first] = False
    return is_true, is_false


def _average_precision(is_true: np.ndarray, is_false: np.ndarray, n_objects: int, metric: Metric) -> float:
    """Return the average precision (percent) of ranked detections; NaN where it is undefined."""
    if n_objects == 0:
        return float("nan") if metric == "area" and len(is_true) else 0.0
    true = np.cumsum(is_true)
    recall = true / n_objects
    precision = true / np.maximum(true + np.cumsum(is_false), np.finfo(np.float64).eps)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if metric == "11point":
        reached = np.searchsorted(recall, RECALL_LEVELS, side="left")
        return 100 * float(np.append(envelope, 0.0)[reached].mean())
    return 100 * float(np.sum(np.diff(recall, prepend=0.0) * envelope))
