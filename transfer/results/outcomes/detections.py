"""Every detection with what it matched: average precision by COCO's and by Pascal VOC's rules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from carryover.transfer.results.outcomes.base import Counts, Outcomes, metric
from carryover.transfer.results.record import Metric, Setting

Rule = Literal["coco", "area", "11point"]

COCO_RECALLS = np.linspace(0.0, 1.0, 101)
# VOC2007's, as Detectron2 spells them: 0.1 * 3 is a little more than 0.3.
VOC_RECALLS = np.arange(0.0, 1.1, 0.1)
# COCO's AP of small, medium and large objects follows that of all.
_SIZES = ("APs", "APm", "APl")


@dataclass(frozen=True)
class Ranked:
    """The detections of one class from the highest score down, as one IoU threshold counts them.

    Attributes
    ----------
    image
        (D,), whose detection it is.
    true, ignored
        (D,) bool: found an object; counts for nothing. All others are false.
    """

    image: NDArray[np.integer[Any]]
    true: NDArray[np.bool_]
    ignored: NDArray[np.bool_]


def average_precision(true: np.ndarray, ignored: np.ndarray, objects: int, rule: Rule) -> float:
    """Return the average precision (percent) of ranked detections of one class; NaN where it is undefined.

    `true` and `ignored` as in `Ranked`; `objects` are to be found. It is undefined for a class without any.
    """
    true, counted = true[~ignored], np.arange(1, int((~ignored).sum()) + 1)
    if objects == 0:
        return float("nan")
    found = np.cumsum(true)
    recall = found / objects
    precision = found / (counted + (np.spacing(1) if rule == "coco" else 0.0))
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    if rule == "area":
        return 100 * float(np.sum(np.diff(recall, prepend=0.0) * envelope[:-1]))
    reached = np.searchsorted(recall, COCO_RECALLS if rule == "coco" else VOC_RECALLS, side="left")
    return 100 * float(envelope[reached].mean())


@dataclass(frozen=True, eq=False)
class Detections(Outcomes):
    """Detections in N images, and the numbers of objects to find.

    Of detections with equal scores the one in the earlier image goes first, within an image the one that its
    prediction lists first. VOC's scores are rounded to three decimals before they are compared.

    Attributes
    ----------
    rule
        Whose average precision it is.
    names
        The classes.
    ious
        The T thresholds.
    parts
        What the boxes and, where there are any, masks add to their metrics' params.
    part, image, label, score
        (D,): a detection's part, image, class and score, in the order of parts and images.
    true, ignored
        (D, A) uint16: bit t is set where it found an object, and where it counts for nothing, at threshold t;
        A is 1 for VOC, and for COCO objects of all, small, medium and large areas.
    object_part, object_image, object_label
        (E,): part, image and class of the objects that are to be found.
    objects
        (E, A): how many.
    """

    kind: ClassVar[str] = "detections"
    # The envelope of precision is a running maximum. Where a curve with noise of N^-1/2 falls, its maximum
    # gains N^-2/3, the cube-root rate of monotone estimators (Groeneboom 1985; Kim and Pollard 1990).
    bias_rate: ClassVar[float] = 2 / 3

    rule: Rule
    names: tuple[str, ...]
    ious: tuple[float, ...]
    parts: tuple[Mapping[str, Setting], ...]
    part: NDArray[np.uint8]
    image: NDArray[np.int32]
    label: NDArray[np.int32]
    score: NDArray[np.float64]
    true: NDArray[np.uint16]
    ignored: NDArray[np.uint16]
    object_part: NDArray[np.uint8]
    object_image: NDArray[np.int32]
    object_label: NDArray[np.int32]
    objects: NDArray[np.int32]

    _NAMES: ClassVar[Sequence[str]] = (
        "part", "image", "label", "score", "true", "ignored",
        "object_part", "object_image", "object_label", "objects",
    )  # fmt: skip

    def settings(self) -> dict[str, Any]:
        parts = [dict(p) for p in self.parts]
        return {"rule": self.rule, "names": list(self.names), "ious": list(self.ious), "parts": parts}

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in self._NAMES}

    @classmethod
    def of(cls, ids: tuple[str, ...], settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        names, ious = tuple(settings["names"]), tuple(settings["ious"])
        parts = tuple(settings["parts"])
        return cls(ids, settings["rule"], names, ious, parts, *(arrays[n] for n in cls._NAMES))

    def aps(self, part: int = 0, area: int = 0) -> NDArray[np.float64]:
        """Return the average precision (percent) of every class at every threshold, (C, T)."""
        found = np.empty((len(self.names), len(self.ious)))
        for label in range(len(self.names)):
            objects = int(self._objects(part, label)[1][:, area].sum())
            for t, ranked in enumerate(self._ranked(part, label, area)):
                found[label, t] = average_precision(ranked.true, ranked.ignored, objects, self.rule)
        return found

    def measured(self) -> int:
        """Return how many classes have objects to be found: AP is a mean over these."""
        return len(np.unique(self.object_label[self.objects[:, 0] > 0]))

    def metrics(self) -> tuple[Metric, ...]:
        found = []
        for part, params in enumerate(self.parts):
            areas = [_nanmean(self.aps(part, area)) for area in range(self.objects.shape[1])]
            values = [float(_nanmean(areas[0])), self._at(areas[0], 0.5), self._at(areas[0], 0.75)]
            values += [float(_nanmean(area)) for area in areas[1:]]
            names = ("AP", "AP50", "AP75", *_SIZES)
            found += [metric(name, v, len(self.ids), params) for name, v in zip(names, values)]
        return tuple(found)

    def by_class(self) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for part, params in enumerate(self.parts):
            aps = self.aps(part)
            at = {"AP": aps.mean(axis=1), "AP50": np.array([self._at(row, 0.5) for row in aps])}
            for name, values in at.items():
                own = {c: float(v) for c, v in zip(self.names, values) if np.isfinite(v)}
                found[f"{name} {params['of']}" if "of" in params else name] = own
        return found

    def resampled(self, counts: Counts) -> NDArray[np.float64]:
        columns: list[np.ndarray] = []
        for part in range(len(self.parts)):
            for area in range(self.objects.shape[1]):
                at = self._resampled(part, area, counts)
                columns.append(at.mean(axis=1))
                if area == 0:
                    columns += [np.array([self._at(row, iou) for row in at]) for iou in (0.5, 0.75)]
        return np.stack(columns, axis=1)

    def ties(self) -> tuple[int, ...]:
        """Return how many detections share their score with another one of their class, part by part."""
        found = []
        for part in range(len(self.parts)):
            mine = self.part == part
            keys = np.stack([self.label[mine].astype(np.float64), self.score[mine]])
            times = np.unique(keys, axis=1, return_counts=True)[1]
            found.append(int(times[times > 1].sum()))
        return tuple(found)

    def _resampled(self, part: int, area: int, counts: Counts) -> NDArray[np.float64]:
        """Return the mean over classes at every threshold on every sample of the images, (B, T)."""
        weights = np.ascontiguousarray(counts.T.astype(np.float64))
        total = np.zeros((len(counts), len(self.ious)))
        defined = np.zeros((len(counts), 1))
        for label in range(len(self.names)):
            images, objects = self._objects(part, label)
            if not objects[:, area].any():
                continue
            there = objects[:, area] @ weights[images]
            for t, ranked in enumerate(self._ranked(part, label, area)):
                total[:, t] += resampled_ap(ranked, there, weights, self.rule)
            defined[:, 0] += there > 0
        return np.divide(total, defined, out=np.full_like(total, np.nan), where=defined > 0)

    def _ranked(self, part: int, label: int, area: int) -> list[Ranked]:
        mine = np.flatnonzero((self.part == part) & (self.label == label))
        mine = mine[np.argsort(-self.score[mine], kind="stable")]
        bits = [1 << t for t in range(len(self.ious))]
        true, ignored = self.true[mine, area], self.ignored[mine, area]
        return [Ranked(self.image[mine], (true & b) > 0, (ignored & b) > 0) for b in bits]

    def _objects(self, part: int, label: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        mine = (self.object_part == part) & (self.object_label == label)
        return self.object_image[mine], self.objects[mine]

    def _at(self, values: np.ndarray, iou: float) -> float:
        found = [i for i, own in enumerate(self.ious) if round(own, 6) == iou]
        return float(values[found[0]]) if found else float("nan")


def joined(parts: Sequence[Detections]) -> Detections:
    """Return boxes and masks of one evaluation together, each a part of its own."""
    first = parts[0]
    numbered = ("part", "object_part")
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(p, name) + (i if name in numbered else 0) for i, p in enumerate(parts)])
        for name in first._NAMES
    }
    columns |= {name: columns[name].astype(np.uint8) for name in numbered}
    return replace(first, parts=tuple(params for p in parts for params in p.parts), **columns)


def pack(flags: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """Return flags (..., T) of up to 16 thresholds as bits."""
    found: NDArray[np.uint16] = (flags << np.arange(flags.shape[-1])).sum(axis=-1).astype(np.uint16)
    return found


def resampled_ap(ranked: Ranked, objects: np.ndarray, weights: np.ndarray, rule: Rule) -> np.ndarray:
    """Return one class's AP (percent) on B samples: `weights` (N, B) say how often an image counts in each.

    Precision is only wanted where an object is found, so that detections in between are counted together.
    """
    at = np.flatnonzero(ranked.true & ~ranked.ignored)
    if not len(at):
        return np.zeros(weights.shape[1])
    counted = np.flatnonzero(~ranked.ignored[: at[-1] + 1])
    segment = np.searchsorted(at, counted, side="left")
    ones = np.ones(len(counted))
    between = sparse.csr_array((ones, (segment, ranked.image[counted])), shape=(len(at), len(weights)))
    true = np.cumsum(weights[ranked.image[at]], axis=0)
    seen = np.cumsum(between @ weights, axis=0)
    precision = np.divide(true, seen, out=np.zeros_like(true), where=seen > 0)
    envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    recall = np.divide(true, objects, out=np.zeros_like(true), where=objects > 0)
    if rule == "area":
        return 100 * (np.diff(recall, axis=0, prepend=0.0) * envelope).sum(axis=0)
    levels = COCO_RECALLS if rule == "coco" else VOC_RECALLS
    # How many levels of recall, 0 among them, are reached with every object found.
    reached = np.where(recall > 0, np.searchsorted(levels, recall, side="right"), 0)
    return 100 * (np.diff(reached, axis=0, prepend=0) * envelope).sum(axis=0) / len(levels)


def _nanmean(values: Any) -> Any:
    values = np.asarray(values)
    # Without any class there is no mean at any threshold.
    return values.mean(axis=0) * np.nan if np.isnan(values).all() else np.nanmean(values, axis=0)
