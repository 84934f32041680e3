"""The result record: one JSON file a finished evaluation."""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata as distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import Field, model_validator

from carryover.configs import Recipe, UserError, WorkError, protocol, recipe_hash
from carryover.configs.errors import DamagedFileError
from carryover.configs.files import read_json, write_json
from carryover.configs.formats import VERSION_KEY, WRITER_KEY, FileModel, Format, release
from carryover.core.training.provenance import git_revision, hardware, host, job_id, library_versions
from carryover.transfer.results.migrations import migrated_from_1, migrated_from_2

if TYPE_CHECKING:
    import torch

    from carryover.core.backbones.source import Source

log = logging.getLogger(__name__)

RECORD_NAME: Final = "result.json"
COSTS_NAME: Final = "costs.json"
RESULT_FORMAT: Final = Format("result record", 3, {2: migrated_from_2})
COSTS_FORMAT: Final = Format("costs of a result", 1)
_DIGEST_KEY = "digest"
# Known once the run's ledger or the cluster's accounting has been asked: in costs.json.
_COUNTED_LATER = (
    "waiting_seconds",
    "attempts",
    "cost_source",
    "pretrain_waiting_seconds",
    "pretrain_attempts",
)


Setting = int | float | str


class Metric(FileModel):
    """One number of an evaluation.

    Attributes
    ----------
    name
        What is measured: "top1", "AP50", "mIoU".
    params
        What tells several of that name apart: ``{"k": 20, "T": 0.07}``, ``{"of": "mask"}``.
    value
        In `unit` ("%" for accuracies and AP); None means undefined on this data (for example the AP of large
        objects where there are none).
    direction
        Which values are better; "none" for a number that says nothing of the pretraining.
    n
        What the number is an average over (test images).
    low, high
        Its 95 % interval over the test images (`transfer.results.intervals`), in `unit`; None where it was
        not computed.
    """

    name: str
    params: dict[str, Setting] = Field(default_factory=dict)
    value: float | None
    unit: str = "%"
    direction: Literal["higher", "lower", "none"] = "higher"
    n: int
    low: float | None = None
    high: float | None = None

    @property
    def higher_is_better(self) -> bool:
        """Return whether the better of two values is the higher one."""
        return self.direction != "lower"

    @property
    def label(self) -> str:
        """The metric with its settings, as tables of results know it: ``top1 k=20 T=0.07``, ``mask AP``."""
        if not self.params:
            return self.name
        words = [v for v in self.params.values() if isinstance(v, str)]
        settings = [f"{k}={v:g}" for k, v in self.params.items() if not isinstance(v, str)]
        return " ".join([*words, self.name, *settings])


def require_same(stated: Iterable[Metric], counted: Iterable[Metric], where: Path) -> None:
    """Raise WorkError naming the first metric that is not what was counted from the outcomes in `where`."""
    there = {m.label: m.value for m in counted}
    for metric in stated:
        value = there.get(metric.label)
        same = metric.value == value or (
            metric.value is not None and value is not None and math.isclose(metric.value, value, abs_tol=1e-6)
        )
        if metric.label not in there or not same:
            came_to = there.get(metric.label)
            raise WorkError(f"{where}: {metric.label} is {metric.value}, but its outcomes come to {came_to}")


class Facts(FileModel):
    """Facts of a task besides its metrics; each task has a subclass with typed fields."""


Fact = str | int | float | bool | list[int] | list[str] | None


class Costs(FileModel):
    """Costs of a result, from the pipeline's ledger or the cluster's accounting: costs.json.

    It is a file beside the record, which is written once; `read_records` lays it over the evaluation's own.
    """

    wall_seconds: float
    gpu_hours: float | None = None
    waiting_seconds: float | None = None
    attempts: int | None = None
    cost_source: Literal["sacct", "clock"] | None = None
    pretrain_gpu_hours: float | None = None
    pretrain_wall_seconds: float | None = None
    pretrain_waiting_seconds: float | None = None
    pretrain_attempts: int | None = None


class ResultRecord(FileModel):
    """Everything needed to trust one evaluation's numbers and to find where they come from.

    Attributes
    ----------
    checkpoint
        The file that was evaluated; in the record's file relative to it where both lie in one run directory.
        Of a network in memory its label, ``<label>``.
    checkpoint_sha256
        Of the file that was loaded. `backbone_digest` is of what it computes (`core.formats.canonical`).
    pretrain_label
        What reports call the pretraining, where the user has said it.
    protocol, task_version, data_digest
        With the seed and the backbone's digest, what decides the numbers (`configs.identity`). None where
        the record is of version 1 and does not say.
    model
        What was built around the backbone ("Faster R-CNN C4"); None where that is told by the task.
    facts
        What else the task tells, by the fields of its `Facts`.
    digests
        SHA-256 of those artifacts that the numbers are counted from, by the artifacts' names.
    ties
        How many outcomes were ranked by the rule for equal scores, for each set of guesses; () where that was
        not counted.
    wall_seconds, gpu_hours
        Of all attempts together; `waiting_seconds` is time in a cluster's queue with nothing else in the way.
    cost_source
        Who counted them: "sacct", the pipeline's own "clock", or, where None, the evaluation itself.
    assumed
        What the checkpoint's maker did not say and was taken for granted, by what it is about.
    pretrain_...
        The same of the pretraining that the checkpoint comes from, where it is known.
    """

    method: str
    pretrain_epochs: float | None
    pretrain_dataset: str
    pretrain_seed: int | None
    pretrain_recipe: str
    pretrain_label: str | None = None
    backbone: str
    checkpoint: str
    checkpoint_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    backbone_digest: str | None = None
    recipe: str
    recipe_hash: str = Field(pattern="^[0-9a-f]{64}$")
    protocol: dict[str, Any] | None = None
    task: str
    task_version: int = 1
    dataset: str
    data_digest: str | None = None
    split: str
    backend: str
    backend_version: str
    seed: int
    metrics: tuple[Metric, ...] = Field(min_length=1)
    selection: Literal["last", "best"] = "last"
    selected_on: str | None = None
    train_images: int | None = None
    label_fraction: float | None = None
    model: str | None = None
    facts: dict[str, Fact] = Field(default_factory=dict)
    artifacts: dict[str, str] = Field(default_factory=dict)
    digests: dict[str, str] = Field(default_factory=dict)
    ties: tuple[int, ...] = ()
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
    assumed: dict[str, str] = Field(default_factory=dict)

    def identity(self) -> dict[str, Any] | None:
        """Return what decided the numbers, as `configs.identity.Identity.to_json` does; None if not known."""
        if self.protocol is None:
            return None
        return {
            "kind": self.protocol["task"],
            "version": self.task_version,
            "protocol": self.protocol,
            "seed": self.seed,
            "backbone": self.backbone_digest,
            "data": self.data_digest,
        }

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
    source: "Source",
    data_digest: str | None,
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
    model: str | None = None,
    facts: Facts | None = None,
    artifacts: dict[str, str] | None = None,
    device: "torch.device | None" = None,
    processes: int = 1,
    digests: dict[str, str] | None = None,
    ties: tuple[int, ...] = (),
) -> ResultRecord:
    """Build the record of a finished evaluation; provenance is filled in from the running process.

    Parameters
    ----------
    recipe, source
        The evaluation recipe, and the checkpoint as it was loaded.
    data_digest
        Of what was read of the data set (`core.data.digest`); None on ranks that write no record.
    backend
        Distribution name of the library that did the task ("torchvision", "detectron2", "mmsegmentation",
        "carryover"); its version is looked up unless `backend_version` says it (an unbuilt source tree
        has no distribution).
    wall_seconds
        Time spent over all attempts.
    model
        What was built around the backbone.
    facts
        Anything else a reader should know (iterations, images per class, tensors verified equal).
    artifacts
        Files beside the record, by name, relative to its directory.
    device, processes
        What it was computed on, and in how many processes, each on a device of its own; None: the CPU.
    digests, ties
        As in the record.
    """
    metadata = source.metadata
    on_cpu = device is None or device.type == "cpu"
    return ResultRecord(
        method=metadata.method,
        pretrain_epochs=metadata.epochs,
        pretrain_dataset=metadata.dataset,
        pretrain_seed=metadata.seed,
        pretrain_recipe=metadata.recipe,
        pretrain_label=metadata.label,
        backbone=metadata.backbone.label,
        checkpoint=str(source.path if source.in_memory else source.path.absolute()),
        checkpoint_sha256=source.sha256,
        backbone_digest=source.digest,
        recipe=recipe.name,
        recipe_hash=recipe_hash(recipe),
        protocol=protocol(recipe),
        task=task,
        task_version=type(recipe).version,
        dataset=dataset,
        data_digest=data_digest,
        split=split,
        backend=backend,
        backend_version=backend_version or _version(backend),
        seed=seed,
        metrics=tuple(metrics),
        selection=selection,
        selected_on=selected_on,
        train_images=train_images,
        label_fraction=label_fraction,
        model=model,
        facts={} if facts is None else facts.model_dump(mode="json", exclude_none=True),
        artifacts=artifacts or {},
        digests=digests or {},
        ties=ties,
        wall_seconds=wall_seconds,
        gpu_hours=0.0 if on_cpu else processes * wall_seconds / 3600,
        hardware=hardware(device, processes),
        git_revision=git_revision(),
        library_versions=dict(library_versions()),
        host=host(),
        job_id=job_id(),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        pretrain_gpu_hours=metadata.gpu_hours,
        pretrain_wall_seconds=metadata.wall_seconds,
        pretrain_peak_gpu_memory_gib=metadata.peak_gpu_memory_gib,
        assumed=dict(metadata.assumed),
    )


def write_record(record: ResultRecord, directory: Path) -> Path:
    """Write `directory`/result.json atomically and return its path.

    The file carries a digest of itself, so that one edited by hand is told from one that was measured.

    Raises UserError where there is a result already: records are written once.
    """
    path = directory / RECORD_NAME
    if path.exists() and path.stat().st_size:
        raise UserError(f"{path}: there is a result already, and records are written once; remove it first")
    later = {name for name in _COUNTED_LATER if getattr(record, name) is None}
    plain = RESULT_FORMAT.stamped(json.loads(record.model_dump_json(exclude=later)))
    if not record.checkpoint.startswith("<"):
        plain["checkpoint"] = _beside(Path(record.checkpoint), directory)
    plain[_DIGEST_KEY] = _digest(plain)
    write_json(path, plain)
    return path


def load_record(path: Path, resolve: Callable[[Path], Path] = Path.resolve) -> ResultRecord:
    """Read one result record, of this version or an older one; `checkpoint` becomes a path of this machine.

    `resolve` makes a path absolute and follows its links; for many records it may be one that remembers.

    Raises
    ------
    DamagedFileError
        It is no whole record, or not as it was written.
    NewerFormatError
        A newer release wrote it.
    """
    plain = read_json(path)
    if plain is None:
        raise DamagedFileError(f"{path}: damaged: the file is empty")
    if isinstance(plain, dict) and _DIGEST_KEY in plain:
        plain = dict(plain)
        if plain.pop(_DIGEST_KEY) != _digest(plain):
            raise DamagedFileError(
                f"{path}: damaged: its content does not fit its digest: it was edited after it was written"
            )
    if isinstance(plain, dict) and isinstance(plain.get(VERSION_KEY, ""), str):
        plain = migrated_from_1(plain, path)
    content = RESULT_FORMAT.current(plain, path)
    content = {k: v for k, v in content.items() if k not in (VERSION_KEY, WRITER_KEY)}
    checkpoint = content.get("checkpoint")
    if isinstance(checkpoint, str) and not checkpoint.startswith("<"):
        content["checkpoint"] = str(resolve(path.parent / checkpoint))
    return RESULT_FORMAT.parse(ResultRecord, content, path)


def write_costs_file(costs: Costs, directory: Path) -> Path:
    """Write `directory`/costs.json, what the result in `directory` cost."""
    path = directory / COSTS_NAME
    COSTS_FORMAT.write(path, costs.model_dump(mode="json", exclude_none=True))
    return path


def load_costs(directory: Path) -> Costs | None:
    """Read costs.json beside a record; None where there is none.

    Raises DamagedFileError or NewerFormatError, as `load_record` does.
    """
    path = directory / COSTS_NAME
    plain = COSTS_FORMAT.read(path)
    return None if plain is None else COSTS_FORMAT.parse(Costs, plain, path)


def _beside(checkpoint: Path, directory: Path) -> str:
    """Return a checkpoint's path as a record keeps it: relative where both are of one run, which may move."""
    checkpoint, directory = checkpoint.absolute(), directory.absolute()
    run = next((p for p in directory.parents if (p / "pipeline.json").is_file()), None)
    if run is None or not checkpoint.is_relative_to(run):
        return str(checkpoint)
    up = len(directory.relative_to(run).parts)
    return str(Path(*[".."] * up, checkpoint.relative_to(run)))


def _digest(plain: Mapping[str, Any]) -> str:
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _version(backend: str) -> str:
    try:
        return release() if backend == "carryover" else distributions.version(backend)
    except distributions.PackageNotFoundError:
        return "unknown"
