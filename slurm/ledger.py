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

Every file is plain JSON, replaced in one step, and has one writer at a time: the submitter until the stage
starts, then the process that runs it.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import cloudpickle
from pydantic import BaseModel, ConfigDict

from slurm.errors import RequestError
from slurm.files import read_json, write_bytes, write_json
from slurm.graph import Graph
from slurm.stage import Output, Stage, load_call

State = Literal[
    "waiting", "submitted", "running", "finished", "failed", "blocked", "interrupted", "cancelled"
]
"""`blocked`: a stage it needs did not finish. `interrupted`: stopped half-way, state saved, resumable."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Change(_Record):
    """One entry in a stage's history."""

    state: State
    at: datetime
    reason: str = ""


class Attempt(_Record):
    """One start of a stage's callable.

    Attributes
    ----------
    cause
        Why an attempt was interrupted: "timeout", "preemption", "requeue", "cancel", "killed", or a signal.
    log
        Log file, relative to the stage's directory.
    first_step
        Last step that metrics.jsonl held when the attempt began.
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

    def closed(self, life: datetime | None) -> "Attempt":
        """Return an attempt without an end as killed: it ended, for all we know, at its last sign of life."""
        if self.ended is not None:
            return self
        ended = max(self.started, life or self.started)
        update = {
            "ended": ended,
            "state": "interrupted",
            "cause": "killed",
            "reason": "its process was killed",
        }
        return self.model_copy(update=update)

    @property
    def seconds(self) -> float:
        """Wall seconds, up to now while it runs."""
        return ((self.ended or now()) - self.started).total_seconds()


class StageRecord(_Record):
    """`stage.json`.

    Attributes
    ----------
    missing
        Stages named in `Stage.after` that had not finished when this one did.
    """

    name: str
    hash: str
    state: State
    reason: str = ""
    attempts: tuple[Attempt, ...] = ()
    history: tuple[Change, ...] = ()
    missing: tuple[str, ...] = ()

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
        """When it last changed state, in local time, to the minute."""
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
            (ledger.run_dir / ".writable").unlink()
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
        """Return where an upstream output lies."""
        return self.out(output.stage) / output.path

    def write_pipeline(self, graph: Graph, hashes: dict[str, str]) -> None:
        """Write the resolved graph, and the callables that other processes cannot import."""
        for stage in graph:
            if stage.importable:
                self.call_file(stage.name).unlink(missing_ok=True)
            else:
                write_bytes(self.call_file(stage.name), stage.pickled_call())
        stages = [{**plain, "hash": hashes[plain["name"]]} for plain in graph.to_json()]
        pickled = [stage.name for stage in graph if not stage.importable]
        write_json(self.pipeline_file, {"stages": stages, "pickled": pickled})

    def read_pipeline(self) -> Graph:
        """Return the graph last run or submitted here."""
        plain = read_json(self.pipeline_file)
        if plain is None:
            raise RequestError(f"{self.run_dir}: not a run directory (it holds no pipeline.json)")
        graph = Graph.from_json(plain["stages"])
        return Graph([self._with_call(stage) for stage in graph]) if plain["pickled"] else graph

    def load_call(self, stage: Stage) -> Callable[..., object]:
        """Return a stage's callable: itself, imported by name, or unpickled."""
        call = self._with_call(stage).call
        return load_call(call) if isinstance(call, str) else call

    def _with_call(self, stage: Stage) -> Stage:
        path = self.call_file(stage.name)
        if not isinstance(stage.call, str) or not path.exists():
            return stage
        return replace(stage, call=cloudpickle.loads(path.read_bytes()))

    def call_file(self, stage: str) -> Path:
        """Return where a callable that cannot be imported is kept, pickled."""
        return self.directory(stage) / "call.pkl"

    def read(self, stage: str) -> StageRecord | None:
        """Return a stage's record, or None before its first run or submission."""
        plain = read_json(self.directory(stage) / "stage.json")
        return None if plain is None else StageRecord.model_validate(plain)

    def write(self, record: StageRecord) -> None:
        """Replace a stage's record; one that tells of work done outlives a loss of power."""
        plain = record.model_dump(mode="json", exclude_defaults=True)
        write_json(self.directory(record.name) / "stage.json", plain, durable=bool(record.attempts))

    def kept(self, stage: str) -> Iterator[tuple[str, StageRecord]]:
        """Yield the suffix and record of every earlier content hash that was kept aside."""
        for path in sorted(self.directory(stage).glob("stage.*.json")):
            plain = read_json(path)
            if plain is not None:
                yield (
                    path.name.removeprefix("stage.").removesuffix(".json"),
                    StageRecord.model_validate(plain),
                )

    def set_aside(self, record: StageRecord) -> str:
        """Keep a stage's out, logs and record under its hash's first eight digits; return that suffix."""
        directory = self.directory(record.name)
        suffix = record.hash[:8]
        n = 1
        while (directory / f"stage.{suffix}.json").exists() or (directory / f"out.{suffix}").exists():
            n += 1
            suffix = f"{record.hash[:8]}-{n}"
        for name in ("out", "logs"):
            if (directory / name).exists():
                (directory / name).rename(directory / f"{name}.{suffix}")
        (directory / "stage.json").rename(directory / f"stage.{suffix}.json")
        return suffix

    def bring_back(self, stage: str, suffix: str) -> StageRecord:
        """Make what was kept under `suffix` the stage's current out, logs and record again."""
        directory = self.directory(stage)
        for name in ("out", "logs"):
            if (directory / f"{name}.{suffix}").exists():
                (directory / f"{name}.{suffix}").rename(directory / name)
        (directory / f"stage.{suffix}.json").rename(directory / "stage.json")
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
        records = {name: self.read(name) for name in stage.after}
        return tuple(name for name, r in records.items() if r is None or r.state != "finished")


def now() -> datetime:
    """Return the time, in UTC, to the millisecond."""
    time = datetime.now(UTC)
    return time.replace(microsecond=time.microsecond // 1000 * 1000)
