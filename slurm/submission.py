"""One submitter at a time: a run's submissions are numbered, and a number is taken by creating its file."""

import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from slurm.errors import RunError
from slurm.files import create_json, read_json, write_json
from slurm.ledger import Ledger, now
from slurm.processes import here, lives

_HEARTBEAT_SECONDS = 20.0
_DEAD_AFTER_SECONDS = 180.0


class Submission(BaseModel):
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
    origin
        Where it came from: interpreter, environment, code (see `slurm.environment`, `slurm.snapshot`).
    """

    model_config = ConfigDict(frozen=True)

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
    jobs: dict[str, tuple[str, ...]] = {}
    origin: dict[str, Any] = {}
    settings: dict[str, Any] = {}


class OpenSubmission:
    """The submission this process holds; its file has no other writer."""

    def __init__(self, path: Path, record: Submission) -> None:
        self.path = path
        self.record = record

    def update(self, **changes: Any) -> None:
        """Write changed fields."""
        self.record = self.record.model_copy(update=changes)
        write_json(self.path, self.record.model_dump(mode="json"))


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


def submissions(ledger: Ledger) -> list[Submission]:
    """Return a run's submissions, oldest first."""
    found = (read_json(path) for path in sorted(_directory(ledger).glob("[0-9]*.json")))
    return [Submission.model_validate(plain) for plain in found if plain is not None]


def holder(ledger: Ledger) -> Submission | None:
    """Return the submission whose living process holds the run now, if any."""
    past = submissions(ledger)
    return past[-1] if past and alive(ledger, past[-1]) else None


def _take(ledger: Ledger, executor: str) -> OpenSubmission:
    past = submissions(ledger)
    if past and alive(ledger, past[-1]):
        raise RunError(_held(ledger, past[-1]))
    host, pid, start = here()
    number = past[-1].number + 1 if past else 1
    record = Submission(
        number=number,
        token=f"carryover-{uuid.uuid4().hex[:12]}-{number}",
        executor=executor,
        host=host,
        pid=pid,
        process_start=start,
        started=now(),
    )
    path = _file(ledger, record.number)
    if not create_json(path, record.model_dump(mode="json")):
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
