"""Query and control SLURM: queue, submission, cancellation, accounting."""

import os
import pwd
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from carryover.slurm.commands import run
from carryover.slurm.errors import RunError

_IDS_A_CALL = 2000
# scontrol built without readline reads lines of 4,096 characters.
_LONGEST_LINE = 4000
_TIMEOUT_SECONDS, _SECONDS_A_REQUEST = 60.0, 10.0
_CONFIGURATIONS = (
    Path("/etc/slurm/slurm.conf"),
    Path("/run/slurm/conf/slurm.conf"),
    Path("/etc/slurm-llnl/slurm.conf"),
)

# Name of squeue's column, its header, its width.
_COLUMNS = (
    ("JobArrayID", "JOBID", 40),
    ("State", "STATE", 24),
    ("exit_code", "EXIT_CODE", 12),
    ("RestartCnt", "RESTART_C", 10),
    ("Cluster", "CLUSTER", 80),
    ("Reason", "REASON", 80),
    ("Comment", "COMMENT", 120),
)
_SACCT_FIELDS = (
    "JobID",
    "State",
    "ExitCode",
    "Cluster",
    "Eligible",
    "Start",
    "End",
    "ElapsedRaw",
    "AllocTRES",
    "Comment",
    "JobName",
)

ENDED = frozenset(
    [
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    ]
)
"""States of jobs that are over. (COMPLETING is none of them: its processes may live.)"""


@dataclass(frozen=True)
class Ended:
    """End of a job in SLURM's words; `status` is its exit status, or the signal that killed it."""

    job_id: str
    state: str
    reason: str
    status: str
    restarts: int

    def __str__(self) -> str:
        said = [self.reason] if self.reason not in ("None", "") else []
        said += [self.status] if self.status else []
        return f"job {self.job_id} ended as {self.state}" + (f" ({', '.join(said)})" if said else "")


@dataclass(frozen=True)
class Queued:
    """A job that the controller knows of: `state` and `reason` in squeue's words, `exit_code` as wait(2)."""

    job_id: str
    state: str
    reason: str
    comment: str
    cluster: str = ""
    exit_code: int = 0
    restarts: int = 0

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason not in ("None", "") else ""
        return f"job {self.job_id} is {self.state.lower()}{why}"

    @property
    def pending(self) -> bool:
        """Return whether it waits for its start, or for its next one."""
        return self.state == "PENDING" or self.state.startswith("REQUEUE")

    @property
    def not_yet(self) -> bool:
        """Return whether it waits for its begin time, and not because it was requeued."""
        return self.state == "PENDING" and self.reason == "BeginTime" and self.restarts == 0

    @property
    def end(self) -> Ended | None:
        """Return how it ended; None while it has not."""
        if self.state not in ENDED:
            return None
        status, signum = self.exit_code >> 8, self.exit_code & 0x7F
        return Ended(self.job_id, self.state, self.reason, _status(status, signum), self.restarts)


@dataclass(frozen=True)
class OwnJob:
    """Answer of scontrol about the job that calls it."""

    state: str
    reason: str
    restarts: int
    preempted: bool
    limit: timedelta | None


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
    cluster: str = ""
    status: str = ""
    comment: str = ""
    name: str = ""


def available() -> bool:
    """Return whether this machine has SLURM's commands."""
    return shutil.which("sbatch") is not None and shutil.which("squeue") is not None


def cluster_name() -> str:
    """Return the name of the cluster that this machine belongs to; raises RunError when it cannot be told.

    It is in slurm.conf; if that is elsewhere, the controller is queried.
    """
    given = os.environ.get("SLURM_CONF")
    for path in [Path(given)] if given else _CONFIGURATIONS:
        with suppress(OSError):
            found = re.search(r"^\s*ClusterName\s*=\s*(\S+)", path.read_text(errors="replace"), re.M | re.I)
            if found is not None:
                return found.group(1).lower()
    name = _configured().get("ClusterName", "")
    if not name:
        raise RunError("scontrol show config states no ClusterName")
    return name.lower()


def hides_jobs() -> bool:
    """Return whether users see only their own jobs; raise RunError if nothing answers."""
    return "jobs" in _configured().get("PrivateData", "")


def _configured() -> dict[str, str]:
    """Return the controller's configuration."""
    return dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", run("scontrol", "show", "config"), re.M))


def queue(users: Collection[int] = ()) -> dict[str, Queued]:
    """Return users' jobs (everybody's, unless told) that the controller knows of, by job id: one squeue call.

    Array elements come one by one. For some minutes (MinJobAge) those that have ended are among them.

    Raises
    ------
    RunError
        squeue is missing, the controller does not answer, or the answer is none: an empty queue has a header.
    """
    names = [_user_name(uid) for uid in sorted(users)]
    only = [f"--user={','.join(n for n in names if n)}"] if names and None not in names else []
    columns = ",".join(f"{name}:{width}" for name, _, width in _COLUMNS)
    text = run("squeue", "--all", "--local", "--states=all", "--array", *only, f"--Format={columns}")
    lines = text.splitlines()
    if not lines or not lines[0].startswith("JOBID"):
        raise RunError("squeue did not answer: not even the header of an empty queue")
    return {job.job_id: job for job in map(_queued, lines[1:]) if job.job_id}


def own_job(job_id: str) -> OwnJob:
    """Return what the controller says of a running job; raises RunError when it does not answer."""
    text = run("scontrol", "show", "job", "--oneliner", job_id)
    fields = dict(re.findall(r"(\w+)=(\S*)", text.partition("\n")[0]))
    if "JobState" not in fields:
        raise RunError(f"scontrol does not list job {job_id}")
    return OwnJob(
        state=fields["JobState"],
        reason=fields.get("Reason", ""),
        restarts=int(fields.get("Restarts", 0)),
        preempted=fields.get("PreemptTime", "None") != "None",
        limit=_duration(fields.get("TimeLimit", "")),
    )


def alive() -> dict[str, str]:
    """Return the comments of the jobs that have not ended, of all users, as scontrol lists them: one call.

    Raises
    ------
    RunError
        scontrol does not answer; that there are no jobs it says in words.
    """
    text = run("scontrol", "show", "job", "--oneliner")
    lines = [line for line in text.splitlines() if line.startswith("JobId=")]
    rows: list[dict[str, str]] = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines]
    if not rows and not text.startswith("No jobs"):
        raise RunError("scontrol lists no jobs")
    found: dict[str, str] = {}
    for fields in rows:
        if fields.get("JobState") not in ENDED:
            task = fields.get("ArrayTaskId")
            jobs = _elements(f"{fields['ArrayJobId']}_[{task}]" if task else fields["JobId"])
            found.update(dict.fromkeys(jobs, fields.get("Comment", "")))
    return found


def update(requests: Sequence[str], job_id: str) -> None:
    """Change jobs: each request is scontrol's, as ``JobId=12_[0-3] Dependency=afterok:11``; one call for all.

    The same scontrol has to show `job_id` in the end: one that says nothing has done nothing.

    Raises
    ------
    RunError
        One or more of them were rejected, or the controller did not answer; others may have been done.
    """
    for request in requests:
        if len(request) > _LONGEST_LINE:
            run("scontrol", "update", *request.split(" "), pauses=())
    lines = [f"update {request}\n" for request in requests if len(request) <= _LONGEST_LINE]
    lines.append(f"show job {job_id}\n")
    patience = _TIMEOUT_SECONDS + _SECONDS_A_REQUEST * len(lines)
    shown = run("scontrol", "--oneliner", entered="".join(lines), pauses=(), timeout=patience)
    if "JobState=" not in shown:
        raise RunError(f"scontrol does not list job {job_id}")


def requeue(job_id: str) -> None:
    """Put a running job back into the queue, which ends it; raises RunError if SLURM rejects it."""
    run("scontrol", "requeue", job_id, pauses=())


def cancel(job_ids: Collection[str]) -> None:
    """Cancel jobs; those that have ended already are no error."""
    ids = sorted(job_ids)
    for start in range(0, len(ids), _IDS_A_CALL):
        run("scancel", "--quiet", *ids[start : start + _IDS_A_CALL])


def accounting(job_ids: Collection[str]) -> list[Accounted]:
    """Return every start of the given jobs, from sacct; raises RunError where there is no accounting."""
    ids = sorted({job_id.partition("_")[0] for job_id in job_ids})
    options = ("--duplicates", "--allocations", "--noheader", "--parsable2")
    rows: list[Accounted] = []
    for start in range(0, len(ids), _IDS_A_CALL):
        jobs = ",".join(ids[start : start + _IDS_A_CALL])
        text = run("sacct", *options, f"--format={','.join(_SACCT_FIELDS)}", f"--jobs={jobs}")
        rows.extend(_accounted(text.splitlines()))
    return rows


def _accounted(lines: Sequence[str]) -> Iterator[Accounted]:
    for line in lines:
        values = line.split("|", len(_SACCT_FIELDS) - 1)
        if len(values) != len(_SACCT_FIELDS):
            continue
        field = dict(zip(_SACCT_FIELDS, values, strict=True))
        gpus = re.search(r"gres/gpu=(\d+)", field["AllocTRES"])
        status, _, signum = field["ExitCode"].partition(":")
        for job_id in _elements(field["JobID"]):
            yield Accounted(
                job_id=job_id,
                state=field["State"].split()[0] if field["State"] else "",
                eligible=_time(field["Eligible"]),
                started=_time(field["Start"]),
                ended=_time(field["End"]),
                seconds=int(field["ElapsedRaw"] or 0),
                gpus=int(gpus.group(1)) if gpus else 0,
                cluster=field["Cluster"].lower(),
                status=_status(int(status or 0), int(signum or 0)),
                comment=field["Comment"],
                name=field["JobName"],
            )


def _elements(job_id: str) -> Iterator[str]:
    """Yield the jobs that a row is about: elements that never began share one, as ``12_[0-3,7%2]``."""
    base, bracket, inside = job_id.partition("_[")
    if not bracket:
        yield job_id
        return
    for part in inside.rstrip("]").partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            yield from (f"{base}_{i}" for i in range(int(first), int(last or first) + 1))


def _queued(line: str) -> Queued:
    values, start = [], 0
    for _, _, width in _COLUMNS:
        values.append(line[start : start + width].strip())
        start += width
    job_id, state, code, restarts, cluster, reason, comment = values
    return Queued(job_id, state, reason, comment, cluster.lower(), _integer(code), _integer(restarts))


def _integer(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _status(status: int, signum: int) -> str:
    if signum:
        return f"killed by signal {signum}"
    return f"exit status {status}" if status else ""


def _user_name(uid: int) -> str | None:
    """Return what squeue takes for a user; None where this machine does not know one of that number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _time(text: str) -> datetime | None:
    """Read SLURM's local time; None for Unknown, None and N/A."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        return None


def _duration(text: str) -> timedelta | None:
    """Read SLURM's ``days-hours:minutes:seconds``; None for UNLIMITED and the like."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
