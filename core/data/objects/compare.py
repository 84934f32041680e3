"""Comparisons before training: boxes with their masks, boxes with the size of a pixel."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from carryover.configs.counted import counted_of
from carryover.core.data.defects import Defect, DefectPolicy
from carryover.core.data.objects.coco_masks import mask_box
from carryover.core.data.objects.dataset import DetectionImage

Box = tuple[float, float, float, float]
_AGREES = 0.5
"""Least overlap (IoU) of a box with the box around its mask."""
FEW = 4
"""Fewer objects are not judged."""
MANY = 0.25
"""Share of objects that disagree from which on it is the data set that is written otherwise."""


def compare_boxes(
    file: Path,
    images: Sequence[DetectionImage],
    boxes: Mapping[int | str, Sequence[Box]],
    policy: DefectPolicy,
) -> list[Defect]:
    """Compare every box with its own mask and with a pixel.

    One defect for the data set where more than a quarter of the objects disagree, with a guess at how it is
    written. `boxes` are [x1, y1, x2, y2) by image, parallel to the annotations.
    """
    defects: list[Defect] = []
    small = sum(edge < 1 for image in images for edge in _shorter(image))
    total = sum(len(i.annotation) for i in images)
    normalized = total >= FEW and small > MANY * total
    if normalized:
        message = (
            f"{small} of {total} boxes are less than a pixel wide or high: are they normalized"
            " (fractions of the image's size)?"
        )
        defects.append(policy.defect(file, "below_pixel", message))
    pairs = [
        (box, around, image)
        for image in images
        for box, mask in zip(boxes.get(image.id, ()), image.annotation.masks or ())
        if mask and (around := mask_box(mask, image.width, image.height)) is not None
    ]
    wrong = [(b, a, i) for b, a, i in pairs if _overlap(b, a) < _AGREES]
    if len(pairs) >= FEW and len(wrong) > MANY * len(pairs):
        guess = "normalized coordinates?" if normalized else _guess(pairs)
        box, around, image = wrong[0]
        example = f"{_shown(box)} with {_shown(around)} in {image.path.name}"
        message = (
            f"{counted_of(wrong, pairs, 'box', 'overlaps', 'overlap')} less than half with the box"
            f" around their own mask (for example {example}): {guess}"
        )
        defects.append(policy.defect(file, "box_mask_mismatch", message))
    return defects


def repeated_objects(file: Path, images: Sequence[DetectionImage], policy: DefectPolicy) -> list[Defect]:
    """Return one defect where more than a quarter of the objects repeat another one of their image."""
    total, repeats, example = 0, 0, ""
    for image in images:
        found = image.annotation
        if len(found) < 2:
            total += len(found)
            continue
        rows = np.column_stack([found.boxes, found.labels])
        extra = len(rows) - len(np.unique(rows, axis=0))
        total, repeats = total + len(rows), repeats + extra
        example = example or (image.path.name if extra else "")
    if total < FEW or repeats <= MANY * total:
        return []
    message = (
        f"{repeats} of {total} objects repeat another one of the same image, class and box (for example in"
        f" {example}): were exports merged?"
    )
    return [policy.defect(file, "repeated_object", message)]


def _shorter(image: DetectionImage) -> list[float]:
    boxes = image.annotation.boxes
    return np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]).tolist() if len(boxes) else []


def _guess(pairs: Sequence[tuple[Box, Box, DetectionImage]]) -> str:
    """Return the probable convention of the boxes or masks: the one under which most of them agree."""

    def agree(changed: Sequence[tuple[Box, Box]]) -> float:
        return float(np.mean([_overlap(one, other) >= _AGREES for one, other in changed]))

    ways = {
        "are the boxes corners x1, y1, x2, y2 in place of x, y, width, height?": [
            ((b[0], b[1], b[2] - b[0], b[3] - b[1]), a) for b, a, _ in pairs
        ],
        "are x and y swapped in the boxes?": [((b[1], b[0], b[3], b[2]), a) for b, a, _ in pairs],
        "are the boxes' x, y the center?": [
            ((b[0] - (b[2] - b[0]) / 2, b[1] - (b[3] - b[1]) / 2, (b[0] + b[2]) / 2, (b[1] + b[3]) / 2), a)
            for b, a, _ in pairs
        ],
        "are the boxes of pictures of half the size?": [
            ((2 * b[0], 2 * b[1], 2 * b[2], 2 * b[3]), a) for b, a, _ in pairs
        ],
        "are the boxes of pictures of twice the size?": [
            ((b[0] / 2, b[1] / 2, b[2] / 2, b[3] / 2), a) for b, a, _ in pairs
        ],
    }
    best = max(ways, key=lambda way: agree(ways[way]))
    if agree(ways[best]) > 1 - MANY:
        return best
    if np.mean([max(around) <= 1 for _, around, _ in pairs]) > 1 - MANY:
        return "are the polygons normalized (fractions of the image's size)?"
    if any(isinstance(m, dict) for _, _, image in pairs for m in image.annotation.masks or ()):
        return "are the run lengths written by rows in place of by columns?"
    return "one of the two is written otherwise than COCO's"


def _overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    areas = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other))
    return both / (areas - both)


def _shown(box: Box) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box) + "]"
