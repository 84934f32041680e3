"""Ownership of a run: one submitter at a time."""

import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from carryover.configs.errors import DamagedFileError, NewerFormatError
from carryover.configs.files import create_json
from carryover.configs.formats import FileModel, Format
from carryover.slurm.errors import RunError
from carryover.slurm.ledger import Ledger, now
from carryover.slurm.processes import here, known_to_live, pid_space

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
SINGLE = ("evaluate", "pretrain")
"""Commands that hold the directory of one piece of work, not a run: named in the place of an executor."""
_HEARTBEAT_SECONDS = 5.0
_DEAD_AFTER_SECONDS = 180.0
_WATCH_SECONDS = 25.0
_SILENT_FOR_GOOD_SECONDS = 86400.0


class Submission(FileModel):
    """`submissions/<number>.json`.

    Attributes
    ----------
    token
        Names this submission among all jobs of a cluster; every job carries it as its comment.
    state
        "open" while its process plans, submits or (inline, local) runs stages; then "done", or "failed".
    space
        Which numbering of processes `pid` belongs to (`processes.pid_space`).
    jobs
        Stage name -> job ids (several when chained), written as each job is accepted.
    cluster, uid
        SLURM's name of the cluster that the jobs were given to, and the user whose jobs they are.
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
    space: str = ""
    cluster: str = ""
    uid: int | None = None
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
        Another living process holds the run. One that was killed is recognized (its process is gone; where
        that cannot be seen, its heartbeat stopped) and its place is taken. Or its directory cannot be
        written (a full disk, say).
    """
    try:
        with _held_open(_take(ledger, executor)) as held:
            yield held
    except OSError as error:
        raise RunError(f"{ledger.run_dir}: {error}") from error


@contextmanager
def _held_open(held: OpenSubmission) -> Iterator[OpenSubmission]:
    """Update a submission's heartbeat, and record its end."""
    stop = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(held.path, stop), daemon=True)
    beat.start()
    _HELD_HERE.add(held.path.resolve())
    try:
        yield held
    except BaseException as error:
        with suppress(OSError):
            held.update(state="failed", ended=now(), reason=f"{type(error).__name__}: {error}")
        raise
    finally:
        _HELD_HERE.discard(held.path.resolve())
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
    """Return whether a run directory is a copy of one that still exists, with its attempts."""
    every = submissions(ledger, of_original=True)
    return bool(every) and _of_the_original(every[-1], ledger)


def _of_the_original(submission: Submission, ledger: Ledger) -> bool:
    """Return whether a submission was made of another directory, still there, that this one is a copy of."""
    there = Path(submission.run_dir)
    original = _file(Ledger(there), submission.number)
    if not submission.run_dir or there == ledger.run_dir or not original.exists():
        return False
    return not there.samefile(ledger.run_dir)


def holder(ledger: Ledger) -> Submission | None:
    """Return the submission whose living process holds the run now, if any."""
    past = submissions(ledger)
    return past[-1] if past and alive(ledger, past[-1]) else None


def _take(ledger: Ledger, executor: str) -> OpenSubmission:
    # Counted before looking who is there: another that comes in between then takes this very number.
    number = max((int(p.stem) for p in _directory(ledger).glob("[0-9]*.json")), default=0) + 1
    past = submissions(ledger, strict=True)
    if past and alive(ledger, past[-1]):
        raise RunError(_held(ledger, past[-1]))
    host, pid, start = here()
    record = Submission(
        number=number,
        token=f"carryover-{uuid.uuid4().hex[:12]}-{number}",
        executor=executor,
        host=host,
        pid=pid,
        process_start=start,
        space=pid_space(),
        uid=os.getuid(),
        started=now(),
        run_dir=str(ledger.run_dir.resolve()),
    )
    path = _file(ledger, record.number)
    if not create_json(path, FORMAT.stamped(record.model_dump(mode="json"))):
        raise RunError(_held(ledger, submissions(ledger)[-1]))
    # Where a submission that was counted has been removed since, two can have taken different numbers.
    known = {record.token, *(s.token for s in past)}
    other = next((s for s in submissions(ledger) if s.token not in known and alive(ledger, s)), None)
    if other is not None:
        path.unlink()
        raise RunError(_held(ledger, other))
    return OpenSubmission(path, record)


def _held(ledger: Ledger, other: Submission) -> str:
    since = other.started.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    work = "in this directory" if other.executor in SINGLE else "on this run"
    by = f"carryover {other.executor}" if other.executor in SINGLE else f"executor {other.executor}"
    return (
        f"{ledger.run_dir}: process {other.pid} on {other.host} has been at work {work} since {since} ({by});"
        " wait for it, or stop it"
    )


def alive(ledger: Ledger, record: Submission) -> bool:
    """Return whether a submission's process is still at work on it; nothing is written to find out."""
    if record.state != "open":
        return False
    path = _file(ledger, record.number)
    if (record.host, record.pid, record.process_start) == here() and record.space == pid_space():
        return path.resolve() in _HELD_HERE
    known = known_to_live(record.host, record.space, record.pid, record.process_start)
    return _beats(path) if known is None else known


_SEEN_DEAD: dict[Path, int] = {}
# On a full disk the end of a submission cannot be written down; its process may go on to other work.
_HELD_HERE: set[Path] = set()


def _beats(path: Path) -> bool:
    """Return whether a submission's heartbeat goes on.

    The time of a beat is the file server's, and the clock here may be another. So one that seems to have
    stopped is watched for some beats; what was found is remembered until there is another beat.
    """
    beat = path.stat().st_mtime_ns
    age = time.time() - beat / 1e9
    if abs(age) < _DEAD_AFTER_SECONDS:
        return True
    if age > _SILENT_FOR_GOOD_SECONDS or _SEEN_DEAD.get(path) == beat:
        return False
    end = time.monotonic() + _WATCH_SECONDS
    while time.monotonic() < end:
        time.sleep(0.5)
        if path.stat().st_mtime_ns != beat:
            return True
    _SEEN_DEAD[path] = beat
    return False


def _heartbeat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(_HEARTBEAT_SECONDS):
        # A file server that fails for a moment must not end the beating: others would take the run over.
        with suppress(OSError):
            os.utime(path)


def _directory(ledger: Ledger) -> Path:
    return ledger.run_dir / "submissions"


def _file(ledger: Ledger, number: int) -> Path:
    return _directory(ledger) / f"{number:04d}.json"
