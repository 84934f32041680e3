"""What is to be done with each stage of a graph, given what the ledger already holds, and why."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from slurm.errors import RequestError
from slurm.graph import Graph
from slurm.ledger import Ledger, StageRecord
from slurm.stage import Stage, check_call


class Action(Enum):
    """What a plan does with one stage."""

    SKIP = "skip"
    IN_FLIGHT = "in flight"
    RUN = "run"
    RESUME = "resume"
    REPLACE = "replace"
    RESTORE = "restore"
    LEAVE = "leave"

    @property
    def works(self) -> bool:
        """Whether the stage's callable is going to be called."""
        return self in (Action.RUN, Action.RESUME, Action.REPLACE)


@dataclass(frozen=True)
class Decision:
    """One stage's part of a plan. `kept` is the suffix under which RESTORE finds the finished output."""

    stage: Stage
    hash: str
    action: Action
    reason: str
    kept: str = ""


class MissingPathsError(RequestError):
    """What stages require and what does not exist: `paths` holds each path with those stages' names."""

    def __init__(self, paths: dict[Path, list[str]]) -> None:
        self.paths = paths
        lines = []
        for path, names in paths.items():
            others = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            lines.append(f"stage {names[0]} needs {path}, which does not exist{others}")
        super().__init__("\n".join(lines))


InFlight = Callable[[StageRecord], str]
"""Says where a stage is being worked on ("job 123 is pending"), or "" when nobody works on it."""


def make_plan(
    graph: Graph, ledger: Ledger, in_flight: InFlight, only: Collection[str] | None = None
) -> list[Decision]:
    """Decide on every stage, in order; `missing` tells what those that will run would lack.

    With `only`, stages that are neither named nor needed by one that is are left as they are.

    Raises
    ------
    RequestError
        An input is missing, or a callable's module does not exist.
    """
    hashes = graph.hashes()
    plan = [_decide(stage, hashes[stage.name], ledger, in_flight) for stage in graph]
    if only is not None:
        wanted = graph.with_upstream(only)
        plan = [d if d.stage.name in wanted or not d.action.works else _left(d) for d in plan]
    at_work = {d.stage.name for d in plan if d.action.works or d.action is Action.IN_FLIGHT}
    plan = [_again_if_missing(d, ledger, at_work) for d in plan]
    for decision in working(plan):
        check_call(decision.stage)
    return plan


def missing(plan: list[Decision]) -> dict[Path, list[str]]:
    """Return the required paths that are not there, each with the names of the stages that will need it."""
    wanted: dict[Path, list[str]] = {}
    for decision in working(plan):
        for path in decision.stage.requires:
            wanted.setdefault(path, []).append(decision.stage.name)
    return {path: names for path, names in wanted.items() if not path.exists()}


def refuse_missing(plan: list[Decision]) -> None:
    """Raise MissingPathsError if a stage that will run needs a path that does not exist."""
    lacking = missing(plan)
    if lacking:
        raise MissingPathsError(lacking)


def carry_out(decision: Decision, ledger: Ledger) -> StageRecord:
    """Make the stage's directory fit the decision; return its record, ready to be run or already finished."""
    record = ledger.read(decision.stage.name)
    if decision.action is Action.LEAVE:
        return record or StageRecord(name=decision.stage.name, hash=decision.hash, state="waiting")
    if decision.action is Action.RESTORE:
        if record is not None:
            ledger.set_aside(record)
        return ledger.bring_back(decision.stage.name, decision.kept)
    if decision.action in (Action.SKIP, Action.IN_FLIGHT):
        assert record is not None
        return record
    if decision.action is Action.REPLACE:
        assert record is not None
        ledger.set_aside(record)
        record = None
    fresh = record or StageRecord(name=decision.stage.name, hash=decision.hash, state="waiting")
    record = fresh.changed("waiting", decision.reason, missing=())
    ledger.write(record)
    return record


def _decide(stage: Stage, content_hash: str, ledger: Ledger, in_flight: InFlight) -> Decision:
    record = ledger.read(stage.name)
    short = content_hash[:8]
    if record is None:
        return Decision(stage, content_hash, Action.RUN, "not run before")
    # A finished stage's job may still be in the queue for a while (completing, or links of a chain to come).
    where = "" if record.state == "finished" else in_flight(record)
    if where and record.hash == content_hash:
        return Decision(stage, content_hash, Action.IN_FLIGHT, where)
    if where:
        raise RequestError(
            f"stage {stage.name}: its parameters or inputs changed (hash {record.hash[:8]} -> {short}), but "
            f"the former ones are still being worked on: {where}; cancel it first"
        )
    if record.hash != content_hash:
        return _decide_changed(stage, content_hash, record, ledger)
    if record.state == "finished" and ledger.out(stage.name).is_dir():
        reason = f"finished {record.finished_at}, hash {short}"
        return Decision(stage, content_hash, Action.SKIP, f"{reason}, skipped")
    if record.state == "finished":
        return Decision(stage, content_hash, Action.RUN, "its output directory was deleted")
    if ledger.out(stage.name).is_dir():
        return Decision(stage, content_hash, Action.RESUME, f"resumes: {_why_unfinished(record)}")
    return Decision(stage, content_hash, Action.RUN, _why_unfinished(record))


def _decide_changed(stage: Stage, content_hash: str, record: StageRecord, ledger: Ledger) -> Decision:
    short = content_hash[:8]
    for suffix, kept in ledger.kept(stage.name):
        finished = kept.hash == content_hash and kept.state == "finished"
        if finished and (ledger.directory(stage.name) / f"out.{suffix}").is_dir():
            reason = f"finished {kept.finished_at}, hash {short}, kept in out.{suffix}: brought back, skipped"
            return Decision(stage, content_hash, Action.RESTORE, reason, suffix)
    if not ledger.out(stage.name).exists():
        return Decision(stage, content_hash, Action.REPLACE, _why_unfinished(record))
    reason = f"changed (hash {record.hash[:8]} -> {short}); the old output is kept in out.{record.hash[:8]}"
    return Decision(stage, content_hash, Action.REPLACE, reason)


def _why_unfinished(record: StageRecord) -> str:
    if record.state == "running":
        return "its process was killed"
    if record.state == "waiting":
        return "not started yet"
    return record.state + (f" ({record.reason})" if record.reason else "")


def _left(decision: Decision) -> Decision:
    return Decision(decision.stage, decision.hash, Action.LEAVE, "not asked for")


def _again_if_missing(decision: Decision, ledger: Ledger, working: set[str]) -> Decision:
    """A finished stage that had to do without some of those it follows runs again when they are there."""
    if decision.action is not Action.SKIP:
        return decision
    record = ledger.read(decision.stage.name)
    assert record is not None
    still = set(ledger.missing_after(decision.stage)) - working
    come = [name for name in record.missing if name not in still]
    if not come:
        return decision
    reason = f"runs again: {_some(come)} had not finished when it ran"
    return Decision(decision.stage, decision.hash, Action.RESUME, reason)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def working(plan: list[Decision]) -> Iterator[Decision]:
    """Yield the decisions whose stages' callables are going to be called."""
    return (d for d in plan if d.action.works)
