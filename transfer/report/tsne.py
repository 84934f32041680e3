"""t-SNE pictures of test features, drawn again from their points in the report's own style."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from carryover.transfer.report.artifacts import artifact
from carryover.transfer.report.collection import Collection, Numbered
from carryover.transfer.report.drawing import SERIES, Picture, finish, head, legend, new_figure

TASK = "tsne"
_MOST_FIGURES = 8
# Each takes about a hundred bytes of the page.
_MOST_POINTS = 1000
# Color and marker tell this many classes apart.
_MARKERS = "o^s"
_MOST_CLASSES = len(SERIES) * len(_MARKERS)


@dataclass(frozen=True)
class Points:
    """Places in the plane by class, in the order of the classes' first points."""

    by_class: dict[str, list[tuple[float, float]]]

    @property
    def count(self) -> int:
        """Number of points."""
        return sum(map(len, self.by_class.values()))


def tsne_pictures(collection: Collection, directory: Path | None) -> list[Picture]:
    """Draw the points that t-SNE records left, one picture a pretraining, of its first seed."""
    pictures: list[Picture] = []
    for (pretraining, evaluation), runs in sorted(
        collection.runs.items(), key=lambda item: (item[0][0].order, collection.captions[item[0][1]])
    ):
        if evaluation.task != TASK or len(pictures) == _MOST_FIGURES:
            continue
        run = min(runs, key=lambda r: (r.record.seed, r.number))
        path = artifact(run, "points")
        points = read_points(path) if path is not None else None
        if points is not None:
            label = f"{collection.labels[pretraining]}, {evaluation.dataset}"
            pictures.append(_picture(f"tsne-{len(pictures) + 1}", label, run, points, directory))
    return pictures


def read_points(path: Path) -> Points | None:
    """Read x, y and class of every point; None where the file holds anything else."""
    by_class: dict[str, list[tuple[float, float]]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                place = float(row["x"]), float(row["y"])
                if not all(map(math.isfinite, place)):
                    return None
                by_class.setdefault(row["class"], []).append(place)
    except (OSError, KeyError, TypeError, ValueError, csv.Error):
        return None
    return Points(by_class) if by_class else None


def _picture(name: str, label: str, run: Numbered, points: Points, directory: Path | None) -> Picture:
    classes = sorted(points.by_class)
    step = math.ceil(points.count / _MOST_POINTS)
    figure, axes = new_figure(4.4, 4.4 if len(classes) <= _MOST_CLASSES else 3.8)
    shown = 0
    for i, of_class in enumerate(classes):
        places: Sequence[tuple[float, float]] = points.by_class[of_class][::step]
        shown += len(places)
        marker = _MARKERS[i // len(SERIES) % len(_MARKERS)]
        axes.plot(
            [x for x, _ in places],
            [y for _, y in places],
            marker,
            color=SERIES[i % len(SERIES)],
            markersize=2.6,
            markeredgewidth=0,
            label=of_class,
        )
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_aspect("equal", adjustable="datalim")
    title = f"t-SNE: {label}"
    head(figure, title)
    if len(classes) <= _MOST_CLASSES:
        legend(figure, columns=4, markerscale=2.5)
    fidelity = next((m.value for m in run.record.metrics if m.value is not None), None)
    said = "" if fidelity is None else f"; Kullback-Leibler divergence {fidelity:.2f} nats"
    part = f"{shown:,} of " if shown < points.count else ""
    words = (
        f"{title}. {part}{points.count:,} test images of {len(classes)} classes as points in the plane{said}"
    )
    return finish(figure, name, title, words, directory)
