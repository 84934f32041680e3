"""Predictions to the metrics of a result record, by the rules of the data set's layout."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from carryover.core.data.objects.config import CocoData, DetectionData
from carryover.core.data.objects.dataset import DetectionDataset
from carryover.transfer.results.outcomes.detections import Detections, joined
from carryover.transfer.results.record import Metric, Setting
from carryover.transfer.tasks.detection.predictions import ImagePrediction


@dataclass(frozen=True)
class Scored:
    """The metrics, and what every detection matched, from which they can be counted again."""

    metrics: tuple[Metric, ...]
    outcomes: Detections


def score(
    data: DetectionData, dataset: DetectionDataset, predictions: Sequence[ImagePrediction], masks: bool
) -> Scored:
    """Return AP, AP50, AP75 (VOC), with APs, APm, APl (COCO), and for masks the same "of" the "mask".

    In percent; AP is the mean over IoU 0.50:0.95. None where a metric is undefined on this data. COCO is
    scored against the annotation file as it stands, as published numbers are; only where the recipe forgave
    that images of it are missing, or something was read otherwise than the file states it, against what was
    read.
    """
    n = len(dataset.images)
    if not isinstance(data, CocoData):
        from carryover.transfer.tasks.detection.voc_metrics import voc_ap

        voc = voc_ap(dataset, predictions, metric=data.metric)
        return Scored(_metrics({"AP": voc.ap, "AP50": voc.ap50, "AP75": voc.ap75}, n), voc.outcomes)

    from carryover.transfer.tasks.detection.coco_metrics import coco_ap

    annotations = data.root.expanduser() / data.test.annotations
    whole = n == len(json.loads(annotations.read_bytes())["images"])
    truth = annotations if whole and not dataset.altered else dataset
    found: tuple[Metric, ...] = ()
    outcomes: list[Detections] = []
    iou_types: tuple[Literal["bbox", "segm"], ...] = ("bbox", "segm")
    for iou_type in iou_types[: 1 + masks]:
        coco = coco_ap(truth, predictions, iou_type)
        values = {"AP": coco.ap, "AP50": coco.ap50, "AP75": coco.ap75}
        values |= {"APs": coco.aps, "APm": coco.apm, "APl": coco.apl}
        found += _metrics(values, n, of="mask" if iou_type == "segm" else None)
        outcomes.append(coco.outcomes)
    return Scored(found, joined(outcomes))


def _metrics(values: Mapping[str, float], n: int, of: str | None = None) -> tuple[Metric, ...]:
    params: dict[str, Setting] = {} if of is None else {"of": of}
    return tuple(
        Metric(name=name, params=params, value=None if math.isnan(value) else value, n=n)
        for name, value in values.items()
    )
