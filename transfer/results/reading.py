"""Many result records as one tidy pandas frame."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from carryover.configs import UserError
from carryover.slurm.former import former_stages
from carryover.slurm.ledger import Ledger
from carryover.transfer.results.record import COSTS_NAME, RECORD_NAME, ResultRecord, load_costs, load_record

if TYPE_CHECKING:
    import pandas as pd


_PIPELINE, _STAGES = "pipeline.json", "stages"


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

    Records of stages that the pipeline of a run no longer names are left out; a stage's own directory, or its
    record, may be given instead. Costs that were recorded later are merged into the records. A half-written,
    newer or hand-edited file is returned as a Problem and does not stop the others.
    """
    found: list[StoredRecord] = []
    problems: list[Problem] = []
    # Ten thousand records are of a few checkpoints.
    resolve = cache(Path.resolve)
    for path in sorted({p for run in runs for p in _record_files(run, problems)}):
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


def _record_files(run: Path, problems: list[Problem]) -> list[Path]:
    """Find the records below a run, but not in outputs kept aside as ``out.HASH``, nor of former stages."""
    if run.is_file():
        return [run]
    found = []
    left_out: set[Path] = set()
    for folder, folders, files in os.walk(run):
        if _PIPELINE in files and _STAGES in folders:
            left_out |= _former_outputs(Path(folder), problems)
        folders[:] = [name for name in folders if not name.startswith("out.")]
        if left_out and Path(folder) in left_out:
            folders.clear()
        elif RECORD_NAME in files:
            found.append(Path(folder, RECORD_NAME))
    return found


def _former_outputs(run: Path, problems: list[Problem]) -> set[Path]:
    """Return the output directories of the stages that the pipeline of a run no longer names."""
    ledger = Ledger(run)
    try:
        return {run / ledger.out(name).relative_to(ledger.run_dir) for name in former_stages(ledger)}
    except UserError as error:
        problems.append(Problem(run / _PIPELINE, str(error).removeprefix(f"{ledger.pipeline_file}: ")))
        return set()
