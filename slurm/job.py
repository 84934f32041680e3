"""Work of a job: connect its ranks, run the stage, requeue where due."""

import logging
import os
import re
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import submitit
from submitit.helpers import DelayedSubmission

from carryover.configs.formats import Format
from carryover.slurm import scheduler
from carryover.slurm.errors import RunError
from carryover.slurm.ledger import Ledger, StageRecord
from carryover.slurm.processes import STOPPING, deaf, noting, process_start
from carryover.slurm.resources import Resources
from carryover.slurm.runner import Ending, call_stage, restarts, run_stage
from carryover.slurm.stage import Stage

FORMAT = Format("rendezvous", 2)
_WAIT_SECONDS = 300.0
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Place:
    """Position of this process in a job: rank, number of ranks, rank on its machine."""

    rank: int
    world_size: int
    local_rank: int


def join(path: Path, place: Place, hosts: Sequence[str], work: bool) -> bool:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; return whether there is work to do.

    Rank 0 decides about the work, takes a port that is free at this moment, and writes both into `path`,
    which is new for every attempt; the others read them there. A port fixed in advance would meet the last
    attempt's socket, or another job's.

    Raises
    ------
    RunError
        Rank 0 has written nothing within five minutes.
    """
    if place.rank == 0:
        address = "127.0.0.1" if len(hosts) == 1 else _resolvable(hosts[0])
        said: dict[str, Any] = {"work": work, "address": address, "port": _free_port()}
        FORMAT.write(path, said)
    else:
        said = _wait_for(path)
    os.environ.update(
        RANK=str(place.rank),
        WORLD_SIZE=str(place.world_size),
        LOCAL_RANK=str(place.local_rank),
        MASTER_ADDR=said["address"],
        MASTER_PORT=str(said["port"]),
    )
    return bool(said["work"])


def _resolvable(node: str) -> str:
    """Return a node's name, or this machine's where SLURM's name for it is none that a network knows."""
    try:
        socket.getaddrinfo(node, None)
    except OSError:
        return socket.gethostname()
    return node


def _wait_for(path: Path) -> dict[str, Any]:
    end = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < end:
        found = FORMAT.read(path)
        if found is not None:
            return found
        time.sleep(_POLL_SECONDS)
    raise RunError(f"rank 0 wrote nothing into {path} within {_WAIT_SECONDS:.0f} s")


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("", 0))
        port: int = held.getsockname()[1]
        return port


log = logging.getLogger(__name__)

# SLURM may send the warning signal up to a minute early (sbatch(1), --signal).
_SIGNAL_EARLY = timedelta(seconds=75)
# A record written on another machine may take some seconds to be seen over NFS.
_UPSTREAM_TRIES, _UPSTREAM_SECONDS = 10, 3.0
# Not simply "other than RUNNING": a job that has just been signalled may be called SIGNALING.
_ENDING = ("COMPLETING", "CANCELLED", "FAILED", "TIMEOUT", "COMPLETED")
_REQUEUED = ("timeout", "preemption", "signal")
_REQUEUE_SECONDS, _REQUEUE_PAUSE = 300.0, 2.0
_NEVER = re.compile(r"disabled|[Ii]nvalid|denied|not found|already finished")
_LEADER_SECONDS = 20.0


@dataclass(frozen=True)
class StageJob:
    """Runs a stage inside a submitit job; every process of the job calls it.

    Process 0 keeps the stage's record. Interrupted, it finds out why: a job that is preempted, at its time
    limit or signalled by hand goes back into the queue, with timeouts counted and the others not; one that
    was cancelled ends. The other processes leave with status 0, so that the job's end is process 0's.

    `link` is the job's place in a chain of `Resources.chain` jobs; `earlier` is how many attempts the stage
    had had when it was submitted, which are not this job's to count.
    """

    run_dir: Path
    stage: Stage
    hash: str
    executor: str
    link: int = 1
    earlier: int = 0

    def __call__(self) -> None:
        """Run the stage; leaves with a non-zero exit status unless the stage is finished."""
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        environment = submitit.JobEnvironment()
        ledger = Ledger(self.run_dir)
        directory = ledger.directory(self.stage.name) / "rendezvous"
        if environment.global_rank == 0:
            with noting(STOPPING) as signals:
                _say("begun")
                refusal = self._why_not(ledger)
                _join(directory, environment, refusal == "")
                if refusal and not self._done(ledger):
                    raise RunError(f"{self.stage.name} is not run: {refusal}")
                if not refusal:
                    self._lead(ledger, environment, signals)
        else:
            with deaf():
                if _join(directory, environment, True):
                    self._follow(ledger, environment)

    def checkpoint(self) -> DelayedSubmission:
        """Return the call that submitit queues again when its own handler caught the signal."""
        return DelayedSubmission(self)

    def _lead(self, ledger: Ledger, environment: submitit.JobEnvironment, signals: list[int]) -> None:
        job_id = environment.job_id
        judge = self._judge_slurm if self.executor == "slurm" else _judge_local
        asked = partial(next, iter(signals), 0)
        ending = run_stage(self.stage, ledger, self.executor, job_id, judge, asked)
        _say("ended")
        if ending.state == "finished":
            return
        log.error("%s: %s%s", self.stage.name, ending.state, f" ({ending.reason})" if ending.reason else "")
        if self.executor == "slurm" and ending.state == "interrupted" and not self._link_follows(ending):
            self._requeue(ledger, job_id, ending)
        sys.exit(128 + ending.signum if ending.signum else 1)

    def _why_not(self, ledger: Ledger) -> str:
        """Return why the stage must not run now, or "" if it must: the ledger decides, not the queue.

        SLURM takes a dependency on a job that it has forgotten as satisfied.
        """
        record = ledger.read(self.stage.name)
        if record is None or record.hash != self.hash:
            return "it was changed in the ledger after this job was submitted"
        if record.state == "finished" and not self._come_since(ledger, record):
            return "it is finished already"
        if self.link > 1 and record.state in ("failed", "cancelled"):
            return f"it {record.state} in an earlier job of its chain ({record.reason})"
        missing = list(self.stage.upstream)
        for _ in range(_UPSTREAM_TRIES):
            missing = [name for name in missing if not _finished(ledger, name)]
            if not missing:
                return ""
            time.sleep(_UPSTREAM_SECONDS)
        ledger.write(record.changed("blocked", f"{missing[0]} is not finished"))
        return f"{missing[0]} is not finished"

    def _done(self, ledger: Ledger) -> bool:
        return _finished(ledger, self.stage.name)

    def _come_since(self, ledger: Ledger, record: StageRecord) -> bool:
        """Return whether a stage that it had to do without has finished since it ran."""
        return any(_finished(ledger, name) for name in record.missing)

    def _follow(self, ledger: Ledger, environment: submitit.JobEnvironment) -> None:
        """Run the stage as one of the other processes, which heeds signals only where all of them agree."""
        ending = call_stage(self.stage, ledger, sys.stderr, heeds_signals=False)
        if ending.state == "failed" and not _leader_left(ledger, self.stage.name, environment.job_id):
            log.error("%s: %s", self.stage.name, ending.reason)
            sys.exit(1)

    def _judge_slurm(self, ending: Ending, record: StageRecord) -> Ending:
        cause = _why_signalled(record, self.stage.resources)
        if cause == "cancel":
            return Ending("cancelled", "cancelled in SLURM", ending.signum, cause)
        own = record.attempts[self.earlier :]
        timeouts = sum(a.cause == "timeout" for a in own) + (cause == "timeout")
        allowed = self.stage.resources.timeouts_allowed
        judged = Ending("interrupted", f"{ending.reason} ({cause})", ending.signum, cause)
        if cause == "timeout" and timeouts > allowed and not self._link_follows(judged):
            reason = f"ran into its time limit {timeouts} times (max_timeouts is {allowed})"
            return Ending("failed", reason, ending.signum, cause)
        return judged

    def _link_follows(self, ending: Ending) -> bool:
        return ending.cause == "timeout" and self.link < self.stage.resources.chain

    def _requeue(self, ledger: Ledger, job_id: str, ending: Ending) -> None:
        if ending.cause not in _REQUEUED:
            return
        end = time.monotonic() + _REQUEUE_SECONDS
        while problem := _not_requeued(job_id):
            log.warning("%s", problem)
            if time.monotonic() > end or _NEVER.search(problem):
                record = ledger.read(self.stage.name)
                assert record is not None
                ledger.write(record.changed("interrupted", f"{ending.reason}; not queued again: {problem}"))
                return
            time.sleep(_REQUEUE_PAUSE)


def _not_requeued(job_id: str) -> str:
    """Requeue a job; return "" if the controller then says that it goes back into the queue, else why not."""
    problem = "scontrol requeue had no effect: the job is still running"
    try:
        scheduler.requeue(job_id)
    except RunError as error:
        problem = str(error)
    try:
        return "" if _goes_back(job_id) else problem
    except RunError:
        return problem


def _goes_back(job_id: str) -> bool:
    """Return whether the controller has requeued a job; raise RunError if it does not answer."""
    job = scheduler.own_job(job_id)
    return job.restarts > restarts() or job.state not in ("RUNNING", "SIGNALING")


def _say(word: str) -> None:
    """Notify the batch script that signals are handled from now on, or that the stage has ended."""
    path = os.environ.get("CARRYOVER_BEGUN")
    if path:
        with suppress(OSError), Path(path).open("a") as file:
            file.write(f"{word}\n")


def _judge_local(ending: Ending, record: StageRecord) -> Ending:
    return ending


def _finished(ledger: Ledger, stage: str) -> bool:
    record, _ = ledger.readable(stage)
    return record is not None and record.state == "finished"


def _leader_left(ledger: Ledger, stage: str, job_id: str) -> bool:
    """Return whether process 0 was stopped: where it leaves, what the others do together with it fails.

    To be waited for: the exit of another process would end it while it still writes.
    """
    end = time.monotonic() + _LEADER_SECONDS
    while time.monotonic() < end:
        record, _ = ledger.readable(stage)
        last = record.attempts[-1] if record is not None and record.attempts else None
        if last is not None and last.job_id == job_id and last.ended is not None:
            return last.state != "failed"
        time.sleep(_POLL_SECONDS)
    return False


def _join(directory: Path, environment: submitit.JobEnvironment, work: bool) -> bool:
    if environment.num_tasks == 1:
        return work
    restart = os.environ.get("SLURM_RESTART_COUNT", "0")
    launcher = process_start(os.getppid()) if environment.name() == "local" else 0
    return join(
        directory / f"{environment.job_id}-{restart}-{launcher}.json",
        Place(environment.global_rank, environment.num_tasks, environment.local_rank),
        tuple(environment.hostnames),
        work,
    )


def _why_signalled(record: StageRecord, asked: Resources) -> str:
    """Find out why a signal came: "timeout", "preemption", "requeue", "cancel", or "signal" (by hand).

    The controller knows: a preempted job has a PreemptTime, a requeued one more restarts than this process
    was started with, a cancelled one is completing. Whether the time limit is near is told by this machine's
    uptime: its clock and the controller's may differ. When the controller does not answer, the time limit
    that was asked for counts.
    """
    margin = timedelta(seconds=asked.signal_delay) + _SIGNAL_EARLY
    run_for = timedelta(seconds=_seconds_since_job_began())
    try:
        job = scheduler.own_job(os.environ["SLURM_JOB_ID"])
    except RunError as error:
        log.warning("the reason of the signal is unknown: %s", error)
        left = timedelta(minutes=asked.time_limit_min) - run_for
        return "timeout" if left <= margin else "preemption"
    log.info("the controller's state of this job, which has run for %s: %s", run_for, job)
    if job.restarts > restarts():
        return "requeue"
    if job.preempted:
        return "preemption"
    if job.state in _ENDING:
        return "timeout" if job.reason == "TimeLimit" else "cancel"
    return "timeout" if job.limit is not None and job.limit - run_for <= margin else "signal"


def _seconds_since_job_began() -> float:
    """Return how long this job has run, as its batch script noted it; at least this process's own age."""
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    began = process_start(os.getpid()) / os.sysconf("SC_CLK_TCK")
    noted = os.environ.get("CARRYOVER_JOB_UPTIME", "")
    with suppress(ValueError):
        began = min(began, float(noted))
    return max(uptime - began, 0.0)
