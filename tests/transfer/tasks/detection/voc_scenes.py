"""Random detection data sets and predictions that meet every corner of the VOC metric."""

from pathlib import Path

import numpy as np

from carryover.core.data.objects.dataset import Annotation, DetectionDataset, DetectionImage
from carryover.transfer.tasks.detection.predictions import ImagePrediction

WIDTH, HEIGHT = 120, 90


def voc_annotation(boxes, labels, difficult=None) -> Annotation:
    """An annotation from 0-based continuous boxes."""
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    n = len(boxes)
    return Annotation(
        boxes=boxes,
        labels=np.array(labels, dtype=np.int64),
        difficult=np.zeros(n, dtype=bool) if difficult is None else np.array(difficult, dtype=bool),
        iscrowd=np.zeros(n, dtype=bool),
        area=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
    )


def voc_dataset(annotations, n_classes: int) -> DetectionDataset:
    """A data set of images that exist in memory only."""
    images = tuple(
        DetectionImage(f"{i:06d}", Path(f"{i:06d}.jpg"), WIDTH, HEIGHT, annotation)
        for i, annotation in enumerate(annotations)
    )
    classes = tuple(f"class{c}" for c in range(n_classes))
    return DetectionDataset("scenes", classes, images, "voc", tuple(range(1, n_classes + 1)), 2007)


def prediction(image_id, boxes, scores, labels) -> ImagePrediction:
    """A prediction from plain lists."""
    return ImagePrediction(
        image_id,
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(scores, dtype=np.float32),
        np.array(labels, dtype=np.int64),
    )


def random_scene(
    seed: int,
    images: int = 12,
    classes: int = 4,
    objects: int = 5,
    detections: int = 15,
    difficult: float = 0.25,
    tied_scores: bool = False,
) -> tuple[DetectionDataset, list[ImagePrediction]]:
    """Objects on whole pixels; detections near objects, anywhere, or exactly on them; some images empty.

    The last class but one has no object but detections, the last one neither.
    """
    random = np.random.default_rng(seed)
    annotations, predictions = [], []
    for number in range(images):
        n = int(random.integers(0, objects + 1))
        corner = np.stack([random.integers(0, WIDTH - 12, n), random.integers(0, HEIGHT - 12, n)], axis=1)
        boxes = np.concatenate([corner, corner + random.integers(2, 12, (n, 2))], axis=1)
        labels = random.integers(0, max(classes - 2, 1), n)
        annotations.append(voc_annotation(boxes, labels, random.random(n) < difficult))
        m = int(random.integers(0, detections + 1))
        corner = np.stack([random.uniform(0, WIDTH - 12, m), random.uniform(0, HEIGHT - 12, m)], axis=1)
        found = np.concatenate([corner, corner + random.uniform(0, 12, (m, 2))], axis=1)
        found_labels = random.integers(0, max(classes - 1, 1), m)
        if n:
            source = random.integers(0, n, m)
            near = random.random(m) < 0.8
            noise = random.choice([0.0, 0.5, 2.0], m)[:, None] * random.normal(size=(m, 4))
            found[near] = (boxes[source] + noise)[near]
            found_labels[near] = labels[source][near]
        found = np.clip(found, 0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2])
        scores = random.integers(0, 4, m) / 4 if tied_scores else random.random(m)
        predictions.append(prediction(f"{number:06d}", found, scores, found_labels))
    return voc_dataset(annotations, classes), predictions
