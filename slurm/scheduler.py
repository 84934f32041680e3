"""SLURM's commands, and what they print, as typed values."""

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from carryover.slurm.errors import RequestError, RunError

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
