"""Random COCO data sets with boxes, polygons, RLEs and crowds, and predictions near them."""

import numpy as np
from pycocotools import mask as coco_mask

from carryover.core.data.objects.coco import read_coco
from carryover.transfer.tasks.detection.predictions import ImagePrediction, encode_masks
from tests.transfer.tasks.detection.layouts import write_coco

WIDTH, HEIGHT = 160, 120
CATEGORIES = {3: "cat", 11: "dog", 40: "never seen", 90: "person"}
SIDES = {"small": (4, 25), "medium": (35, 70), "large": (97, 110)}


def random_coco(folder, seed, sizes=("small", "medium", "large"), images=6, objects=6):
    """Return (annotation file, data set, predictions); the category 40 has no object but detections.

    The first image has no annotation. Masks are octagons: as polygons, or as RLE where they are crowds;
    every fourth object is a crowd. Scores are tied in part.
    """
    random = np.random.default_rng(seed)
    annotations = []
    for image_id in range(2, images + 1):
        for number in range(int(random.integers(1, objects + 1))):
            low, high = SIDES[sizes[random.integers(len(sizes))]]
            w, h = random.integers(low, high, 2)
            x, y = random.integers(0, WIDTH - w + 1), random.integers(0, HEIGHT - h + 1)
            polygon = octagon(x, y, w, h)
            rle = coco_mask.merge(coco_mask.frPyObjects([polygon], HEIGHT, WIDTH))
            is_crowd = number % 4 == 3
            annotations.append(
                {
                    "image_id": image_id,
                    "category_id": int(random.choice([3, 11, 90])),
                    "bbox": [float(x), float(y), float(w), float(h)],
                    "area": float(coco_mask.area(rle)),
                    "iscrowd": int(is_crowd),
                    "segmentation": uncompressed(coco_mask.decode(rle)) if is_crowd else [polygon],
                }
            )
    file, root = write_coco(folder, annotations, images, CATEGORIES, (WIDTH, HEIGHT))
    dataset, defects = read_coco(file, root)
    assert defects == []
    return file, dataset, [_predict(image, random) for image in dataset.images]


def octagon(x, y, w, h) -> list[float]:
    """A box with its corners cut off, as a COCO polygon."""
    px = [x + w / 4, x + 3 * w / 4, x + w, x + w, x + 3 * w / 4, x + w / 4, x, x]
    py = [y, y, y + h / 4, y + 3 * h / 4, y + h, y + h, y + 3 * h / 4, y + h / 4]
    return [float(v) for pair in zip(px, py, strict=True) for v in pair]


def uncompressed(mask) -> dict:
    """The uncompressed RLE of a mask: lengths of runs of 0, 1, 0, ... down the columns."""
    pixels = np.concatenate([[0], mask.ravel(order="F"), [1 - mask.ravel(order="F")[-1]]])
    ends = np.flatnonzero(np.diff(pixels))
    return {"size": list(mask.shape), "counts": np.diff(ends, prepend=0).tolist()}


def _predict(image, random) -> ImagePrediction:
    a = image.annotation
    boxes = np.concatenate([a.boxes, a.boxes + random.normal(size=a.boxes.shape) * 3, a.boxes[:1] * 0.5])
    boxes = np.clip(boxes, 0, [WIDTH, HEIGHT, WIDTH, HEIGHT]).astype(np.float32)
    masks = np.zeros((len(boxes), HEIGHT, WIDTH), dtype=np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        outline = [octagon(x1, y1, max(x2 - x1, 1), max(y2 - y1, 1))]
        mask[:] = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(outline, HEIGHT, WIDTH)))
    labels = np.concatenate([a.labels, a.labels, random.integers(0, 4, len(boxes) - 2 * len(a))])
    wrong = random.random(len(boxes)) < 0.2
    labels[wrong] = random.integers(0, 4, int(wrong.sum()))
    scores = random.integers(0, 5, len(boxes)) / 5
    return ImagePrediction(image.id, boxes, scores.astype(np.float32), labels, encode_masks(masks))


def results(predictions, category_ids, iou_type):
    """Return predictions as COCO's results: boxes, or masks without boxes."""
    listed = []
    for p in predictions:
        for i, (x1, y1, x2, y2) in enumerate(p.boxes):
            box = [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]
            listed.append(
                {
                    "image_id": p.image_id,
                    "category_id": category_ids[p.labels[i]],
                    "score": float(p.scores[i]),
                }
                | ({"bbox": box} if iou_type == "bbox" else {"segmentation": p.masks[i]})
            )
    return listed
