"""Carrying a plan out: what executors are given, the one of this process, and all of them by name."""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, Self

from carryover.configs.leftovers import remove_abandoned, taken_back
from carryover.configs.registry import Registry
from carryover.slurm import scheduler
from carryover.slurm.errors import RunError
from carryover.slurm.flights import Flights
from carryover.slurm.graph import Graph
from carryover.slurm.ledger import Ledger, StageRecord, State, now
from carryover.slurm.plan import Action, Decision, carry_out, make_plan, refuse_missing, working
from carryover.slurm.runner import run_stage
from carryover.slurm.submission import OpenSubmission, submission

log = logging.getLogger(__name__)

_WRITERS = 16
_LEAVE_SECONDS = 120.0
_LOOK_SECONDS = 1.0
_ENDED_BADLY = ("failed", "blocked", "cancelled", "interrupted")
_NOT_ENDED = ("waiting", "submitted", "running")


@dataclass(frozen=True)
class Event:
    """Something that happened to a stage.

    `state` is one of the ledger's states, or "skipped". `position` counts from 1 to `total` stages.
    """

    stage: str
    state: State | str
    reason: str
    position: int
    total: int
    seconds: float = 0.0
    at: datetime = field(default_factory=now)


@dataclass(frozen=True)
class Outcome:
    """State of a stage when `run_graph` returns."""

    state: State | str
    reason: str
    hash: str
    out: Path
    seconds: float = 0.0


@dataclass(frozen=True)
class GraphResult:
    """Outcome of every stage, in the graph's order.

    `signum` is the signal that stopped the run half-way, or 0.
    """

    run_dir: Path
    stages: dict[str, Outcome]
    signum: int = 0

    @property
    def succeeded(self) -> bool:
        """Every stage is finished, or (on a cluster) on its way."""
        return self.signum == 0 and not self.unsuccessful

    @property
    def unsuccessful(self) -> dict[str, Outcome]:
        """The stages that failed, were blocked by one that did, were interrupted or never started."""
        good = ("finished", "skipped", "submitted", "running")
        return {name: o for name, o in self.stages.items() if o.state not in good}


OnEvent = Callable[[Event], None]


class Executor(Protocol):
    """Does the work of a plan. `name` is recorded with every attempt."""

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> dict[str, Any]: ...

    def execute(self, run: "Run") -> int:
        """Work on `run.plan`, telling every change; return the number of the signal that stopped it, or 0."""
        ...


class Run:
    """A plan being carried out: what executors read, and where they tell what happens."""

    def __init__(
        self,
        graph: Graph,
        plan: list[Decision],
        ledger: Ledger,
        flights: Flights,
        held: OpenSubmission,
        on_event: OnEvent,
    ) -> None:
        self.graph, self.plan, self.ledger, self.flights = graph, plan, ledger, flights
        self.submission = held
        self.outcomes: dict[str, Outcome] = {}
        self._on_event = on_event
        self.decisions = {d.stage.name: d for d in plan}
        self._position = {d.stage.name: i for i, d in enumerate(plan, 1)}

    def tell(self, decision: Decision, state: State | str, reason: str, seconds: float = 0.0) -> None:
        """Note where a stage stands, and tell the caller."""
        name = decision.stage.name
        self.outcomes[name] = Outcome(state, reason, decision.hash, self.ledger.out(name), seconds)
        self._on_event(Event(name, state, reason, self._position[name], len(self.plan), seconds))

    def record(self, decision: Decision) -> StageRecord:
        """Return a stage's record as it is now on disk."""
        record = self.ledger.read(decision.stage.name)
        assert record is not None
        return record

    def blocked_by(self, decision: Decision) -> str:
        """Return which stage keeps this one from ever starting, or "" when none does."""
        bad = next((n for n in decision.stage.upstream if self.outcomes[n].state in _ENDED_BADLY), "")
        return f"{bad} {self.outcomes[bad].state}" if bad else ""

    def waits_for(self, decision: Decision) -> str:
        """Return which stage, at work elsewhere, this one has to wait for, or "" when there is none."""
        names = (*decision.stage.upstream, *decision.stage.after)
        return next((n for n in names if self.outcomes[n].state in _NOT_ENDED), "")

    def block(self, decision: Decision, reason: str) -> None:
        """Record that a stage cannot start because of another."""
        self.ledger.write(self.record(decision).changed("blocked", reason))
        self.tell(decision, "blocked", reason)


def run_graph(
    graph: Graph,
    executor: Executor,
    run_dir: Path,
    *,
    on_event: OnEvent = lambda event: None,
    origin: dict[str, Any] | None = None,
    only: Collection[str] | None = None,
) -> GraphResult:
    """Bring every stage of `graph` to its end in `run_dir`, doing only what is not done already.

    A finished stage of the same content hash is skipped; a half-finished one is called again with the same
    output directory; one whose hash changed is run again, with its old output kept aside. A stage that
    fails blocks those that need it; the others go on. With `only`, other stages are left as they are.
    `origin` is recorded with the submission: see `slurm.sbatch.describe`.

    Raises
    ------
    RequestError
        A missing input, an unwritable run directory: before anything runs.
    RunError
        Another living process is at work on this run.
    """
    # Of a run that cannot begin nothing is left, but of one that has begun.
    begun = Ledger(run_dir).pipeline_file.exists()
    with nullcontext() if begun else taken_back(run_dir, ("submissions/*.json",)):
        return _run_graph(graph, executor, Ledger.create(run_dir), on_event, origin or {}, only)


def _run_graph(
    graph: Graph,
    executor: Executor,
    ledger: Ledger,
    on_event: OnEvent,
    origin: dict[str, Any],
    only: Collection[str] | None,
) -> GraphResult:
    with submission(ledger, executor.name) as held:
        for place in (ledger.run_dir, *(ledger.run_dir / name for name in ("submissions", "code"))):
            remove_abandoned(place)
        flights = Flights(ledger)
        orphans = flights.orphans(graph)
        if orphans:
            log.warning("cancelling %d jobs of a submitter that was killed: %s", len(orphans), orphans[0])
            withdraw(ledger, orphans)
        flights.look_at(r for name in graph.names if (r := ledger.readable(name)[0]) is not None)
        plan = make_plan(graph, ledger, flights, only, flights.withdrawable)
        refuse_missing(plan)
        withdraw(ledger, [job for decision in plan for job in decision.supersedes])
        ledger.write_pipeline(graph, {d.stage.name: d.hash for d in plan})
        held.update(origin=origin, settings=executor.settings)
        run = Run(graph, plan, ledger, flights, held, on_event)
        # Two thousand small files over NFS: the waiting is for the server, and can be done side by side.
        with ThreadPoolExecutor(_WRITERS) as pool:
            records = list(pool.map(lambda decision: carry_out(decision, ledger), plan))
        for decision, record in zip(plan, records, strict=True):
            if decision.action in (Action.SKIP, Action.RESTORE):
                run.tell(decision, "skipped", decision.reason)
            elif decision.action is Action.IN_FLIGHT:
                state = "running" if record.state == "running" else "submitted"
                run.tell(decision, state, decision.reason)
            else:
                run.outcomes[decision.stage.name] = _outcome(decision, record, ledger)
        signum = executor.execute(run)
    return GraphResult(ledger.run_dir, {name: run.outcomes[name] for name in graph.names}, signum)


def withdraw(ledger: Ledger, jobs: Collection[str]) -> None:
    """Cancel jobs of a run, and wait until they have left the queue; raises RunError if they do not."""
    if not jobs:
        return
    scheduler.cancel(jobs)
    end = time.monotonic() + _LEAVE_SECONDS
    while any(job in jobs and row.end is None for job, row in Flights(ledger).queue.items()):
        if time.monotonic() > end:
            raise RunError(f"{len(jobs)} cancelled jobs did not end within {_LEAVE_SECONDS:.0f} s")
        time.sleep(_LOOK_SECONDS)


def _outcome(decision: Decision, record: StageRecord, ledger: Ledger) -> Outcome:
    return Outcome(record.state, record.reason, decision.hash, ledger.out(record.name))


class InlineExecutor:
    """Runs each stage here. A stage that fails does not stop those that do not need it."""

    name = "inline"

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "InlineExecutor":
        """Make one; nothing is to be set."""
        return cls()

    @property
    def settings(self) -> dict[str, Any]:
        """Nothing is to be set."""
        return {}

    def execute(self, run: Run) -> int:
        """Run the plan's stages in order; a signal ends the run after the stage has saved its state."""
        for decision in working(run.plan):
            reason = run.blocked_by(decision)
            if reason:
                run.block(decision, reason)
                continue
            elsewhere = run.waits_for(decision)
            if elsewhere:
                run.tell(decision, "waiting", f"for {elsewhere}: {run.outcomes[elsewhere].reason}")
                continue
            run.tell(decision, "running", decision.reason)
            ending = run_stage(decision.stage, run.ledger, self.name)
            run.tell(decision, ending.state, ending.reason, run.record(decision).attempts[-1].seconds)
            if ending.signum:
                return ending.signum
        return 0


class Kind(Executor, Protocol):
    """An executor's class."""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Make one from plain data: its own `settings`, or what the command line knows.

        The latter is "cluster" (`Cluster.to_json`), "packages" (import names of the code that jobs run) and
        "at_once" (how many stages may run side by side on this machine); what is not needed is passed over.
        """
        ...


EXECUTORS: Registry[type[Kind]] = Registry("executor", "carryover.executors")
"""A user's package adds one by an entry point of the group."""

EXECUTORS.register("inline", "carryover.slurm.executor:InlineExecutor")
EXECUTORS.register("local", "carryover.slurm.local:LocalExecutor")
EXECUTORS.register("slurm", "carryover.slurm.cluster_executor:SlurmExecutor")
