"""The VOC metric written out plainly, from its description: text, loops, one detection at a time."""

import math

import numpy as np


def as_written_down(boxes, scores):
    """Boxes and scores after a result file of 1 and 3 decimals, in 1-based pixels."""
    lines = []
    for (x1, y1, x2, y2), score in zip(np.float32(boxes), np.float32(scores), strict=True):
        x1, y1 = x1 + np.float32(1), y1 + np.float32(1)
        lines.append(f"{float(score):.3f} {float(x1):.1f} {float(y1):.1f} {float(x2):.1f} {float(y2):.1f}")
    return [[float(word) for word in line.split(" ")] for line in lines]


def inclusive_iou(a, b):
    """Intersection over union of boxes whose last row and column belong to them."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]) + 1, 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]) + 1, 0)
    both = width * height
    return both / (
        (a[2] - a[0] + 1) * (a[3] - a[1] + 1) + (b[2] - b[0] + 1) * (b[3] - b[1] + 1) - both
    )  # fmt: skip


def class_ap(dataset, predictions, label, iou, metric):
    """AP (0..1) of one class at one IoU threshold."""
    objects = {}
    for image in dataset.images:
        a = image.annotation
        objects[image.id] = [
            {"box": (x1 + 1.0, y1 + 1.0, x2, y2), "difficult": bool(d), "taken": False}
            for (x1, y1, x2, y2), one, d in zip(a.boxes.tolist(), a.labels, a.difficult, strict=True)
            if one == label
        ]
    to_find = sum(not o["difficult"] for found in objects.values() for o in found)
    if not to_find:
        return math.nan
    detections = []
    for p in predictions:
        for line, one in zip(as_written_down(p.boxes, p.scores), p.labels, strict=True):
            if one == label:
                detections.append((p.image_id, line[0], line[1:]))
    # A stable sort: of equal scores, the one listed first.
    order = sorted(range(len(detections)), key=lambda i: -detections[i][1])
    true = false = 0
    curve = []
    for image_id, _, box in (detections[i] for i in order):
        best = max(objects[image_id], key=lambda o: inclusive_iou(box, o["box"]), default=None)
        if best is None or inclusive_iou(box, best["box"]) <= iou:
            false += 1
        elif not best["difficult"]:
            true, false = (true, false + 1) if best["taken"] else (true + 1, false)
            best["taken"] = True
        recall = true / to_find
        curve.append((recall, true / (true + false) if true + false else 0.0))
    if metric == "11point":
        levels = np.arange(0.0, 1.1, 0.1)
        return sum(max((p for r, p in curve if r >= level), default=0.0) for level in levels) / 11
    area, reached = 0.0, 0.0
    for position, (recall, _) in enumerate(curve):
        area += (recall - reached) * max(p for _, p in curve[position:])
        reached = recall
    return area


def voc_ap_oracle(dataset, predictions, metric, ious):
    """Percent AP, (IoUs, classes)."""
    return 100 * np.array(
        [
            [class_ap(dataset, predictions, c, iou, metric) for c in range(len(dataset.classes))]
            for iou in ious
        ]
    )
