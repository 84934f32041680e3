"""Pascal VOC's average precision, equal to Detectron2's PascalVOCDetectionEvaluator.

The numbers are what that evaluator's come out as (``detectron2/evaluation/pascal_voc_evaluation.py``),
its peculiarities included, since the published VOC rows are its numbers:

- detections pass through a text file: scores are rounded to 3 decimals, box corners (shifted by one to
  VOC's 1-based pixels) to 1 decimal. Scores that differ by less become ties;
- a box from a to b is b - a + 1 wide, and a detection counts when its IoU is *greater* than the threshold;
- a detection is compared with the one object of its class it overlaps most. If that object was taken by a
  better detection it is a false positive, if it is difficult the detection counts for nothing;
- detections are ranked by their scores. The reference leaves ties to numpy's default sort, whose order is
  the processor's (with AVX-512, AVX2 or neither: 57.179, 57.163 and 57.127 of one file's AP50). Here the
  detection of the earlier prediction goes first, and within one the earlier one: on files without ties the
  numbers are the reference's, on others they are the same everywhere;
- a class without (non-difficult) objects has no AP and is in no mean. The reference counts it as 0 or, with
  the area metric and at least one detection of it, makes every mean NaN: the means are what the reference
  gives for a list of classes without it.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from carryover.core.data.objects.dataset import DetectionDataset
from carryover.transfer.results.outcomes.detections import Detections, pack
from carryover.transfer.tasks.detection.predictions import ImagePrediction, refuse_unscorable

log = logging.getLogger(__name__)

COCO_IOUS = tuple(percent / 100 for percent in range(50, 100, 5))
"""0.50, 0.55, ..., 0.95."""

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

    NaN where it is undefined (see above), or where that threshold was not asked for. `outcomes` is what the
    numbers were counted from.
    """

    ap: float
    ap50: float
    ap75: float
    per_class: dict[str, VocClassResult]
    ious: tuple[float, ...]
    outcomes: Detections


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
    Images without a prediction count as images without detections. Of tied detections that of the earlier
    image goes first, in the order of the data set.

    Raises UserError for predictions that do not belong to the data set, WorkError for ones that are not
    finite.
    """
    outcomes = voc_outcomes(dataset, predictions, metric, ious)
    aps = outcomes.aps()
    objects = np.bincount(
        outcomes.object_label, weights=outcomes.objects[:, 0], minlength=len(dataset.classes)
    ).astype(int)
    per_class = {
        name: VocClassResult(tuple(aps[label].tolist()), int(objects[label]))
        for label, name in enumerate(dataset.classes)
    }
    means = aps[objects > 0].mean(axis=0) if objects.any() else np.full(len(ious), np.nan)
    at = {round(iou, 6): float(mean) for iou, mean in zip(ious, means, strict=True)}
    ap50, ap75 = at.get(0.5, np.nan), at.get(0.75, np.nan)
    return VocResult(float(means.mean()), ap50, ap75, per_class, tuple(ious), outcomes)


def voc_outcomes(
    dataset: DetectionDataset,
    predictions: Sequence[ImagePrediction],
    metric: Metric,
    ious: Sequence[float] = COCO_IOUS,
) -> Detections:
    """Match every detection; raises what `voc_ap` does."""
    objects, difficult = _objects(dataset)
    detections, scores = _detections(dataset, predictions)
    true = np.zeros((len(scores), len(ious)), dtype=bool)
    ignored = np.zeros_like(true)
    for label in range(len(dataset.classes)):
        of_class = objects.label == label
        mine = np.flatnonzero(detections.label == label)
        ranking = mine[np.argsort(-scores[mine], kind="stable")]
        overlap, target = _best_overlaps(_rows(detections, ranking), _rows(objects, of_class))
        for t, iou in enumerate(ious):
            is_true, is_false = _hits_and_misses(overlap, target, difficult[of_class], iou)
            true[ranking, t], ignored[ranking, t] = is_true, ~(is_true | is_false)
    wanted, times = np.unique(
        np.stack([objects.image, objects.label])[:, ~difficult], axis=1, return_counts=True
    )
    return Detections(
        ids=tuple(str(image.id) for image in dataset.images),
        rule=metric,
        names=dataset.classes,
        ious=tuple(ious),
        parts=({},),
        part=np.zeros(len(scores), dtype=np.uint8),
        image=detections.image.astype(np.int32),
        label=detections.label.astype(np.int32),
        score=scores,
        true=pack(true)[:, None],
        ignored=pack(ignored)[:, None],
        object_part=np.zeros(len(times), dtype=np.uint8),
        object_image=wanted[0].astype(np.int32),
        object_label=wanted[1].astype(np.int32),
        objects=times.astype(np.int32)[:, None],
    )


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
    """Return all detections, image by image, with boxes and scores as Detectron2 writes them down."""
    index = {image.id: number for number, image in enumerate(dataset.images)}
    refuse_unscorable(predictions, index, len(dataset.classes), dataset.name)
    predictions = sorted(predictions, key=lambda p: index[p.image_id])
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
