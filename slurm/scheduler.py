"""Asking and telling SLURM: queue, submission, cancellation, accounting."""

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from carryover.slurm.errors import RequestError, RunError
from carryover.slurm.ledger import Attempt, Ledger, StageRecord
from carryover.slurm.stage import Stage

_TIMEOUT_SECONDS = 60
_SQUEUE_FORMAT = "%i|%T|%r|%k"
_SACCT_FIELDS = ("JobID", "State", "Eligible", "Start", "End", "ElapsedRaw", "AllocTRES")
_SACCT_JOBS_A_CALL = 200
_MOST_IDS_A_CALL = 500


@dataclass(frozen=True)
class Queued:
    """A job that has not left the queue: `state` and `reason` in squeue's words."""

    job_id: str
    state: str
    reason: str
    comment: str

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason not in ("None", "") else ""
        return f"job {self.job_id} is {self.state.lower()}{why}"


@dataclass(frozen=True)
class OwnJob:
    """What scontrol says of the job that asks."""

    state: str
    reason: str
    restarts: int
    preempted: bool
    end: datetime | None


@dataclass(frozen=True)
class Accounted:
    """One start of a job in the accounting database; since `eligible` only the queue held it back."""

    job_id: str
    state: str
    eligible: datetime | None
    started: datetime | None
    ended: datetime | None
    seconds: int
    gpus: int


def available() -> bool:
    """Whether this machine has SLURM's commands."""
    return shutil.which("sbatch") is not None and shutil.which("squeue") is not None


def queue() -> dict[str, Queued]:
    """Return this user's jobs in the queue by job id, array elements one by one: one call to squeue.

    Raises
    ------
    RunError
        squeue is missing, or the controller does not answer.
    """
    done = _run("squeue", "--me", "--noheader", "--array", "--format", _SQUEUE_FORMAT)
    lines = (line.split("|", 3) for line in done.splitlines() if line.count("|") >= 3)
    return {f[0]: Queued(f[0], f[1], f[2], f[3]) for f in lines}


def own_job(job_id: str) -> OwnJob:
    """Return what the controller says of a running job; raises RunError when it does not answer."""
    text = _run("scontrol", "show", "job", "--oneliner", job_id)
    fields = dict(re.findall(r"(\w+)=(\S*)", text.splitlines()[0]))
    return OwnJob(
        state=fields.get("JobState", ""),
        reason=fields.get("Reason", ""),
        restarts=int(fields.get("Restarts", 0)),
        preempted=fields.get("PreemptTime", "None") != "None",
        end=_time(fields.get("EndTime", "")),
    )


def requeue(job_id: str) -> None:
    """Put a running job back into the queue, which ends it; raises RunError when SLURM refuses."""
    _run("scontrol", "requeue", job_id)


def cancel(job_ids: Collection[str]) -> None:
    """Cancel jobs; those that have ended already are no error."""
    ids = sorted(job_ids)
    for start in range(0, len(ids), _MOST_IDS_A_CALL):
        _run("scancel", "--quiet", *ids[start : start + _MOST_IDS_A_CALL])


def check_accepted(script: Path) -> None:
    """Ask the controller whether it would take a batch script, without submitting it; raises RequestError."""
    try:
        _run("sbatch", "--test-only", str(script))
    except RunError as error:
        raise RequestError(f"SLURM does not accept these resources: {error}") from None


def accounting(job_ids: Collection[str]) -> list[Accounted]:
    """Return every start of the given jobs, from sacct; raises RunError where there is no accounting."""
    ids = sorted({job_id.partition("_")[0] for job_id in job_ids})
    rows: list[Accounted] = []
    for start in range(0, len(ids), _SACCT_JOBS_A_CALL):
        jobs = ",".join(ids[start : start + _SACCT_JOBS_A_CALL])
        words = (
            "--duplicates",
            "--allocations",
            "--noheader",
            "--parsable2",
            f"--format={','.join(_SACCT_FIELDS)}",
        )
        rows.extend(_accounted(_run("sacct", *words, f"--jobs={jobs}").splitlines()))
    return rows


def _accounted(lines: Sequence[str]) -> Iterator[Accounted]:
    for line in lines:
        values = line.split("|")
        if len(values) != len(_SACCT_FIELDS) or "[" in values[0]:
            continue
        job_id, state, eligible, started, ended, seconds, tres = values
        gpus = re.search(r"gres/gpu=(\d+)", tres)
        yield Accounted(
            job_id=job_id,
            state=state.split()[0] if state else "",
            eligible=_time(eligible),
            started=_time(started),
            ended=_time(ended),
            seconds=int(seconds or 0),
            gpus=int(gpus.group(1)) if gpus else 0,
        )


def _run(*words: str) -> str:
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
            env={**os.environ, "SLURM_TIME_FORMAT": "standard"},
        )
    except FileNotFoundError:
        raise RunError(f"{words[0]} not found: this machine does not belong to a SLURM cluster") from None
    except subprocess.TimeoutExpired:
        raise RunError(f"{words[0]} gave no answer in {_TIMEOUT_SECONDS} s") from None
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise RunError(f"{words[0]}: {'; '.join(said[-2:]) or f'exit status {done.returncode}'}")
    return done.stdout


def _time(text: str) -> datetime | None:
    """Read SLURM's local time; None for Unknown, None and N/A."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        return None


@dataclass(frozen=True)
class Cost:
    """One stage, all its attempts together, in hours.

    `waiting_hours` is time in the queue when nothing but the cluster stood in the way.
    """

    gpu_hours: float
    wall_hours: float
    waiting_hours: float
    attempts: int
    source: Literal["sacct", "clock"]


def stage_costs(ledger: Ledger) -> dict[str, Cost]:
    """Return the cost of every stage that has begun; sacct is asked about all jobs together."""
    graph = ledger.read_pipeline()
    found = {name: ledger.readable(name)[0] for name in graph.names}
    records = {name: record for name, record in found.items() if record is not None and record.attempts}
    accounted = _rows_by_job({job for record in records.values() for job in _jobs(record)})
    costs: dict[str, Cost] = {}
    for name, record in records.items():
        rows = [row for job in _jobs(record) for row in accounted.get(job, [])]
        attempts = ledger.closed(record, record.state == "running")
        # The database hears of a job's end later than the ledger does.
        if rows and (record.state == "running" or all(row.ended is not None for row in rows)):
            costs[name] = _from_accounting(graph[name], rows, attempts)
        else:
            upstream = [records[n] for n in graph[name].upstream if n in records]
            costs[name] = _from_clock(graph[name], record, attempts, upstream)
    return costs


def _jobs(record: StageRecord) -> set[str]:
    return {a.job_id for a in record.attempts if a.executor == "slurm" and a.job_id is not None}


def _rows_by_job(job_ids: Set[str]) -> dict[str, list[Accounted]]:
    by_job: dict[str, list[Accounted]] = {}
    try:
        rows = accounting(job_ids) if job_ids else []
    except RunError:
        rows = []
    for row in rows:
        if row.started is not None:
            by_job.setdefault(row.job_id, []).append(row)
    return by_job


def _from_accounting(stage: Stage, rows: Sequence[Accounted], attempts: Sequence[Attempt]) -> Cost:
    waits = [row.started - row.eligible for row in rows if row.started and row.eligible]
    outside = sum(a.seconds for a in attempts if a.executor != "slurm")
    asked = _gpus(stage)
    return Cost(
        # A cluster that does not account for GPUs (AccountingStorageTRES) reports none.
        gpu_hours=(outside * asked + sum(r.seconds * (r.gpus or asked) for r in rows)) / 3600,
        wall_hours=(outside + sum(r.seconds for r in rows)) / 3600,
        waiting_hours=sum(max(wait.total_seconds(), 0.0) for wait in waits) / 3600,
        attempts=len(attempts),
        source="sacct",
    )


def _from_clock(
    stage: Stage, record: StageRecord, attempts: Sequence[Attempt], upstream: Sequence[StageRecord]
) -> Cost:
    seconds = sum(a.seconds for a in attempts)
    submitted = [change.at for change in record.history if change.state == "waiting"]
    ready = [r.history[-1].at for r in upstream if r.state == "finished"]
    waited = 0.0
    for before, attempt in zip([None, *attempts], attempts, strict=False):
        if before is not None and before.ended is not None and before.job_id == attempt.job_id is not None:
            waited += (attempt.started - before.ended).total_seconds()
            continue
        asked = [at for at in submitted if at <= attempt.started]
        if asked and attempt.executor == "slurm":
            eligible = max([asked[-1], *(at for at in ready if at <= attempt.started)])
            waited += (attempt.started - eligible).total_seconds()
    return Cost(
        gpu_hours=seconds * _gpus(stage) / 3600,
        wall_hours=seconds / 3600,
        waiting_hours=waited / 3600,
        attempts=len(attempts),
        source="clock",
    )


def _gpus(stage: Stage) -> int:
    return stage.resources.nodes * stage.resources.gpus_per_node
