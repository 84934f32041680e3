"""Who works on a run: one submitter at a time, and what is in flight of it."""

import logging
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from carryover.configs.errors import DamagedFileError, NewerFormatError
from carryover.configs.files import create_json
from carryover.configs.formats import FileModel, Format
from carryover.slurm import scheduler
from carryover.slurm.errors import RunError
from carryover.slurm.graph import Graph
from carryover.slurm.ledger import Attempt, Ledger, StageRecord, now
from carryover.slurm.processes import here, lives

log = logging.getLogger(__name__)

_ROOMS = {"configs", "slurm", "pretrain", "transfer"}


def _from_v1(plain: dict[str, Any]) -> dict[str, Any]:
    """Jobs of version 1 imported the rooms of the house as packages; they are one package now."""
    settings = dict(plain.get("settings", {}))
    packages = settings.get("packages")
    if packages:
        others = [name for name in packages if name not in _ROOMS]
        settings["packages"] = [*(["carryover"] if len(others) < len(packages) else []), *others]
    return {**plain, "settings": settings}


FORMAT = Format("submission", 2, {1: _from_v1})
_HEARTBEAT_SECONDS = 20.0
_DEAD_AFTER_SECONDS = 180.0


class Submission(FileModel):
    """`submissions/<number>.json`.

    Attributes
    ----------
    token
        Names this submission among all jobs of a cluster; every job carries it as its comment.
    state
        "open" while its process plans, submits or (inline, local) runs stages; then "done", or "failed".
    jobs
        Stage name -> job ids (several when chained), written as each job is accepted.
    settings
        The executor's, so that a retry can use the same.
    run_dir
        The run directory, where it lay then: a copy of it elsewhere has none of these jobs and processes.
    origin
        Where it came from: interpreter, environment, code (see `slurm.sbatch`, `slurm.sbatch`).
    """

    number: int
    token: str
    executor: str
    host: str
    pid: int
    process_start: int
    started: datetime
    state: Literal["open", "done", "failed"] = "open"
    ended: datetime | None = None
    reason: str = ""
    jobs: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    run_dir: str = ""
    origin: dict[str, Any] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)


class OpenSubmission:
    """The submission this process holds; its file has no other writer."""

    def __init__(self, path: Path, record: Submission) -> None:
        self.path = path
        self.record = record

    def update(self, **changes: Any) -> None:
        """Write changed fields."""
        self.record = self.record.model_copy(update=changes)
        FORMAT.write(self.path, self.record.model_dump(mode="json"))


@contextmanager
def submission(ledger: Ledger, executor: str) -> Iterator[OpenSubmission]:
    """Hold the run while planning and submitting; exclusive among all machines that see the directory.

    Raises
    ------
    RunError
        Another living process holds the run. One that was killed is recognised (its process is gone, or its
        heartbeat stopped three minutes ago) and its place is taken.
    """
    held = _take(ledger, executor)
    stop = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(held.path, stop), daemon=True)
    beat.start()
    try:
        yield held
    except BaseException as error:
        held.update(state="failed", ended=now(), reason=f"{type(error).__name__}: {error}")
        raise
    finally:
        stop.set()
        beat.join()
    held.update(state="done", ended=now())


def submissions(ledger: Ledger, *, strict: bool = False, of_original: bool = False) -> list[Submission]:
    """Return a run's submissions, oldest first; a damaged file is passed over, and said so.

    Those of the run that this directory is a copy of are not among them, unless `of_original`: their jobs and
    processes are not this one's. `strict` raises NewerFormatError for one of a newer release, which is passed
    over as well otherwise.
    """
    found = []
    for path in sorted(_directory(ledger).glob("[0-9]*.json")):
        try:
            plain = FORMAT.read(path)
            if plain is not None:
                found.append(FORMAT.parse(Submission, plain, path))
        except (DamagedFileError, NewerFormatError) as error:
            if strict and isinstance(error, NewerFormatError):
                raise
            log.warning("%s; what was submitted then is not known", error)
    return [s for s in found if of_original or not _of_the_original(s, ledger)]


def is_copy(ledger: Ledger) -> bool:
    """Whether a run directory was copied from one that is still there, whose attempts are noted in it."""
    every = submissions(ledger, of_original=True)
    return bool(every) and _of_the_original(every[-1], ledger)


def _of_the_original(submission: Submission, ledger: Ledger) -> bool:
    """Whether a submission was made of another directory, still there, that this one is a copy of."""
    there = Path(submission.run_dir)
    if not submission.run_dir or there == ledger.run_dir or not (there / "pipeline.json").exists():
        return False
    return not there.samefile(ledger.run_dir)


def holder(ledger: Ledger) -> Submission | None:
    """Return the submission whose living process holds the run now, if any."""
    past = submissions(ledger)
    return past[-1] if past and alive(ledger, past[-1]) else None


def _take(ledger: Ledger, executor: str) -> OpenSubmission:
    past = submissions(ledger, strict=True)
    if past and alive(ledger, past[-1]):
        raise RunError(_held(ledger, past[-1]))
    host, pid, start = here()
    number = max((int(p.stem) for p in _directory(ledger).glob("[0-9]*.json")), default=0) + 1
    record = Submission(
        number=number,
        token=f"carryover-{uuid.uuid4().hex[:12]}-{number}",
        executor=executor,
        host=host,
        pid=pid,
        process_start=start,
        started=now(),
        run_dir=str(ledger.run_dir.resolve()),
    )
    path = _file(ledger, record.number)
    if not create_json(path, FORMAT.stamped(record.model_dump(mode="json"))):
        raise RunError(_held(ledger, submissions(ledger)[-1]))
    return OpenSubmission(path, record)


def _held(ledger: Ledger, other: Submission) -> str:
    since = other.started.astimezone().strftime("%H:%M:%S")
    return (
        f"{ledger.run_dir}: process {other.pid} on {other.host} has been at work on this run since {since} "
        f"(executor {other.executor}); wait for it, or stop it"
    )


def alive(ledger: Ledger, record: Submission) -> bool:
    """Tell whether a submission's process is still at work on it."""
    if record.state != "open":
        return False
    if record.host == socket.gethostname():
        return lives(record.pid, record.process_start)
    return _age(_file(ledger, record.number)) < _DEAD_AFTER_SECONDS


def _age(path: Path) -> float:
    """Seconds since `path` was touched, by the file server's clock on both sides."""
    probe = path.with_name(f".clock.{socket.gethostname()}.{os.getpid()}")
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink()


def _heartbeat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(_HEARTBEAT_SECONDS):
        # A file server that fails for a moment must not end the beating: others would take the run over.
        with suppress(OSError):
            os.utime(path)


def _directory(ledger: Ledger) -> Path:
    return ledger.run_dir / "submissions"


def _file(ledger: Ledger, number: int) -> Path:
    return _directory(ledger) / f"{number:04d}.json"


_SILENT_AFTER = timedelta(minutes=15)


class Flights:
    """What is in flight of one run, as of now: squeue is called once, if the run has jobs at all.

    Make it before reading records. A job writes its record before it leaves the queue, so a record read later
    is final if the job was gone; the other way round, a stage that ends in between would look lost.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._submissions = submissions(ledger)
        self._copied = is_copy(ledger)
        self._queue: dict[str, scheduler.Queued] = {}
        self._silence: RunError | None = None
        if any(s.jobs or self._left_open(s) for s in self._submissions):
            try:
                self._queue = scheduler.queue()
            except RunError as error:
                self._silence = error

    def __call__(self, record: StageRecord) -> str:
        """Say where a stage is being worked on, or "" when nobody works on it.

        Raises
        ------
        RunError
            The stage was submitted to SLURM and has not ended, and SLURM cannot be asked from here.
        """
        if self._copied:
            return ""
        job_ids = self.jobs(record)
        if job_ids:
            queued = self._queued(record, job_ids)
            return str(queued) if queued else ""
        last = record.attempts[-1] if record.attempts else None
        if last is None or last.executor != "local" or last.ended is not None:
            return ""
        return f"process {last.pid} on {last.host}" if self._process_lives(record.name, last) else ""

    def jobs(self, record: StageRecord) -> tuple[str, ...]:
        """Return the SLURM jobs that may still be at work on a stage: its last submission's."""
        last = record.attempts[-1] if record.attempts else None
        for submission in reversed(self._submissions):
            if record.name in submission.jobs:
                elsewhere = (
                    last is not None and last.executor != "slurm" and last.started > submission.started
                )
                return () if elsewhere else submission.jobs[record.name]
        return (last.job_id,) if last and last.executor == "slurm" and last.job_id else ()

    def submitted(self, stage: str) -> bool:
        """Whether SLURM was the last to be given a stage, rather than a process of its submitter's."""
        for submission in reversed(self._submissions):
            if submission.executor in ("inline", "local") or stage in submission.jobs:
                return stage in submission.jobs
        return False

    def orphans(self, graph: Graph) -> list[str]:
        """Return queued jobs of submitters that were killed before they could note them down.

        Those that have begun are none: their stage's record names them.
        """
        dead = {s.token for s in self._submissions if self._left_open(s)}
        if not dead:
            return []
        known = {job for s in self._submissions for jobs in s.jobs.values() for job in jobs}
        for name in graph.names:
            record, _ = self._ledger.readable(name)
            known.update(record.job_ids if record else ())
        return [j.job_id for j in self.queue.values() if j.comment in dead and j.job_id not in known]

    @property
    def queue(self) -> dict[str, scheduler.Queued]:
        """This user's jobs in the queue; raises RunError when SLURM did not answer."""
        if self._silence is not None:
            raise self._silence
        return self._queue

    def _left_open(self, submission: Submission) -> bool:
        """Whether a submission to SLURM was never closed, since its process was killed."""
        is_open = submission.executor == "slurm" and submission.state == "open"
        return is_open and not alive(self._ledger, submission)

    def _queued(self, record: StageRecord, job_ids: tuple[str, ...]) -> scheduler.Queued | None:
        if self._silence is not None and record.state in ("waiting", "running", "interrupted"):
            raise RunError(
                f"stage {record.name} was submitted as job {job_ids[0]}, and whether it is still at work "
                f"cannot be told from here ({self._silence})"
            )
        return next((self._queue[job] for job in job_ids if job in self._queue), None)

    def _process_lives(self, stage: str, attempt: Attempt) -> bool:
        if attempt.host == socket.gethostname():
            return lives(attempt.pid, attempt.process_start)
        life = self._ledger.last_sign_of_life(stage)
        return life is not None and now() - life < _SILENT_AFTER
