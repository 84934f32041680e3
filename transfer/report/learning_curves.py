"""Accuracy, AP or mIoU against the share of the labels, as a table: with intervals and what it took."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from carryover.configs.files import write_atomic
from carryover.transfer.report.against import label_families
from carryover.transfer.report.cells import Cell, build_cell, joint_interval
from carryover.transfer.report.collection import collect
from carryover.transfer.report.naming import metric_name, share, task_name
from carryover.transfer.report.statistics import mean
from carryover.transfer.results.reading import read_records


@dataclass(frozen=True)
class Point:
    """One pretraining at one share of the labels.

    Attributes
    ----------
    cell
        The number over the seeds.
    train_images
        How many labeled images there were (the mean over seeds).
    seconds
        Wall time of one evaluation (the mean over seeds).
    """

    evaluation: str
    metric: str
    label: str
    share: float
    cell: Cell
    train_images: float | None
    seconds: float

    @property
    def interval(self) -> tuple[float, float] | None:
        """The number's 95 % interval over test images and seeds."""
        return joint_interval(self.cell)

    def brackets(self) -> str:
        """Return the interval as a reader sees it; "" where there is none."""
        return "" if self.interval is None else f"[{self.interval[0]:.1f}, {self.interval[1]:.1f}]"


def points(runs: Sequence[Path]) -> list[Point]:
    """Return every point of every curve in some runs, curve by curve and share by share."""
    records, _ = read_records(runs)
    collection = collect(records)
    found = []
    for family in label_families(collection):
        metric = next(m for m in collection.headlines(next(iter(family.values()))) if m)
        for fraction, evaluation in sorted(family.items()):
            for pretraining in collection.pretrainings:
                own = collection.runs.get((pretraining, evaluation))
                if not own:
                    continue
                amounts = [r.record.train_images for r in own if r.record.train_images is not None]
                found.append(
                    Point(
                        f"{task_name(evaluation.task)}, {evaluation.dataset}",
                        f"{metric_name(metric)} ({metric.unit})",
                        collection.labels[pretraining],
                        fraction,
                        build_cell(own, metric.label),
                        mean(amounts) if amounts else None,
                        mean([r.record.wall_seconds for r in own]),
                    )
                )
    return found


HEADER = (
    "evaluation",
    "metric",
    "labels",
    "images",
    "pretraining",
    "value",
    "95 % interval",
    "runs",
    "seconds",
)


def rows(found: Sequence[Point]) -> list[list[str]]:
    """Return the points as text, a row each."""
    return [
        [
            p.evaluation,
            p.metric,
            share(p.share),
            "" if p.train_images is None else f"{p.train_images:.0f}",
            p.label,
            p.cell.text(),
            p.brackets(),
            str(p.cell.n),
            f"{p.seconds:.1f}",
        ]
        for p in found
    ]


def write(found: Sequence[Point], directory: Path) -> list[Path]:
    """Write curve.csv and curve.md; return their paths."""
    import pandas as pd

    table = [
        {
            "evaluation": p.evaluation,
            "metric": p.metric,
            "label_fraction": p.share,
            "train_images": p.train_images,
            "pretraining": p.label,
            "value": p.cell.mean,
            "low": None if p.interval is None else p.interval[0],
            "high": None if p.interval is None else p.interval[1],
            "runs": p.cell.n,
            "seconds": p.seconds,
        }
        for p in found
    ]
    lines = [HEADER, ["---"] * len(HEADER), *rows(found)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    files = [directory / "curve.csv", directory / "curve.md"]
    write_atomic(files[0], pd.DataFrame(table).to_csv(index=False))
    write_atomic(files[1], text + "\n")
    return files
