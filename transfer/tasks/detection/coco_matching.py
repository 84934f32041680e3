"""Which object every detection matches, by COCO's rules, from the overlaps that its evaluator computed."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from carryover.transfer.results.outcomes.detections import Detections, pack

IouType = Literal["bbox", "segm"]


@dataclass(frozen=True)
class GroundTruth:
    """COCO's own structure with what ties predictions to it.

    Attributes
    ----------
    content
        Images, annotations and categories.
    image_ids
        Our image id -> the integer id that COCO's tools ask for.
    category_ids, classes
        In label order.
    """

    content: dict[str, Any]
    image_ids: dict[str | int, int]
    category_ids: tuple[int, ...]
    classes: tuple[str, ...]


def match(
    overlap: NDArray[np.float64],
    crowd: NDArray[np.bool_],
    ignore: NDArray[np.bool_],
    outside: NDArray[np.bool_],
    thresholds: NDArray[np.float64],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Match the detections of one class in one image greedily, as pycocotools' COCOeval.evaluateImg does.

    Parameters
    ----------
    overlap
        (D, G) IoU of detections, from the highest score down, with objects.
    crowd
        (G,): may be matched any number of times.
    ignore
        (A, G): does not count for an area range, being a crowd or of another area.
    outside
        (A, D): detections whose own area is not of a range; unmatched, they count for nothing.
    thresholds
        (T,).

    Returns
    -------
    tuple
        Which detections found an object, and which count for nothing, (D, A, T) each.
    """
    d, a, t = len(overlap), len(ignore), len(thresholds)
    true, ignored = np.zeros((2, d, a, t), dtype=bool)
    taken = np.zeros((a, t, overlap.shape[1]), dtype=bool)
    lowest = np.minimum(thresholds, 1 - 1e-10)[:, None]
    for i, row in enumerate(overlap):
        enough = (~taken | crowd) & (row >= lowest)
        counted = enough & ~ignore[:, None]
        # An object that counts goes before any that does not, however well that is covered.
        chosen = np.where(counted.any(axis=2, keepdims=True), counted, enough)
        found = chosen.any(axis=2)
        if not found.any():
            ignored[i] = outside[:, i, None]
            continue
        # Of equal overlaps the last one, as the reference's loop has it.
        best = overlap.shape[1] - 1 - np.where(chosen, row, -1.0)[..., ::-1].argmax(axis=2)
        on_ignored = np.take_along_axis(np.broadcast_to(ignore[:, None], chosen.shape), best[..., None], 2)
        true[i] = found & ~on_ignored[..., 0]
        ignored[i] = np.where(found, on_ignored[..., 0], outside[:, i, None])
        was_taken = np.take_along_axis(taken, best[..., None], 2)
        np.put_along_axis(taken, best[..., None], was_taken | found[..., None], 2)
    return true, ignored


def coco_outcomes(evaluation: Any, known: GroundTruth, iou_type: IouType) -> Detections:
    """Return what a COCOeval's detections matched; `evaluation.ious` must be computed."""
    thresholds, most = np.asarray(evaluation.params.iouThrs), evaluation.params.maxDets[-1]
    ranges = np.asarray(evaluation.params.areaRng, dtype=np.float64)
    ids = sorted(known.image_ids.values())
    numbers = {image_id: number for number, image_id in enumerate(ids)}
    labels = {category_id: label for label, category_id in enumerate(known.category_ids)}
    truth = _by_image_and_class(known.content["annotations"])
    found = _by_image_and_class(evaluation.cocoDt.dataset["annotations"])
    known_places = {p for p in (*truth, *found) if p[0] in numbers and p[1] in labels}
    places = sorted(known_places, key=lambda place: (numbers[place[0]], labels[place[1]]))
    columns: dict[str, list[Any]] = defaultdict(list)
    for place in places:
        image, label = numbers[place[0]], labels[place[1]]
        objects, detections = truth.get(place, ()), found.get(place, ())
        crowd = np.array([bool(o["iscrowd"]) for o in objects], dtype=bool)
        ignore = crowd | _outside([o["area"] for o in objects], ranges)
        if len(objects):
            columns["objects"].append((~ignore).sum(axis=1))
            columns["object_at"].append((image, label))
        if len(detections):
            scores = np.array([x["score"] for x in detections])
            order = np.argsort(-scores, kind="stable")[:most]
            outside = _outside([detections[i]["area"] for i in order], ranges)
            overlap = np.asarray(evaluation.ious[place], dtype=np.float64).reshape(len(order), -1)
            if not len(objects):
                overlap = np.zeros((len(order), 0))
            true, ignored = match(overlap, crowd, ignore, outside, thresholds)
            columns["true"].append(pack(true))
            columns["ignored"].append(pack(ignored))
            columns["score"].append(scores[order])
            columns["at"].append(np.tile((image, label), (len(order), 1)))
    at = np.concatenate([np.empty((0, 2), dtype=int), *columns["at"]])
    object_at = np.array(columns["object_at"], dtype=np.int32).reshape(-1, 2)
    flags = np.empty((0, len(ranges)), dtype=np.uint16)
    names = {number: name for name, number in known.image_ids.items()}
    return Detections(
        ids=tuple(str(names[image_id]) for image_id in ids),
        rule="coco",
        names=known.classes,
        ious=tuple(thresholds.tolist()),
        parts=({"of": "mask"} if iou_type == "segm" else {},),
        part=np.zeros(len(at), dtype=np.uint8),
        image=at[:, 0].astype(np.int32),
        label=at[:, 1].astype(np.int32),
        score=np.concatenate([np.empty(0), *columns["score"]]),
        true=np.concatenate([flags, *columns["true"]]),
        ignored=np.concatenate([flags, *columns["ignored"]]),
        object_part=np.zeros(len(object_at), dtype=np.uint8),
        object_image=object_at[:, 0],
        object_label=object_at[:, 1],
        objects=np.array(columns["objects"], dtype=np.int32).reshape(-1, len(ranges)),
    )


def _by_image_and_class(annotations: Sequence[dict[str, Any]]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    found: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for annotation in annotations:
        found[annotation["image_id"], annotation["category_id"]].append(annotation)
    return found


def _outside(areas: Sequence[float], ranges: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Say which areas are not within each range, (A, n)."""
    area = np.asarray(areas, dtype=np.float64)
    return (area < ranges[:, :1]) | (area > ranges[:, 1:])
