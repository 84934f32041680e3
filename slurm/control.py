"""Cancelling and retrying, with the run directory alone."""

import os
import signal
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from carryover.slurm.errors import RequestError, RunError
from carryover.slurm.executor import (
    EXECUTORS,
    Executor,
    GraphResult,
    InlineExecutor,
    OnEvent,
    run_graph,
    withdraw,
)
from carryover.slurm.flights import Flights
from carryover.slurm.former import former_stages
from carryover.slurm.graph import Graph
from carryover.slurm.ledger import Ledger
from carryover.slurm.processes import known_to_live, lives
from carryover.slurm.status import status
from carryover.slurm.submission import Submission, holder, submission, submissions

_STOP_SECONDS = 120.0
_POLL_SECONDS = 0.5


def retry(
    run_dir: Path,
    *,
    failed_only: bool = False,
    executor: Executor | None = None,
    on_event: OnEvent = lambda event: None,
    origin: dict[str, Any] | None = None,
) -> GraphResult:
    """Run or submit again what has not finished and is not on its way, as it was run or submitted last.

    With `failed_only`, only stages that failed or were killed, and those that they blocked.

    Raises
    ------
    RequestError
        `run_dir` is not a run directory, or names a call that this program does not know: what a file names
        is not imported.
    """
    ledger = Ledger.open(run_dir)
    graph = ledger.read_pipeline()
    _require_registered(graph)
    past = [s for s in submissions(ledger, of_original=True) if s.executor != "cancel"]
    if executor is None:
        last = past[-1] if past else None
        executor = EXECUTORS.get(last.executor).of(last.settings) if last else InlineExecutor()
    only = None
    if failed_only:
        ended_badly = ("failed", "blocked", "damaged")
        only = {s.name for s in status(run_dir).stages if s.state in ended_badly or s.lost}
    return run_graph(graph, executor, run_dir, on_event=on_event, only=only, origin=origin)


def _require_registered(graph: Graph) -> None:
    for stage in graph:
        if not stage.calls.registered:
            raise RequestError(
                f"stage {stage.name} calls {stage.calls.name!r}, which this program does not know; run it"
                " again from the program that defined it (slurm.register tells this one)"
            )


def cancel(run_dir: Path, stages: Collection[str] | None = None) -> list[str]:
    """Stop a run's jobs and processes, or those of some stages; return the names of the stages stopped.

    Jobs of stages that the pipeline no longer names are the run's as well.

    A running stage is given the time to save its state, and resumes when it is run again. Nothing is
    cancelled but jobs of this cluster that have an id that was given to the run, and its token.

    Raises
    ------
    RequestError
        `run_dir` is not a run directory, or has no such stage.
    RunError
        The run belongs to a process on another machine or its jobs to another cluster, SLURM does not answer,
        or something does not end within two minutes.
    """
    ledger = Ledger.open(run_dir)
    graph = ledger.read_pipeline()
    former = former_stages(ledger, graph.names)
    for name in stages or ():
        if name not in graph and name not in former:
            raise RequestError(
                f"{ledger.run_dir.name} has no stage {name!r}; it has: {', '.join(graph.names)}"
            )
    _require_an_answer(ledger, graph)
    before = {s.name for s in status(run_dir).stages if s.state == "running"}
    held = holder(ledger)
    if held is not None:
        _stop_holder(ledger, held, stages)
    with submission(ledger, "cancel"):
        stopped = _cancel_jobs(ledger, graph, stages or (*graph.names, *former), not stages)
    ended = {s.name for s in status(run_dir).stages if s.state == "interrupted"} & before
    return [name for name in (*graph.names, *former) if name in stopped or name in ended]


def _require_an_answer(ledger: Ledger, graph: Graph) -> None:
    """Raise RunError unless it can be told which jobs are the run's own, where it has not finished."""
    flights = Flights(ledger)
    found = (ledger.readable(name)[0] for name in graph.names)
    if any(record is None or record.state != "finished" for record in found):
        flights.require_own_cluster()


def _stop_holder(ledger: Ledger, held: Submission, stages: Collection[str] | None) -> None:
    if known_to_live(held.host, held.space, held.pid, held.process_start) is None:
        raise RunError(
            f"the run belongs to process {held.pid} on {held.host}, which cannot be seen from here (another"
            " machine, or a container of its own); cancel it there"
        )
    if stages and held.executor != "slurm":
        raise RunError(
            f"process {held.pid} runs the stages of {ledger.run_dir.name} itself: "
            "it can be stopped only as a whole"
        )
    os.kill(held.pid, signal.SIGTERM)
    _wait(lambda: not lives(held.pid, held.process_start), f"process {held.pid}")


def _cancel_jobs(ledger: Ledger, graph: Graph, stages: Collection[str], orphans: bool) -> set[str]:
    """Cancel the jobs of some stages, with `orphans` those too that no submission noted down."""
    flights = Flights(ledger)
    assert flights.queue is not None
    jobs: dict[str, list[str]] = {}
    for name in stages:
        record, _ = ledger.readable(name)
        live = flights.live(record) if record is not None else ()
        if live:
            jobs[name] = [job.job_id for job in live]
    wanted = {job for ids in jobs.values() for job in ids}
    if orphans:
        wanted.update(flights.orphans(graph))
    withdraw(ledger, wanted)
    for name in jobs:
        record = ledger.read(name)
        assert record is not None
        if record.state in ("waiting", "running", "interrupted"):
            attempts = ledger.closed(record, running=False)
            ledger.write(record.changed("cancelled", "by its user", attempts=attempts))
    return set(jobs)


def _wait(gone: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + _STOP_SECONDS
    while not gone():
        if time.monotonic() > end:
            raise RunError(f"{what} did not end within {_STOP_SECONDS:.0f} s")
        time.sleep(_POLL_SECONDS)
