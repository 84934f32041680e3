"""Matching of detections with objects by COCO's rules, for all images at once."""

import numpy as np
from hotcoco import mask as coco_mask
from numpy.typing import NDArray

from carryover.transfer.results.outcomes.detections import Detections, pack
from carryover.transfer.tasks.detection.coco_columns import Columns, Truth

IOUS = np.linspace(0.5, 0.95, 10)
# COCO's areas, square pixels: all, small, medium and large.
AREAS = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]], dtype=np.float64)
# Of one class in one image the best that many detections are scored.
MOST = 100


def coco_outcomes(truth: Truth, detections: Columns) -> Detections:
    """Return what every detection matches, as pycocotools' COCOeval.evaluateImg has it.

    In every image and class the detections choose from the highest score down, each the object that it
    overlaps most among those that are left; of equal overlaps the last one. An object that counts goes before
    any that does not (a crowd, another area), however well that is covered; crowds may be chosen
    any number of times.
    """
    objects, n_classes = truth.objects, len(truth.classes)
    place = objects.image * n_classes + objects.label
    in_order = np.argsort(place, kind="stable")
    place = place[in_order]
    crowd = objects.crowd[in_order]
    ignore = crowd[:, None] | _outside(objects.area[in_order])

    place_of = detections.image * n_classes + detections.label
    order = np.lexsort((-detections.score, place_of))
    rank = _rank(place_of[order])
    order, rank = order[rank < MOST], rank[rank < MOST]
    place_of = place_of[order]
    outside = _outside(detections.area[order])

    first = np.searchsorted(place, place_of, side="left")
    times = np.searchsorted(place, place_of, side="right") - first
    detection = np.repeat(np.arange(len(order)), times)
    thing = np.repeat(first, times) + _count_up(times)
    overlap = (
        _box_overlaps(detections.boxes[order][detection], objects.boxes[in_order][thing], crowd[thing])
        if detections.masks is None
        else _mask_overlaps(detections, objects, order, in_order, place_of, first, times, crowd)
    )
    near = overlap >= IOUS[0]
    true, ignored = _match(
        detection[near], thing[near], overlap[near], rank[detection[near]], crowd, ignore, outside
    )

    at, first_of = np.unique(place, return_index=True)
    counted = np.add.reduceat((~ignore).astype(np.int32), first_of, axis=0) if len(at) else ignore[:0]
    return Detections(
        ids=tuple(str(image_id) for image_id in truth.ids),
        rule="coco",
        names=truth.classes,
        ious=tuple(IOUS.tolist()),
        parts=({} if detections.masks is None else {"of": "mask"},),
        part=np.zeros(len(order), dtype=np.uint8),
        image=detections.image[order].astype(np.int32),
        label=detections.label[order].astype(np.int32),
        score=detections.score[order],
        true=pack(true),
        ignored=pack(ignored),
        object_part=np.zeros(len(at), dtype=np.uint8),
        object_image=(at // max(n_classes, 1)).astype(np.int32),
        object_label=(at % max(n_classes, 1)).astype(np.int32),
        objects=counted.astype(np.int32),
    )


def _match(
    detection: NDArray[np.int64],
    thing: NDArray[np.int64],
    overlap: NDArray[np.float64],
    rank: NDArray[np.int64],
    crowd: NDArray[np.bool_],
    ignore: NDArray[np.bool_],
    outside: NDArray[np.bool_],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which of D detections find an object, and which count for nothing, (D, A, T) each.

    `detection`, `thing`, `overlap` and `rank` (P,) are the pairs that overlap enough for any threshold, in
    the order of detections; `crowd` (G,), `ignore` (G, A) and `outside` (D, A) are of objects and detections.
    All detections of one rank choose at once: no two of them are of one image and class.
    """
    thresholds = np.minimum(IOUS, 1 - 1e-10)
    shape = (*outside.shape, len(IOUS))
    true = np.zeros(shape, dtype=bool)
    ignored = np.broadcast_to(outside[..., None], shape).copy()
    taken = np.zeros((*ignore.shape, len(IOUS)), dtype=bool)
    by_rank = np.argsort(rank, kind="stable")
    for pairs in np.split(by_rank, np.flatnonzero(np.diff(rank[by_rank])) + 1):
        if not len(pairs):
            continue
        who, objects, iou = detection[pairs], thing[pairs], overlap[pairs, None, None]
        starts = np.flatnonzero(np.diff(who, prepend=-1))
        group = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(who)))
        enough = (~taken[objects] | crowd[objects, None, None]) & (iou >= thresholds)
        counted = enough & ~ignore[objects][..., None]
        any_counted = np.logical_or.reduceat(counted, starts, axis=0)
        chosen = np.where(any_counted[group], counted, enough)
        value = np.where(chosen, iou, -1.0)
        highest = np.maximum.reduceat(value, starts, axis=0)
        last = np.where(chosen & (value == highest[group]), np.arange(len(pairs))[:, None, None], -1)
        best = np.maximum.reduceat(last, starts, axis=0)
        found, mine = best >= 0, objects[best]
        of_no_account = ignore[mine, np.arange(ignore.shape[1])[:, None]]
        true[who[starts]] = found & ~of_no_account
        ignored[who[starts]] = np.where(found, of_no_account, ignored[who[starts]])
        _, area, threshold = np.nonzero(found)
        taken[mine[found], area, threshold] = True
    return true, ignored


def _box_overlaps(found: np.ndarray, there: np.ndarray, crowd: np.ndarray) -> NDArray[np.float64]:
    """Return the IoU of boxes (P, 4), or with a crowd the detection's share, to pycocotools' last bit."""
    low = np.maximum(found[:, :2], there[:, :2])
    side = np.maximum(np.minimum(found[:, 2:] + found[:, :2], there[:, 2:] + there[:, :2]) - low, 0)
    both, own = side[:, 0] * side[:, 1], found[:, 2] * found[:, 3]
    either = np.where(crowd, own, own + there[:, 2] * there[:, 3] - both)
    overlap: NDArray[np.float64] = np.divide(both, either, out=np.zeros(len(both)), where=both > 0)
    return overlap


def _mask_overlaps(
    detections: Columns,
    objects: Columns,
    order: np.ndarray,
    in_order: np.ndarray,
    place_of: np.ndarray,
    first: np.ndarray,
    times: np.ndarray,
    crowd: np.ndarray,
) -> NDArray[np.float64]:
    """Return the IoU of every pair of masks, image by image and class by class."""
    assert detections.masks is not None and objects.masks is not None
    found = [np.empty(0)]
    for mine in np.split(np.arange(len(order)), np.flatnonzero(np.diff(place_of)) + 1):
        if not len(mine) or not times[mine[0]]:
            continue
        there = range(first[mine[0]], first[mine[0]] + times[mine[0]])
        masks = [detections.masks[order[i]] for i in mine]
        overlaps = coco_mask.iou(
            masks, [objects.masks[in_order[g]] for g in there], crowd[list(there)].tolist()
        )
        found.append(np.asarray(overlaps, dtype=np.float64).ravel())
    return np.concatenate(found)


def _rank(place: np.ndarray) -> NDArray[np.int64]:
    """Return the position of each entry among its equals; equals stand together."""
    if not len(place):
        return np.empty(0, dtype=np.int64)
    starts = np.flatnonzero(np.diff(place, prepend=place[0] - 1))
    return _count_up(np.diff(starts, append=len(place)))


def _count_up(times: np.ndarray) -> NDArray[np.int64]:
    """Return 0, 1, ..., t - 1 for each t of `times`, one after the other."""
    ends = np.cumsum(times)
    counted: NDArray[np.int64] = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - times, times)
    return counted


def _outside(area: np.ndarray) -> NDArray[np.bool_]:
    """Return which of n areas lie outside each of COCO's, (n, A)."""
    outside: NDArray[np.bool_] = (area[:, None] < AREAS[:, 0]) | (area[:, None] > AREAS[:, 1])
    return outside
