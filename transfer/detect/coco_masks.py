"""Check COCO segmentations before anything trains on them."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from transfer.detect.datasets import Polygon, Rle, Segmentation, to_rle
from transfer.detect.defects import Defect, DefectPolicy


def settle_segmentation(
    segmentation: Any, width: int, height: int, policy: DefectPolicy, file: Path, what: str
) -> tuple[Segmentation | None, list[Defect]]:
    """Return a segmentation as the policy wants it, with what was wrong with it; None drops the object."""
    if not segmentation:
        defect = Defect(file, "missing_mask", f"{what}: it has no segmentation", policy.missing_mask)
        return ([] if policy.missing_mask == "keep" else None), [defect]
    action = policy.degenerate_mask
    if isinstance(segmentation, dict):
        problem = _rle_problem(segmentation, width, height)
        if problem is None:
            return segmentation, []
        defect = Defect(file, "degenerate_mask", f"{what}: its RLE {problem}", action)
        return ([] if action == "keep" else None), [defect]
    polygons = segmentation if isinstance(segmentation, list) else [segmentation]
    sound: list[Polygon] = []
    defects: list[Defect] = []
    for number, polygon in enumerate(polygons):
        problem = _polygon_problem(polygon)
        if problem is None:
            sound.append(polygon)
        else:
            message = f"{what}: polygon {number} of {len(polygons)} {problem}"
            defects.append(Defect(file, "degenerate_mask", message, action))
    return (sound if sound or action == "keep" else None), defects


def _polygon_problem(polygon: Any) -> str | None:
    if not isinstance(polygon, list) or not all(
        isinstance(value, int | float) and math.isfinite(value) for value in polygon
    ):
        return "is not a list of finite numbers"
    if len(polygon) < 6 or len(polygon) % 2:
        return f"has {len(polygon)} numbers, which are not three points or more"
    x, y = np.array(polygon, dtype=np.float64).reshape(-1, 2).T
    if abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2 <= 1e-9:
        return "encloses no area"
    return None


def _rle_problem(rle: Rle, width: int, height: int) -> str | None:
    if list(rle.get("size", ())) != [height, width]:
        return f"has size {rle.get('size')}, but the image is [{height}, {width}]"
    counts = rle.get("counts")
    if isinstance(counts, list):
        if not all(isinstance(c, int) and c >= 0 for c in counts) or sum(counts) != width * height:
            return f"counts do not add up to the image's {width * height} pixels"
    elif not isinstance(counts, str | bytes):
        return "has no counts"
    try:
        # Decoded, not only measured: decoding is what finds a string that runs past the image.
        area = coco_mask.decode(to_rle(rle, height, width)).sum()
    except ValueError as error:
        return f"cannot be decoded ({error})"
    return None if area else "is empty"
