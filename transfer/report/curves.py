"""Training curves: the metrics.jsonl beside a checkpoint or a record, where it is still there."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from carryover.core.formats.metrics_log import METRICS_NAME, read_metrics
from carryover.transfer.report.artifacts import artifact
from carryover.transfer.report.collection import Collection, Pretraining


@dataclass(frozen=True)
class Curve:
    """One logged number over the steps of one training; `values` has NaN where it was not finite."""

    label: str
    pretraining: Pretraining
    steps: tuple[float, ...]
    values: tuple[float, ...]


Logs = Mapping[str, Sequence[Curve]]
"""Curves by the name of their number."""


def pretraining_curves(collection: Collection, runs: Sequence[Path], names: Sequence[str]) -> Logs:
    """Read these numbers of every pretraining that logged them, one curve a checkpoint."""
    found: dict[str, list[Curve]] = defaultdict(list)
    for pretraining in collection.pretrainings:
        records = collection.by_pretraining[pretraining]
        for checkpoint in sorted({r.record.checkpoint for r in records}):
            metrics = _beside(Path(checkpoint), runs)
            if metrics is not None:
                for name, curve in _curves(metrics, names, collection.labels[pretraining], pretraining):
                    found[name].append(curve)
    return found


def evaluation_curves(collection: Collection, names: Sequence[str]) -> dict[str, Logs]:
    """Read these numbers that evaluations logged while training: the first seed of each, by caption."""
    found: dict[str, dict[str, list[Curve]]] = defaultdict(lambda: defaultdict(list))
    for (pretraining, evaluation), runs in collection.runs.items():
        first = min(runs, key=lambda r: (r.record.seed, r.number))
        metrics = artifact(first, "metrics", otherwise=METRICS_NAME)
        if metrics is not None:
            for name, curve in _curves(metrics, names, collection.labels[pretraining], pretraining):
                found[collection.captions[evaluation]][name].append(curve)
    return {c: found[c] for c in collection.captions.values() if found[c]}


def _beside(checkpoint: Path, runs: Sequence[Path]) -> Path | None:
    """Find the log beside a checkpoint, also below a run directory that was moved since."""
    places = [checkpoint.parent]
    parts = checkpoint.parent.parts
    places += [run.joinpath(*parts[i:]) for run in runs for i in range(1, len(parts))]
    for place in places:
        if (place / METRICS_NAME).is_file() and (place / checkpoint.name).is_file():
            return place / METRICS_NAME
    return None


def _curves(
    path: Path, names: Sequence[str], label: str, pretraining: Pretraining
) -> Iterator[tuple[str, Curve]]:
    """Yield the numbers of a log that it has more than once, in the order of `names`; it is read once."""
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in names}
    for row in read_metrics(path):
        for name in names:
            value = row.get(name, math.nan)
            if name in row and isinstance(row["step"], int) and isinstance(value, int | float | None):
                found[name][0].append(float(row["step"]))
                found[name][1].append(math.nan if value is None else float(value))
    for name, (steps, values) in found.items():
        if len(steps) > 1:
            yield name, Curve(label, pretraining, tuple(steps), tuple(values))
