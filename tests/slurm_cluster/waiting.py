"""Waiting for things that a cluster does in its own time."""

import time
from collections.abc import Callable
from pathlib import Path

from carryover.slurm import Ledger, scheduler
from carryover.slurm.status import RunStatus, status
from tests.slurm_cluster.cluster import Cluster


def wait_until(true: Callable[[], bool], what: str, seconds: float = 300) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(0.25)


def wait_for_file(path: Path) -> None:
    """Wait until a stage has written `path`."""
    wait_until(path.exists, str(path))


# When a cluster's requeued job, by id and number of restarts, was first seen to wait.
_WAITING_SINCE: dict[tuple[Path, str, int], float] = {}


def hurry(cluster: Cluster) -> None:
    """Let requeued jobs start soon: SLURM itself holds them back for two minutes.

    Not at once: a node counts in whole seconds, and refuses a job whose last start it revoked in the same.
    """
    for job in scheduler.queue().values():
        if job.state == "PENDING" and job.reason == "BeginTime":
            since = _WAITING_SINCE.setdefault((cluster.conf, job.job_id, job.restarts), time.monotonic())
            if time.monotonic() - since < 2:
                continue
            cluster.command("scontrol", "update", f"JobId={job.job_id}", "StartTime=now")


def at_rest(cluster: Cluster, run_dir: Path, seconds: float = 600) -> RunStatus:
    """Wait until nothing of a run is on its way any more; requeued jobs are hurried along."""
    end = time.monotonic() + seconds
    while (now := status(run_dir)).in_flight:
        assert time.monotonic() < end, f"still on its way: {[s for s in now.stages if s.state != 'finished']}"
        hurry(cluster)
        time.sleep(0.5)
    return now


def states(now: RunStatus) -> dict[str, str]:
    """Return every stage's state."""
    return {s.name: s.state for s in now.stages}


def causes(run_dir: Path, stage: str) -> list[str]:
    """Return what cut each of a stage's attempts short; "" for one that ended by itself."""
    record = Ledger(run_dir).read(stage)
    assert record is not None
    return [attempt.cause for attempt in record.attempts]


def unfinished(now: RunStatus) -> str:
    """Return what became of every stage that has not finished, for an assertion's message."""
    return "; ".join(
        f"{s.name} {s.state} after {s.attempts} attempts: {s.reason} [{s.last_line}]"
        for s in now.stages
        if s.state != "finished"
    )
