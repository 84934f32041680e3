"""Many result records as one tidy pandas frame."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from carryover.configs import UserError
from carryover.transfer.results.record import COSTS_NAME, RECORD_NAME, ResultRecord, load_costs, load_record

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class StoredRecord:
    """A record and the file it was read from."""

    path: Path
    record: ResultRecord


@dataclass(frozen=True)
class Problem:
    """A file that should be a record and is none, and why."""

    path: Path
    reason: str


def require_runs(runs: Iterable[Path]) -> None:
    """Raise UserError for a run that does not exist; a pattern that the shell left matched nothing."""
    for run in runs:
        if run.exists():
            continue
        if any(sign in str(run) for sign in "*?["):
            raise UserError(f"{run}: nothing matches this pattern")
        raise UserError(f"{run}: no such run")


def read_records(runs: Iterable[Path]) -> tuple[list[StoredRecord], list[Problem]]:
    """Read every result record below the given run directories (or files), in path order.

    Costs that were recorded later are merged into the records. A half-written,
    newer or hand-edited file is returned as a Problem and does not stop the others.
    """
    found: list[StoredRecord] = []
    problems: list[Problem] = []
    # Ten thousand records are of a few checkpoints.
    resolve = cache(Path.resolve)
    for path in sorted({p for run in runs for p in _record_files(run)}):
        try:
            record = load_record(path, resolve)
        except (UserError, OSError, UnicodeDecodeError) as error:
            problems.append(Problem(path, str(error).removeprefix(f"{path}: ")))
            continue
        try:
            costs = load_costs(path.parent)
        except (UserError, OSError) as error:
            problems.append(
                Problem(path.parent / COSTS_NAME, str(error).removeprefix(f"{path.parent / COSTS_NAME}: "))
            )
            costs = None
        if costs is not None:
            record = record.model_copy(update=costs.model_dump(exclude_none=True))
        found.append(StoredRecord(path, record))
    return found, problems


def to_frame(records: Iterable[StoredRecord]) -> "pd.DataFrame":
    """Lay records out tidily: one row a metric, one column a field, `record` the file's path."""
    import pandas as pd

    columns = [
        c
        for c in ResultRecord.model_fields
        if c not in ("metrics", "facts", "artifacts", "digests", "ties", "library_versions", "protocol")
    ]
    rows = []
    for stored in records:
        shared = {c: getattr(stored.record, c) for c in columns} | {"record": str(stored.path)}
        shared["assumed"] = "; ".join(stored.record.assumed.values()) or None
        for metric in stored.record.metrics:
            rows.append(
                shared
                | {
                    "metric": metric.label,
                    "value": metric.value,
                    "unit": metric.unit,
                    "direction": metric.direction,
                    "n": metric.n,
                    "low": metric.low,
                    "high": metric.high,
                }
            )
    tail = ["metric", "value", "unit", "direction", "n", "low", "high"]
    frame = pd.DataFrame(rows, columns=[*columns, "record", *tail])
    whole = ("seed", "pretrain_seed", "train_images", "n", "attempts", "pretrain_attempts")
    return frame.astype(dict.fromkeys(whole, "Int64"))


def _record_files(run: Path) -> list[Path]:
    """Find the records below a run, but not in outputs kept aside as ``out.HASH``."""
    if run.is_file():
        return [run]
    found = []
    for folder, folders, files in os.walk(run):
        folders[:] = [name for name in folders if not name.startswith("out.")]
        if RECORD_NAME in files:
            found.append(Path(folder, RECORD_NAME))
    return found
