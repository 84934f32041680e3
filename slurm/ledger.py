"""The ledger: what a run directory knows of its stages.

::

    runs/<name>/
      pipeline.json            the resolved graph, with every content hash
      submissions/0001.json    one a submission: who, from where, with which code
      stages/<stage>/
        stage.json             hash, state, attempts, job ids, times
        out/                   what the stage writes; handed to it again when it resumes
        logs/                  one pair of files an attempt
        *.<hash8>              an earlier content hash's out, logs and stage.json, kept

Every file is plain JSON that says its version, replaced in one step, and has one writer at a time: the
submitter until the stage starts, then the process that runs it. Paths are relative to the run directory, so
that it can be moved. Nothing in it is code: stages name what they call (`slurm.calls`).
"""

import logging
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from carryover.configs.errors import DamagedFileError, NewerFormatError, UserError
from carryover.configs.files import write_json
from carryover.configs.formats import FileModel, Format
from carryover.slurm.calls import Call, load_function
from carryover.slurm.errors import RequestError
from carryover.slurm.graph import Graph
from carryover.slurm.outputs import OutputFile, is_inside
from carryover.slurm.stage import InputDigests, Output, Stage, Statement, hash_of_v1

log = logging.getLogger(__name__)


def _graph_from_v1(plain: dict[str, Any]) -> dict[str, Any]:
    rows = plain.get("stages")
    return {**plain, "stages": [_stage_from_v1(row) for row in rows]} if isinstance(rows, list) else plain


def _stage_from_v1(row: Any) -> Any:
    if not isinstance(row, dict) or not isinstance(row.get("call"), str):
        return row
    upgrade = Call.of(row["call"]).upgrade
    return {**row, "params": load_function(upgrade)(row.get("params", {}))} if upgrade else row


_PATHS = ("inputs", "requires")
PIPELINE_FORMAT = Format("run graph", 2, {1: _graph_from_v1})
STAGE_FORMAT = Format("stage record", 2)

State = Literal[
    "waiting",
    "submitted",
    "running",
    "finished",
    "failed",
    "blocked",
    "interrupted",
    "cancelled",
    "damaged",
    "unknown",
]
"""`blocked`: a stage it needs did not finish. `interrupted`: stopped half-way, state saved, resumable.

`damaged` and `unknown` are what `status` says; no record holds them."""


GONE = "its process is gone and wrote nothing down: killed, or kept from writing"


class _StageRow(FileModel):
    """One stage in pipeline.json."""

    name: str
    call: str
    hash: str
    version: int = 1
    params: dict[str, Any] = Field(default_factory=dict)
    known: dict[str, str | None] = Field(default_factory=dict)
    resources: dict[str, Any] = Field(default_factory=dict)
    depends_on: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()


class _GraphFile(FileModel):
    stages: tuple[_StageRow, ...]


class Change(FileModel):
    """One entry in a stage's history."""

    state: State
    at: datetime
    reason: str = ""


class Attempt(FileModel):
    """One start of a stage's callable.

    Attributes
    ----------
    cause
        Why an attempt was interrupted: "timeout", "preemption", "requeue", "cancel", "killed", or a signal.
    log
        Log file, relative to the stage's directory.
    first_step
        Last step that metrics.jsonl held when the attempt began.
    space
        Which numbering of processes `pid` belongs to (`processes.pid_space`).
    restarts
        How often SLURM had started the job before this attempt.
    """

    number: int
    executor: str
    host: str
    pid: int
    process_start: int
    started: datetime
    job_id: str | None = None
    ended: datetime | None = None
    state: State = "running"
    cause: str = ""
    reason: str = ""
    log: str = ""
    first_step: int = 0
    space: str = ""
    restarts: int = 0

    def closed(self, life: datetime | None) -> "Attempt":
        """Return an attempt without an end as killed: it ended, for all we know, at its last sign of life."""
        if self.ended is not None:
            return self
        ended = max(self.started, life or self.started)
        update = {
            "ended": ended,
            "state": "interrupted",
            "cause": "killed",
            "reason": GONE,
        }
        return self.model_copy(update=update)

    @property
    def seconds(self) -> float:
        """Wall seconds, up to now while it runs; the clock of the machine that looks may be another."""
        return max(((self.ended or now()) - self.started).total_seconds(), 0.0)


class StageRecord(FileModel):
    """`stage.json`.

    Attributes
    ----------
    missing
        Stages named in `Stage.after` that had not finished when this one did.
    stated
        What the work is (`slurm.stage`), so that a later difference can be named; None in records of
        version 1, which kept the hash alone.
    outputs
        What a finished stage left, by path relative to its output directory.
    """

    name: str
    hash: str
    state: State
    reason: str = ""
    attempts: tuple[Attempt, ...] = ()
    history: tuple[Change, ...] = ()
    missing: tuple[str, ...] = ()
    stated: dict[str, Any] | None = None
    outputs: dict[str, OutputFile] = Field(default_factory=dict)

    def changed(self, state: State, reason: str = "", **update: Any) -> "StageRecord":
        """Return the record in another state, with the change in its history."""
        change = Change(state=state, at=now(), reason=reason)
        update |= {"state": state, "reason": reason, "history": (*self.history, change)}
        return self.model_copy(update=update)

    @property
    def job_ids(self) -> tuple[str, ...]:
        """Scheduler job ids of the attempts, oldest first, each once."""
        return tuple(dict.fromkeys(a.job_id for a in self.attempts if a.job_id is not None))

    @property
    def seconds(self) -> float:
        """Wall seconds of all attempts together."""
        return sum(a.seconds for a in self.attempts)

    @property
    def finished_at(self) -> str:
        """Return the time of its last state change, in local time, to the minute."""
        return self.history[-1].at.astimezone().strftime("%Y-%m-%d %H:%M") if self.history else "?"


class Ledger:
    """Paths and records of one run directory. Holds no state of its own."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir.absolute()

    @classmethod
    def create(cls, run_dir: Path) -> "Ledger":
        """Return the ledger of a new or existing run; raises RequestError when it cannot be written."""
        ledger = cls(run_dir)
        probe = ledger.run_dir / "stages"
        try:
            probe.mkdir(parents=True, exist_ok=True)
            write_json(ledger.run_dir / ".writable", True)
            (ledger.run_dir / ".writable").unlink(missing_ok=True)  # another submitter may have been quicker
        except OSError as error:
            raise RequestError(f"run directory {ledger.run_dir}: {error.strerror}") from None
        return ledger

    @classmethod
    def open(cls, run_dir: Path) -> "Ledger":
        """Return the ledger of an existing run; raises RequestError when there is none."""
        ledger = cls(run_dir)
        if not ledger.pipeline_file.is_file():
            raise RequestError(f"{run_dir}: not a run directory (it holds no pipeline.json)")
        return ledger

    @property
    def pipeline_file(self) -> Path:
        """The resolved graph."""
        return self.run_dir / "pipeline.json"

    def directory(self, stage: str) -> Path:
        """Return a stage's directory."""
        return self.run_dir / "stages" / stage

    def out(self, stage: str) -> Path:
        """Return a stage's output directory."""
        return self.directory(stage) / "out"

    def logs(self, stage: str) -> Path:
        """Return the directory of a stage's logs."""
        return self.directory(stage) / "logs"

    def resolve(self, output: Output) -> Path:
        """Return where an upstream output, or a path of the run directory, lies."""
        return (self.out(output.stage) if output.stage else self.run_dir) / output.path

    def write_pipeline(self, graph: Graph, hashes: Mapping[str, str]) -> None:
        """Write the resolved graph."""
        stages = [{**self._relative(plain), "hash": hashes[plain["name"]]} for plain in graph.to_json()]
        PIPELINE_FORMAT.write(self.pipeline_file, {"stages": stages})

    def read_pipeline(self) -> Graph:
        """Return the graph last run or submitted here; what it calls is known by name, nothing is imported.

        Raises
        ------
        RequestError
            There is none, or it cannot be read.
        """
        stages = self._pipeline()["stages"]
        try:
            return Graph.from_json([self._absolute(plain) for plain in stages])
        except RequestError as error:
            raise DamagedFileError(f"{self.pipeline_file}: damaged: {error}") from None

    def names(self) -> frozenset[str]:
        """Return the names of the stages of `read_pipeline`, which alone are read; raises what that does."""
        return frozenset(plain["name"] for plain in self._pipeline()["stages"])

    def read(self, stage: str) -> StageRecord | None:
        """Return a stage's record, or None before its first run or submission.

        Raises DamagedFileError or NewerFormatError naming the file when it cannot be read.
        """
        return self._read(self.record_file(stage))

    def record_file(self, stage: str) -> Path:
        """Return where a stage's record lies."""
        return self.directory(stage) / "stage.json"

    def readable(self, stage: str) -> tuple[StageRecord | None, str]:
        """Return a stage's record and "", or None and why its file cannot be read by this release.

        For looking only: a plan must tell a damaged record from one of a newer release.
        """
        try:
            return self.read(stage), ""
        except (DamagedFileError, NewerFormatError) as error:
            return None, str(error)

    def write(self, record: StageRecord) -> None:
        """Replace a stage's record; one that tells of work done outlives a loss of power."""
        plain = record.model_dump(mode="json", exclude_defaults=True)
        STAGE_FORMAT.write(self.record_file(record.name), plain, durable=bool(record.attempts))

    def kept(self, stage: str) -> Iterator[tuple[str, StageRecord]]:
        """Yield the suffix and record of every earlier content hash that was kept aside."""
        for path in sorted(self.directory(stage).glob("stage.*.json")):
            try:
                record = self._read(path)
            except (DamagedFileError, NewerFormatError) as error:
                log.warning("%s", error)
                continue
            if record is not None:
                yield path.name.removeprefix("stage.").removesuffix(".json"), record

    def stated_v1(self) -> dict[str, dict[str, Any]]:
        """State the stages of a run of version 1 as today's are, from the graph and hashes that it kept.

        Only stages whose record has the hash that the graph gives them. Input files are known where the hash
        of then comes out with their contents of today.
        """
        plain = self._pipeline() if self.pipeline_file.is_file() else {"stages": []}
        graph = self.read_pipeline() if plain["stages"] else Graph([])
        given = {row["name"]: row for row in plain["stages"]}
        hashes = {name: row["hash"] for name, row in given.items()}
        inputs = InputDigests()
        found = {}
        for stage in graph:
            record, _ = self.readable(stage.name)
            if record is None or record.stated is not None or record.hash != hashes[stage.name]:
                continue
            try:
                stated = Statement.of(stage, hashes, inputs).to_json()
                stated |= stage.calls.stated_by_v1(stage.params, self.out(stage.name))
            except (UserError, KeyError) as error:
                log.warning(
                    "%s: the actions of version 1 cannot be read by this release: %s", stage.name, error
                )
                continue
            if stage.inputs and hash_of_v1(stage, given[stage.name], hashes, inputs) != record.hash:
                stated["inputs"] = ["other contents"]
            found[stage.name] = stated
        return found

    def _pipeline(self) -> dict[str, Any]:
        plain = PIPELINE_FORMAT.read(self.pipeline_file)
        if plain is None:
            raise RequestError(f"{self.run_dir}: not a run directory (it holds no pipeline.json)")
        PIPELINE_FORMAT.parse(_GraphFile, plain, self.pipeline_file)
        return plain

    def _read(self, path: Path) -> StageRecord | None:
        plain = STAGE_FORMAT.read(path)
        return None if plain is None else STAGE_FORMAT.parse(StageRecord, plain, path)

    def _relative(self, plain: dict[str, Any]) -> dict[str, Any]:
        """Spell what lies in the run directory relative to it."""
        paths = {key: [self._spelled(Path(p)) for p in plain[key]] for key in _PATHS if key in plain}
        return {**plain, **paths}

    def _spelled(self, path: Path) -> str:
        return str(path.relative_to(self.run_dir) if path.is_relative_to(self.run_dir) else path)

    def _absolute(self, plain: dict[str, Any]) -> dict[str, Any]:
        return {
            **plain,
            **{key: [str(self.run_dir / p) for p in plain[key]] for key in _PATHS if key in plain},
        }

    def set_aside(self, record: StageRecord) -> str:
        """Keep a stage's out, logs and record under its hash's first eight digits; return that suffix."""
        directory = self.directory(record.name)
        suffix = record.hash[:8]
        n = 1
        while (directory / f"stage.{suffix}.json").exists() or (directory / f"out.{suffix}").exists():
            n += 1
            suffix = f"{record.hash[:8]}-{n}"
        self._move(directory, "", f".{suffix}")
        return suffix

    def set_damaged_aside(self, stage: str) -> str:
        """Keep a stage whose record cannot be read under the name "damaged"; return that suffix."""
        directory = self.directory(stage)
        numbers = (f"damaged-{n}" for n in range(1, 1000))
        suffix = next(s for s in numbers if not (directory / f"stage.{s}.json").exists())
        self._move(directory, "", f".{suffix}")
        return suffix

    def set_unfit_aside(self, stage: str, names: Collection[str]) -> None:
        """Move changed outputs aside before the work that makes them again."""
        for name in names:
            path = self.out(stage) / name
            if path.exists() and is_inside(name):
                path.replace(path.with_name(f"{path.name}.unfit"))

    @staticmethod
    def _move(directory: Path, old: str, new: str) -> None:
        # The record goes last: until then it says what the rest is.
        for name, suffix in (("out", ""), ("logs", ""), ("stage", ".json")):
            if (directory / f"{name}{old}{suffix}").exists():
                (directory / f"{name}{old}{suffix}").rename(directory / f"{name}{new}{suffix}")

    def bring_back(self, stage: str, suffix: str) -> StageRecord:
        """Make what was kept under `suffix` the stage's current out, logs and record again."""
        directory = self.directory(stage)
        self._move(directory, f".{suffix}", "")
        record = self.read(stage)
        assert record is not None
        return record

    def last_sign_of_life(self, stage: str) -> datetime | None:
        """Return when a stage last wrote into its logs or its metrics; None when it never has."""
        paths = [*self.logs(stage).glob("*"), self.out(stage) / "metrics.jsonl"]
        times = [path.stat().st_mtime for path in paths if path.exists()]
        return datetime.fromtimestamp(max(times), UTC) if times else None

    def closed(self, record: StageRecord, running: bool) -> tuple[Attempt, ...]:
        """Return a stage's attempts; unless it is `running`, one that has no end is closed as killed."""
        if running or all(attempt.ended is not None for attempt in record.attempts):
            return record.attempts
        life = self.last_sign_of_life(record.name)
        return tuple(attempt.closed(life) for attempt in record.attempts)

    def missing_after(self, stage: Stage) -> tuple[str, ...]:
        """Return which of the stages that `stage` only follows have not finished."""
        records = {name: self.readable(name)[0] for name in stage.after}
        return tuple(name for name, r in records.items() if r is None or r.state != "finished")


def now() -> datetime:
    """Return the time, in UTC, to the millisecond."""
    time = datetime.now(UTC)
    return time.replace(microsecond=time.microsecond // 1000 * 1000)
