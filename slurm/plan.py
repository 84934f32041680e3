"""Plan of a graph: the action for each stage given the ledger, and its reason."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from carryover.configs.errors import DamagedFileError
from carryover.configs.identity import Difference
from carryover.configs.leftovers import remove_abandoned
from carryover.slurm.errors import RequestError
from carryover.slurm.graph import Graph
from carryover.slurm.ledger import GONE, Ledger, StageRecord
from carryover.slurm.outputs import unfit_outputs
from carryover.slurm.stage import InputDigests, Stage, Statement, hash_of_v1


class Action(Enum):
    """Action of a plan for one stage."""

    SKIP = "skip"
    IN_FLIGHT = "in flight"
    RUN = "run"
    RESUME = "resume"
    REPLACE = "replace"
    RESTORE = "restore"
    LEAVE = "leave"

    @property
    def works(self) -> bool:
        """Return whether the stage's callable is going to be called."""
        return self in (Action.RUN, Action.RESUME, Action.REPLACE)


@dataclass(frozen=True)
class Decision:
    """One stage's part of a plan.

    Attributes
    ----------
    hash, stated
        The work's content hash, and what it is (`slurm.stage`).
    kept
        The suffix under which RESTORE finds the finished output.
    differences
        For REPLACE: what changed, key by key.
    damaged
        The stage's record cannot be read, and is set aside with what it was about.
    unfit
        Outputs that have changed since, and are made again.
    supersedes
        Jobs that are to be cancelled first: they do not wait for all that the stage now has to wait for.
    """

    stage: Stage
    hash: str
    action: Action
    reason: str
    kept: str = ""
    stated: Mapping[str, Any] | None = None
    differences: tuple[Difference, ...] = ()
    damaged: bool = False
    unfit: tuple[str, ...] = ()
    supersedes: tuple[str, ...] = ()


class MissingPathsError(RequestError):
    """Missing requirements of stages: `paths` maps each path to the names of the stages."""

    def __init__(self, paths: dict[Path, list[str]]) -> None:
        self.paths = paths
        lines = []
        for path, names in paths.items():
            others = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            lines.append(f"stage {names[0]} needs {path}, which does not exist{others}")
        super().__init__("\n".join(lines))


InFlight = Callable[[StageRecord], str]
"""Returns where a stage is running ("job 123 is pending"), or "" if it is not."""


Withdrawable = Callable[[StageRecord, bool], tuple[str, ...]]
"""Returns the jobs of a stage that can be cancelled and submitted again; running ones only if requested."""


def make_plan(
    graph: Graph,
    ledger: Ledger,
    in_flight: InFlight,
    only: Collection[str] | None = None,
    withdrawable: Withdrawable = lambda record, running: (),
) -> list[Decision]:
    """Decide on every stage, in order; `missing` tells what those that will run would lack.

    With `only`, stages that are neither named nor needed by one that is are left as they are. A stage in
    flight whose job does not wait for one that is now going to run is submitted again, if `withdrawable`.

    Raises
    ------
    RequestError
        An input is missing, or a callable's module does not exist.
    """
    planner = _Planner(graph, ledger, in_flight)
    plan = [planner.decide(stage) for stage in graph]
    if only is not None:
        wanted = graph.with_upstream(only)
        plan = [d if d.stage.name in wanted or not d.action.works else _left(d) for d in plan]
    at_work = {d.stage.name for d in plan if d.action.works or d.action is Action.IN_FLIGHT}
    plan = [_again_if_missing(d, ledger, at_work) for d in plan]
    plan = _waiting_for_all(plan, ledger, withdrawable)
    for decision in working(plan):
        planner.inputs.require(decision.stage)
        decision.stage.calls.require_module(decision.stage.name)
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
    name = decision.stage.name
    if decision.damaged:
        ledger.set_damaged_aside(name)
    record = ledger.read(name)
    if decision.action is Action.LEAVE:
        return record or StageRecord(name=name, hash=decision.hash, state="waiting")
    if decision.action is Action.RESTORE:
        if record is not None:
            ledger.set_aside(record)
        return ledger.bring_back(name, decision.kept)
    if decision.action in (Action.SKIP, Action.IN_FLIGHT):
        assert record is not None
        if record.stated is None and decision.action is Action.SKIP:
            # A record of version 1: from now on it says what it is.
            record = record.model_copy(update={"stated": decision.stated})
            ledger.write(record)
        return record
    if decision.action is Action.REPLACE:
        assert record is not None
        ledger.set_aside(record)
        record = None
    remove_abandoned(ledger.directory(name))
    remove_abandoned(ledger.out(name))
    ledger.set_unfit_aside(name, decision.unfit)
    fresh = record or StageRecord(name=name, hash=decision.hash, state="waiting")
    record = fresh.changed("waiting", decision.reason, missing=(), stated=decision.stated, outputs={})
    ledger.write(record)
    return record


class _Planner:
    """Decides stage by stage; a stage that is its record's work goes on under the hash of that record."""

    def __init__(self, graph: Graph, ledger: Ledger, in_flight: InFlight) -> None:
        self.inputs = InputDigests()
        self._graph = graph
        self._v1_hashes: dict[str, str] = {}
        self._ledger, self._in_flight = ledger, in_flight
        self._hashes: dict[str, str] = {}
        self._of_v1: dict[str, dict[str, Any]] | None = None

    def decide(self, stage: Stage) -> Decision:
        """Decide on a stage whose upstream has been decided on."""
        statement = Statement.of(stage, self._hashes, self.inputs)
        decision = replace(self._decide(stage, statement), stated=statement.to_json())
        self._hashes[stage.name] = decision.hash
        return decision

    def _decide(self, stage: Stage, statement: Statement) -> Decision:
        ledger = self._ledger
        try:
            record, damage = ledger.read(stage.name), ""
        except DamagedFileError as error:
            record, damage = None, str(error)
        if damage:
            reason = f"{damage}; done again, and what is there is kept aside"
            return Decision(stage, statement.hash, Action.RUN, reason, damaged=True)
        if record is None:
            return Decision(stage, statement.hash, Action.RUN, "not run before")
        # A finished stage's job may still be in the queue for a while (completing, or links of a chain).
        where = "" if record.state == "finished" else self._in_flight(record)
        changes = self._changes(record, statement)
        if where and not changes:
            return Decision(stage, record.hash, Action.IN_FLIGHT, where)
        if where:
            raise RequestError(
                f"stage {stage.name}: it changed ({_listed(changes)}), but its former self is still being"
                f" worked on: {where}; cancel it first"
            )
        if changes:
            return self._decide_changed(stage, statement, record, changes)
        return self._decide_same(stage, record)

    def _decide_same(self, stage: Stage, record: StageRecord) -> Decision:
        out, short = self._ledger.out(stage.name), record.hash[:8]
        if record.state == "finished" and out.is_dir():
            unfit = unfit_outputs(out, stage.leaves, record.outputs)
            if unfit:
                reason = "; ".join(f"{out / name} {why}" for name, why in unfit.items())
                return Decision(
                    stage, record.hash, Action.RESUME, f"done again: {reason}", unfit=tuple(unfit)
                )
            reason = f"finished {record.finished_at}, hash {short}, skipped"
            return Decision(stage, record.hash, Action.SKIP, reason)
        if record.state == "finished":
            return Decision(stage, record.hash, Action.RUN, "its output directory was deleted")
        if out.is_dir():
            return Decision(stage, record.hash, Action.RESUME, f"resumes: {_why_unfinished(record)}")
        return Decision(stage, record.hash, Action.RUN, _why_unfinished(record))

    def _decide_changed(
        self, stage: Stage, statement: Statement, record: StageRecord, changes: list[Difference]
    ) -> Decision:
        ledger, short = self._ledger, statement.hash[:8]
        # What a stage writes beside its own output (a report) is not brought back with it.
        whole = not any(".." in Path(name).parts for name in stage.leaves)
        for suffix, kept in ledger.kept(stage.name) if whole else ():
            out = ledger.directory(stage.name) / f"out.{suffix}"
            if kept.state == "finished" and out.is_dir() and self._is_work_of(stage, statement, kept, out):
                if unfit_outputs(out, stage.leaves, kept.outputs):
                    continue
                reason = (
                    f"finished {kept.finished_at}, hash {short}, kept in {out.name}: brought back, skipped"
                )
                return Decision(stage, kept.hash, Action.RESTORE, reason, suffix)
        if not ledger.out(stage.name).exists():
            return Decision(
                stage, statement.hash, Action.REPLACE, _why_unfinished(record), differences=tuple(changes)
            )
        reason = f"changed: {_listed(changes)}; the old output is kept in out.{record.hash[:8]}"
        return Decision(stage, statement.hash, Action.REPLACE, reason, differences=tuple(changes))

    def _is_work_of(self, stage: Stage, statement: Statement, kept: StageRecord, out: Path) -> bool:
        if kept.hash == statement.hash:
            return True
        if kept.stated is not None:
            return not statement.changed_from(kept.stated)
        if kept.hash != self._hash_of_v1(stage):
            return False
        stated = statement.to_json()
        return not statement.changed_from(stated | stage.calls.stated_by_v1(stage.params, out))

    def _hash_of_v1(self, stage: Stage) -> str:
        """Return the hash that version 1 would give a stage of this graph."""
        found = self._v1_hashes
        for name in (*stage.upstream, *stage.after, stage.name):
            if name not in found:
                one = self._graph[name]
                for before in (*one.upstream, *one.after):
                    self._hash_of_v1(self._graph[before])
                known_as = {
                    "call": next(iter(one.calls.known_as[-1:]), one.calls.name),
                    "version": one.version,
                }
                found[name] = hash_of_v1(one, known_as, found, self.inputs)
        return found[stage.name]

    def _changes(self, record: StageRecord, statement: Statement) -> list[Difference]:
        """List what makes the stage other work than its record's; nothing where it is the same."""
        if record.hash == statement.hash:
            return []
        there = record.stated
        if there is None:
            if self._of_v1 is None:
                self._of_v1 = self._ledger.stated_v1()
            there = self._of_v1.get(record.name)
        if there is None:
            return [Difference("what it was done with (not in its record, of carryover 0.1)", None, "known")]
        return statement.changed_from(there)


def _listed(changes: list[Difference], most: int = 5) -> str:
    more = f" and {len(changes) - most} more" if len(changes) > most else ""
    told = dict.fromkeys(_in_words(change) for change in changes[:most])
    if len(told) > 1:
        # What is taken from the stage before says so more precisely.
        told.pop(_UPSTREAM, None)
    return ", ".join(told) + more


_UPSTREAM = "a stage that it waits for is other work"


def _in_words(change: Difference) -> str:
    """Return a change as the user knows it: a key of a recipe with its values, a stage by name, a file."""
    kind, _, name = change.key.partition(".")
    if kind == "after":
        if change.old is None or change.new is None:
            return f"it {'now follows' if change.old is None else 'no longer follows'} {name}"
        return f"{name}, which it follows, is other work"
    if kind == "needs":
        return f"{str(change.new or change.old).partition('/')[2]}, which it takes, is from other work"
    if kind == "upstream":
        return _UPSTREAM
    if kind == "inputs":
        return f"its file {name} changed" if name else "its files changed"
    return str(change)


def _why_unfinished(record: StageRecord) -> str:
    if record.state == "running":
        return GONE
    if record.state == "waiting":
        return "not started yet"
    return record.state + (f" ({record.reason})" if record.reason else "")


def _left(decision: Decision) -> Decision:
    return replace(decision, action=Action.LEAVE, reason="not asked for", damaged=False, unfit=())


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
    return replace(decision, action=Action.RESUME, reason=reason)


def _waiting_for_all(plan: list[Decision], ledger: Ledger, withdrawable: Withdrawable) -> list[Decision]:
    """Withdraw what is in flight and does not wait for a stage that is going to run; a running one, if it may
    end without having seen that stage's result."""
    to_run = {d.stage.name for d in working(plan)}
    decided = []
    for decision in plan:
        stage = decision.stage
        if decision.action is Action.IN_FLIGHT and to_run.intersection((*stage.upstream, *stage.after)):
            record = ledger.read(stage.name)
            assert record is not None
            jobs = withdrawable(record, bool(to_run.intersection(stage.after)))
            if jobs:
                late = [name for name in (*stage.upstream, *stage.after) if name in to_run]
                reason = f"submitted anew, since it has to wait for {_some(late)}: {decision.reason}"
                decision = replace(decision, action=Action.RESUME, reason=reason, supersedes=jobs)
                to_run.add(stage.name)
        decided.append(decision)
    return decided


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def working(plan: list[Decision]) -> Iterator[Decision]:
    """Yield the decisions whose stages' callables are going to be called."""
    return (d for d in plan if d.action.works)
