"""Accuracy, AP or mIoU against the share of the labels, as a table: with intervals and what it took."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from carryover.configs.files import write_atomic
from carryover.transfer.report.against import label_families
from carryover.transfer.report.cells import Cell, build_cell, joint_interval
from carryover.transfer.report.collection import Collection, Evaluation, Numbered, Pretraining, collect
from carryover.transfer.report.naming import RANDOM, metric_name, share, task_name
from carryover.transfer.report.savings import SAVINGS_NOTE, At, saved
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


@dataclass(frozen=True)
class SavedLabels:
    """Labels that pretrainings save by one metric of one evaluation, a text for each pair of curves."""

    heading: str
    texts: tuple[str, ...]


def collected(runs: Sequence[Path]) -> Collection:
    """Return the records of some runs, sorted."""
    return collect(read_records(runs)[0])


def saved_labels(collection: Collection) -> list[SavedLabels]:
    """Compare every curve of a pretraining with those of the baselines of its network."""
    found = []
    for family in label_families(collection):
        metric = collection.headlines(next(iter(family.values())))[0]
        curves = {p: tuple(_curve(collection, family, p, metric.label)) for p in collection.pretrainings}
        lines = {p: curve for p, curve in curves.items() if curve}
        baselines = [p for p in lines if p.baseline]
        texts = []
        for ours in lines:
            own = [b for b in baselines if b.backbone == ours.backbone]
            label = collection.labels[ours]
            if ours.baseline or not baselines:
                continue
            if not own:
                texts.append(f"{label}: no baseline of its network, {ours.backbone}, is among the curves.")
            for base in own:
                name = "random initialization" if base.method == RANDOM else collection.labels[base]
                one = saved((label, lines[ours]), (name, lines[base]), metric.higher_is_better)
                nothing = f"{label} and {name}: not compared; single runs without intervals."
                texts.append(nothing if one is None else one.text())
        if texts:
            found.append(SavedLabels(f"{_evaluation(family)}: {metric_name(metric)}", tuple(texts)))
    return found


def _curve(
    collection: Collection, family: dict[float, Evaluation], pretraining: Pretraining, metric: str
) -> Iterator[At]:
    for fraction, evaluation in sorted(family.items()):
        runs = collection.runs.get((pretraining, evaluation), ())
        if runs and (cell := build_cell(runs, metric)).mean is not None:
            yield At(fraction, _images(runs), cell)


def _images(runs: Sequence[Numbered]) -> float | None:
    """Return the number of labeled images, the mean over runs; None where it is not known."""
    amounts = [r.record.train_images for r in runs if r.record.train_images is not None]
    return mean(amounts) if amounts else None


def _evaluation(family: dict[float, Evaluation]) -> str:
    first = next(iter(family.values()))
    return f"{task_name(first.task)}, {first.dataset}"


def points(collection: Collection) -> list[Point]:
    """Return every point of every curve, curve by curve and share by share."""
    found = []
    for family in label_families(collection):
        metric = next(m for m in collection.headlines(next(iter(family.values()))) if m)
        for fraction, evaluation in sorted(family.items()):
            for pretraining in collection.pretrainings:
                own = collection.runs.get((pretraining, evaluation))
                if not own:
                    continue
                found.append(
                    Point(
                        _evaluation(family),
                        f"{metric_name(metric)} ({metric.unit})",
                        collection.labels[pretraining],
                        fraction,
                        build_cell(own, metric.label),
                        _images(own),
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


def write(found: Sequence[Point], saving: Sequence[SavedLabels], directory: Path) -> list[Path]:
    """Write curve.csv and curve.md, which holds what is saved too; return their paths."""
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
    said = [line for s in saving for line in ("", f"**{s.heading}**", "", *(f"- {t}" for t in s.texts))]
    told = "".join(f"{line}\n" for line in said)
    note = f"\n{SAVINGS_NOTE}\n" if saving else ""
    write_atomic(files[1], f"{text}\n{told}{note}")
    return files
