"""Accuracy, AP and IoU of every class, from what the evaluations keep of their test images."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from carryover.configs import UserError
from carryover.transfer.report.collection import Collection, Evaluation, Numbered, Pretraining
from carryover.transfer.report.naming import PICTURES
from carryover.transfer.results.reading import StoredRecord
from carryover.transfer.results.rescore import outcomes_of

_MOST_RUNS: Final = 200
"""Outcomes of so many runs are read: a report of thousands of records does not wait for all of them."""
_MOST_CLASSES: Final = 100

Values = dict[str, dict[str, float]]


@dataclass(frozen=True)
class ClassTable:
    """One evaluation, class by class: a mean over a row's runs for each metric and pretraining.

    Attributes
    ----------
    columns
        (metric, row's label), metric by metric.
    rows
        Classes with their values, None where one is undefined.
    left_out
        How many further classes there are, on which rows differ less.
    """

    evaluation: Evaluation
    title: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]
    left_out: int = 0

    @property
    def metrics(self) -> tuple[tuple[str, int], ...]:
        """The metrics with the number of their columns."""
        names = [metric for metric, _ in self.columns]
        return tuple((name, names.count(name)) for name in dict.fromkeys(names))


def build_class_tables(collection: Collection) -> list[ClassTable]:
    """Return a table for every evaluation that keeps outcomes of classes; none beyond two hundred runs."""
    wanted = [
        (evaluation, pretraining, runs)
        for (pretraining, evaluation), runs in collection.runs.items()
        if evaluation.task not in PICTURES and any("outcomes" in r.record.artifacts for r in runs)
    ]
    if sum(len(runs) for _, _, runs in wanted) > _MOST_RUNS:
        return []
    found: dict[Evaluation, dict[Pretraining, Values]] = {}
    for evaluation, pretraining, runs in wanted:
        if values := _of(runs):
            found.setdefault(evaluation, {})[pretraining] = values
    return [
        _table(collection, evaluation, found[evaluation])
        for evaluation in collection.evaluations
        if evaluation in found
    ]


def _of(runs: Sequence[Numbered]) -> Values:
    """Return the mean over runs of each metric of each class; what cannot be read is passed over."""
    told: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        try:
            by_class = outcomes_of(StoredRecord(run.path, run.record)).by_class()
        except UserError:
            continue
        for metric, values in by_class.items():
            for name, value in values.items():
                told.setdefault(metric, {}).setdefault(name, []).append(value)
    return {metric: {n: fmean(v) for n, v in of.items()} for metric, of in told.items()}


def _table(collection: Collection, evaluation: Evaluation, rows: dict[Pretraining, Values]) -> ClassTable:
    metrics = list(dict.fromkeys(metric for values in rows.values() for metric in values))
    ordered = [p for p in collection.pretrainings if p in rows]
    columns = [(metric, p) for metric in metrics for p in ordered]
    classes = list(dict.fromkeys(name for v in rows.values() for of in v.values() for name in of))
    table = [(name, tuple(rows[p].get(metric, {}).get(name) for metric, p in columns)) for name in classes]
    if len(table) > _MOST_CLASSES:
        differing = sorted(table, key=lambda row: -_range(row[1][: len(ordered)]))[:_MOST_CLASSES]
        table = [row for row in table if row in differing]
    labels = tuple((metric, collection.labels[p]) for metric, p in columns)
    title = collection.captions[evaluation]
    return ClassTable(evaluation, title, labels, tuple(table), len(classes) - len(table))


def _range(values: Sequence[float | None]) -> float:
    there = [value for value in values if value is not None]
    return max(there) - min(there) if there else 0.0
