"""The result record: one JSON file a finished evaluation, and many of them as one tidy pandas frame."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata as distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import Field, ValidationError, model_validator

from configs import Recipe, Section, recipe_hash
from pretrain.provenance import git_revision, hardware, host, job_id, library_versions

if TYPE_CHECKING:
    import pandas as pd

    from pretrain.canonical import CanonicalMetadata

SCHEMA: Final = "carryover-result-1"
RECORD_NAME = "result.json"


class Metric(Section):
    """One number of an evaluation.

    `value` is in `unit` ("%" for accuracies and AP); None means undefined on this data (for example the AP
    of large objects where there are none). `n` counts what the number is an average over (test images).
    """

    name: str
    value: float | None
    unit: str = "%"
    higher_is_better: bool = True
    n: int


class ResultRecord(Section):
    """Everything needed to trust one evaluation's numbers and to find where they come from.

    Attributes
    ----------
    wall_seconds, gpu_hours
        Of all attempts together; `waiting_seconds` is time in a cluster's queue with nothing else in the way.
    cost_source
        Who counted them: "sacct", the pipeline's own "clock", or, where None, the evaluation itself.
    pretrain_...
        The same of the pretraining that the checkpoint comes from, where it is known.
    """

    schema_version: Literal["carryover-result-1"] = SCHEMA
    method: str
    pretrain_epochs: float | None
    pretrain_dataset: str
    pretrain_seed: int | None
    pretrain_recipe: str
    backbone: str
    checkpoint: str
    checkpoint_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    recipe: str
    recipe_hash: str = Field(pattern="^[0-9a-f]{64}$")
    task: str
    dataset: str
    split: str
    backend: str
    backend_version: str
    seed: int
    metrics: tuple[Metric, ...] = Field(min_length=1)
    selection: Literal["last", "best"] = "last"
    selected_on: str | None = None
    train_images: int | None = None
    label_fraction: float | None = None
    facts: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    artifacts: dict[str, str] = Field(default_factory=dict)
    wall_seconds: float
    gpu_hours: float
    hardware: str
    git_revision: str
    library_versions: dict[str, str]
    host: str
    job_id: str | None
    finished: str
    pretrain_gpu_hours: float | None = None
    pretrain_wall_seconds: float | None = None
    waiting_seconds: float | None = None
    attempts: int | None = None
    cost_source: Literal["sacct", "clock"] | None = None
    pretrain_waiting_seconds: float | None = None
    pretrain_attempts: int | None = None
    pretrain_peak_gpu_memory_gib: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _as_it_was_written(cls, data: Any) -> Any:
        """Check and take off the digest that `write_record` puts on; older records have none."""
        if isinstance(data, dict) and "digest" in data:
            data = dict(data)
            if data.pop("digest") != _digest(data):
                raise ValueError("its content does not fit its digest: it was edited after it was written")
        return data

    @model_validator(mode="after")
    def _best_names_its_split(self) -> "ResultRecord":
        if self.selection == "best" and self.selected_on is None:
            raise ValueError("a 'best' result must name the split it was selected on (selected_on)")
        if self.selection == "best" and self.selected_on == self.split:
            raise ValueError(
                f"a result selected on the split it is measured on ('{self.split}') is no result"
            )
        return self


def make_record(
    *,
    recipe: Recipe,
    task: str,
    checkpoint: Path,
    metadata: "CanonicalMetadata",
    dataset: str,
    split: str,
    backend: str,
    seed: int,
    metrics: Iterable[Metric],
    wall_seconds: float,
    backend_version: str | None = None,
    selection: Literal["last", "best"] = "last",
    selected_on: str | None = None,
    train_images: int | None = None,
    label_fraction: float | None = None,
    facts: dict[str, str | int | float | bool | None] | None = None,
    artifacts: dict[str, str] | None = None,
) -> ResultRecord:
    """Build the record of a finished evaluation; provenance is filled in from the running process.

    Parameters
    ----------
    recipe, checkpoint, metadata
        The evaluation recipe, the canonical checkpoint's path and what it says of itself.
    backend
        Distribution name of the library that did the task ("torchvision", "detectron2", "mmsegmentation",
        "carryover"); its version is looked up unless `backend_version` says it (an unbuilt source tree
        has no distribution).
    wall_seconds
        Time spent over all attempts.
    facts
        Anything else a reader should know (iterations, images per class, tensors proven equal).
    artifacts
        Files beside the record, by name, relative to its directory.
    """
    import torch

    from pretrain.canonical import sha256_file

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ResultRecord(
        method=metadata.method,
        pretrain_epochs=metadata.epochs,
        pretrain_dataset=metadata.dataset,
        pretrain_seed=metadata.seed,
        pretrain_recipe=metadata.recipe,
        backbone=metadata.backbone.label,
        checkpoint=str(checkpoint),
        checkpoint_sha256=sha256_file(checkpoint),
        recipe=recipe.name,
        recipe_hash=recipe_hash(recipe),
        task=task,
        dataset=dataset,
        split=split,
        backend=backend,
        backend_version=backend_version or _version(backend),
        seed=seed,
        metrics=tuple(metrics),
        selection=selection,
        selected_on=selected_on,
        train_images=train_images,
        label_fraction=label_fraction,
        facts=facts or {},
        artifacts=artifacts or {},
        wall_seconds=wall_seconds,
        gpu_hours=gpus * wall_seconds / 3600,
        hardware=hardware(),
        git_revision=git_revision(),
        library_versions=dict(library_versions()),
        host=host(),
        job_id=job_id(),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        pretrain_gpu_hours=metadata.gpu_hours,
        pretrain_wall_seconds=metadata.wall_seconds,
        pretrain_peak_gpu_memory_gib=metadata.peak_gpu_memory_gib,
    )


def write_record(record: ResultRecord, directory: Path) -> Path:
    """Write `directory`/result.json atomically and return its path.

    The file carries a digest of itself, so that one edited by hand is told from one that was measured.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / RECORD_NAME
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    plain = json.loads(record.model_dump_json())
    plain["digest"] = _digest(plain)
    temporary.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


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


def read_records(runs: Iterable[Path]) -> tuple[list[StoredRecord], list[Problem]]:
    """Read every result record below the given run directories (or files), in path order.

    A half-written, older or hand-edited file is returned as a Problem and does not stop the others.
    """
    found: list[StoredRecord] = []
    problems: list[Problem] = []
    for path in sorted({p for run in runs for p in _record_files(run)}):
        try:
            record = ResultRecord.model_validate_json(path.read_text(encoding="utf-8"))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(s) for s in first["loc"]) or "record"
            problems.append(Problem(path, f"{key}: {first['msg']}"))
        except (OSError, UnicodeDecodeError) as error:
            problems.append(Problem(path, str(error)))
        else:
            found.append(StoredRecord(path, record))
    return found, problems


def to_frame(records: Iterable[StoredRecord]) -> "pd.DataFrame":
    """Lay records out tidily: one row a metric, one column a field, `record` the file's path."""
    import pandas as pd

    columns = [
        c for c in ResultRecord.model_fields if c not in ("metrics", "facts", "artifacts", "library_versions")
    ]
    rows = []
    for stored in records:
        shared = {c: getattr(stored.record, c) for c in columns} | {"record": str(stored.path)}
        for metric in stored.record.metrics:
            rows.append(
                shared
                | {
                    "metric": metric.name,
                    "value": metric.value,
                    "unit": metric.unit,
                    "higher_is_better": metric.higher_is_better,
                    "n": metric.n,
                }
            )
    tail = ["metric", "value", "unit", "higher_is_better", "n"]
    frame = pd.DataFrame(rows, columns=[*columns, "record", *tail])
    whole = ("seed", "pretrain_seed", "train_images", "n", "attempts", "pretrain_attempts")
    return frame.astype(dict.fromkeys(whole, "Int64"))


def _digest(plain: dict[str, Any]) -> str:
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _record_files(run: Path) -> list[Path]:
    """Find the records below a run, but not in outputs kept aside as ``out.HASH``."""
    if run.is_file():
        return [run]
    found = (p.relative_to(run) for p in run.rglob(RECORD_NAME))
    return [run / p for p in found if not any(part.startswith("out.") for part in p.parts)]


def _version(backend: str) -> str:
    try:
        return distributions.version(backend)
    except distributions.PackageNotFoundError:
        return "unknown"
