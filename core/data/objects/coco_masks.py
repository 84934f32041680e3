"""Check COCO segmentations before anything trains on them."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from carryover.core.data.defects import Defect, DefectPolicy
from carryover.core.data.objects.dataset import Polygon, Rle, Segmentation, to_rle


def settle_segmentation(
    segmentation: Any,
    box: tuple[float, float, float, float],
    width: int,
    height: int,
    policy: DefectPolicy,
    file: Path,
    what: str,
) -> tuple[Segmentation, list[Defect]]:
    """Return a segmentation as the policy wants it, with what was wrong; [] where nothing is left of it.

    An object loses no more than its mask. A flat list of numbers is one polygon; two corners are a rectangle
    where they are those of the object's `box` (x, y, width, height).
    """
    if not segmentation:
        return [], [policy.defect(file, "missing_mask", f"{what}: it has no segmentation")]
    if isinstance(segmentation, dict):
        problem = _rle_problem(segmentation, width, height)
        if problem is None:
            return segmentation, []
        return [], [policy.defect(file, "degenerate_mask", f"{what}: its RLE {problem}")]
    nested = isinstance(segmentation, list) and any(isinstance(part, list) for part in segmentation)
    polygons = [_flattened(part) for part in segmentation] if nested else [segmentation]
    if nested and (whole := _flattened(segmentation)) is not segmentation:
        polygons = [whole]
    sound: list[Polygon] = []
    defects: list[Defect] = []
    for number, polygon in enumerate(polygons):
        which = f"{what}: polygon {number} of {len(polygons)}"
        if (rectangle := _two_corners(polygon, box)) is not None:
            sound.append(rectangle)
            message = f"{which} has two corners, those of its box: taken as a rectangle"
            defects.append(policy.defect(file, "degenerate_mask", message, "keep"))
            continue
        problem = _polygon_problem(polygon)
        if problem is None:
            sound.append(polygon)
        else:
            defects.append(policy.defect(file, "degenerate_mask", f"{which} {problem}"))
    return sound, defects


def mask_area(mask: Segmentation, width: int, height: int) -> float:
    """Return a mask's area in square pixels."""
    from pycocotools import mask as coco_mask

    return float(coco_mask.area(to_rle(mask, height, width)))


def mask_box(mask: Segmentation, width: int, height: int) -> tuple[float, float, float, float] | None:
    """Return the box ``[x1, y1, x2, y2)`` around a mask (of polygons: their corners); None if it is empty."""
    if isinstance(mask, list):
        x = [value for polygon in mask for value in polygon[0::2]]
        y = [value for polygon in mask for value in polygon[1::2]]
        return (float(min(x)), float(min(y)), float(max(x)), float(max(y))) if x else None
    from pycocotools import mask as coco_mask

    x1, y1, w, h = coco_mask.toBbox(to_rle(mask, height, width)).tolist()
    return (x1, y1, x1 + w, y1 + h) if w and h else None


def _flattened(polygon: Any) -> Any:
    """Return a list of points [x, y] as one list of numbers; anything else as it is."""
    if isinstance(polygon, list) and polygon and all(isinstance(p, list) and len(p) == 2 for p in polygon):
        numbers = [value for point in polygon for value in point]
        return numbers if all(map(_is_coordinate, numbers)) else polygon
    return polygon


def _two_corners(polygon: Any, box: tuple[float, float, float, float]) -> Polygon | None:
    if not isinstance(polygon, list) or len(polygon) != 4 or not all(map(_is_coordinate, polygon)):
        return None
    x, y, w, h = box
    x1, y1, x2, y2 = (float(value) for value in polygon)
    if max(abs(x1 - x), abs(y1 - y), abs(x2 - x - w), abs(y2 - y - h)) > 1:
        return None
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def _is_coordinate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _polygon_problem(polygon: Any) -> str | None:
    if not isinstance(polygon, list) or not all(map(_is_coordinate, polygon)):
        return "is not a list of finite numbers inside the list of polygons"
    if len(polygon) < 6 or len(polygon) % 2:
        return f"has {len(polygon)} numbers, which are not three points or more"
    x, y = polygon[0::2], polygon[1::2]
    # Plain numbers: polygons are short, and arrays cost more than they save.
    twice = sum(
        x0 * y1 - x1 * y0 for x0, y0, x1, y1 in zip(x, y, [*x[1:], x[0]], [*y[1:], y[0]], strict=True)
    )
    return "encloses no area" if abs(twice) / 2 <= 1e-9 else None


def _rle_problem(rle: Rle, width: int, height: int) -> str | None:
    if list(rle.get("size", ())) != [height, width]:
        return f"has size {rle.get('size')}, but the image is [{height}, {width}]"
    counts = rle.get("counts")
    try:
        runs = np.array(counts, dtype=np.int64) if isinstance(counts, list) else _decompress(counts)
    except (ValueError, TypeError, OverflowError) as error:
        return f"has counts that cannot be read ({error})"
    if (runs < 0).any() or runs.sum() != width * height:
        return f"has runs that do not add up to the image's {width * height} pixels"
    return None if runs[1::2].any() else "is empty"


def _decompress(counts: Any) -> np.ndarray:
    """Return the run lengths in a compressed RLE's string, whatever they are.

    The format is that of COCO's ``maskApi.c`` (rleFrString): characters from 48 on carry 5 bits each, low
    ones first, 32 marks that more follow, the highest bit of the last is the sign; from the fourth run on,
    numbers are differences to the run before the last. Decoding with pycocotools would not tell a string
    that was cut off.

    Raises TypeError for what is no string and ValueError for one that is not of this format.
    """
    if not isinstance(counts, str | bytes):
        raise TypeError(f"expected a string or a list, not {type(counts).__name__}")
    text = counts.encode() if isinstance(counts, str) else counts
    codes = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - 48
    if not codes.size or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("not COCO's compressed form")
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise ValueError("a run of more than 35 bits")
    shifts = 5 * (np.arange(codes.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << shifts, starts)
    runs -= ((codes[ends] & 16) > 0).astype(np.int64) << 5 * lengths
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
