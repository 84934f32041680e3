"""State of a run: states, progress and logs of its stages, and following them."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from carryover.slurm.errors import RequestError
from carryover.slurm.executor import Event
from carryover.slurm.flights import Flights, Sight
from carryover.slurm.ledger import GONE, Attempt, Ledger, StageRecord, State
from carryover.slurm.outputs import unfit_outputs
from carryover.slurm.processes import known_to_live
from carryover.slurm.runner import Progress, read_progress
from carryover.slurm.scheduler import Ended
from carryover.slurm.stage import Stage
from carryover.slurm.submission import Submission, holder, is_copy, submissions

_TAIL_BYTES = 16384


def log_files(ledger: Ledger, stage: str, attempt: int | None = None) -> list[Path]:
    """Return the log files of one attempt at a stage (the last one, unless told), those that exist.

    First the stage's own: ``NNN.log`` (log records, tracebacks) and ``NNN.out`` (what it printed). Then, for
    a stage that ran as a job, what submitit and SLURM kept of every process of that job, in ``jobs/``.

    Raises
    ------
    RequestError
        No stage of that name, or no such attempt.
    """
    known = ledger.read_pipeline()
    if stage not in known:
        raise RequestError(f"{ledger.run_dir.name} has no stage {stage!r}; it has: {', '.join(known.names)}")
    record, _ = ledger.readable(stage)
    attempts = record.attempts if record else ()
    if attempt is not None and not 1 <= attempt <= len(attempts):
        raise RequestError(f"stage {stage} has had {len(attempts)} attempts; there is no attempt {attempt}")
    own: list[Path] = []
    job_ids: Sequence[str] = ()
    if attempts:
        chosen = attempts[(attempt or len(attempts)) - 1]
        log = ledger.logs(stage) / Path(chosen.log).name
        own = [log, log.with_suffix(".out")]
        job_ids = (chosen.job_id,) if chosen.job_id else ()
    else:
        job_ids = next((s.jobs[stage] for s in reversed(submissions(ledger)) if stage in s.jobs), ())
    jobs = [p for job in job_ids for p in sorted((ledger.run_dir / "jobs").glob(f"{job}_[0-9]*_log.*"))]
    return [path for path in (*own, *jobs) if path.is_file() and path.stat().st_size > 0]


def last_line(ledger: Ledger, stage: str) -> str:
    """Return the last line that a stage's last attempt logged, or printed; "" when it said nothing."""
    return next(filter(None, map(_last_line_of, log_files_newest_first(ledger, stage))), "")


def _last_line_of(path: Path) -> str:
    lines = [line for line in _tail(path).splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def log_files_newest_first(ledger: Ledger, stage: str) -> list[Path]:
    """Return a stage's own log files, the last attempt's first, records before prints."""
    paths = ledger.logs(stage).glob("[0-9]*.*")
    return sorted(paths, key=lambda p: (-int(p.stem), p.suffix != ".log"))


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - _TAIL_BYTES))
        return file.read().decode(errors="replace")


_ENDED_BADLY = ("failed", "blocked", "cancelled", "damaged")
_NEVER_SATISFIED = ("Dependency", "DependencyNeverSatisfied")


@dataclass(frozen=True)
class StageStatus:
    """One stage: its state, corrected for what it could not write down itself (a killed job, a lost one).

    `state` is "damaged" where its record cannot be read, or where what it left is gone or changed, and
    "unknown" where SLURM, asked about its job, gave no answer that can be relied on. `lost` tells that nobody
    works on it though it did not end by itself.

    `seconds` is the wall time of all attempts; `eta_seconds` what is left, where the stage tells its total;
    `last_line` the last line of the log of one that failed.
    """

    name: str
    state: State
    reason: str = ""
    job_id: str = ""
    attempts: int = 0
    timeouts: int = 0
    preemptions: int = 0
    seconds: float = 0.0
    progress: Progress | None = None
    eta_seconds: float | None = None
    last_line: str = ""
    lost: bool = False


@dataclass(frozen=True)
class RunStatus:
    """A whole run. `holder` is the process at work on it now; `note` says why something is unknown."""

    run_dir: Path
    stages: tuple[StageStatus, ...]
    holder: Submission | None = None
    note: str = ""
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def in_flight(self) -> bool:
        """Return whether anything is running or on its way, or may be."""
        return self.holder is not None or any(self.counts[s] for s in ("running", "submitted", "unknown"))

    @property
    def ended_badly(self) -> bool:
        """Return whether a stage is known to need attention: it failed, or it is not running."""
        if any(self.counts[s] for s in (*_ENDED_BADLY, "interrupted")):
            return True
        return not self.in_flight and not self.succeeded

    @property
    def succeeded(self) -> bool:
        """Return whether every stage has finished."""
        return self.counts["finished"] == len(self.stages)


def status(run_dir: Path) -> RunStatus:
    """Read a run's status; works from any machine that sees the directory.

    Raises
    ------
    RequestError
        `run_dir` is not a run directory.
    """
    ledger = Ledger.open(run_dir)
    graph = ledger.read_pipeline()
    held = holder(ledger)
    flights, copied = Flights(ledger), is_copy(ledger)
    found = {stage.name: ledger.readable(stage.name) for stage in graph}
    flights.look_at(record for record, _ in found.values() if record is not None)
    note = ""
    stages: dict[str, StageStatus] = {}
    for stage in graph:
        record, damage = found[stage.name]
        if damage:
            stages[stage.name] = StageStatus(stage.name, "damaged", damage)
            continue
        sight = flights.sight(record) if record is not None and record.state != "finished" else Sight()
        note = note or (f"{stage.name}: {sight.unknown}" if sight.unknown else "")
        lost = not sight.where and not sight.unknown and flights.submitted(stage.name)
        stages[stage.name] = _stage_status(stage, record, sight, lost, stages, ledger, held, copied)
    counts: Counter[str] = Counter(s.state for s in stages.values())
    return RunStatus(ledger.run_dir, tuple(stages.values()), held, note, counts)


def _stage_status(
    stage: Stage,
    record: StageRecord | None,
    sight: Sight,
    lost: bool,
    earlier: dict[str, StageStatus],
    ledger: Ledger,
    held: Submission | None,
    copied: bool,
) -> StageStatus:
    bad_states = (*_ENDED_BADLY, "interrupted") if lost else _ENDED_BADLY
    unfit = _unfit(ledger, stage, record)
    if record is not None and unfit:
        told = "; ".join(f"{ledger.out(stage.name) / name} {why}" for name, why in unfit.items())
        return StageStatus(stage.name, "damaged", f"{told}; run it again", attempts=len(record.attempts))
    bad = next((name for name in stage.upstream if earlier[name].state in bad_states), "")
    if record is None:
        return StageStatus(stage.name, "blocked" if bad else "waiting", _because(bad, earlier))
    state, reason = _true_state(record, sight, lost, held, copied)
    if bad and not sight.where and (state in ("waiting", "cancelled", "blocked") or _never_began(sight)):
        state, reason = "blocked", _because(bad, earlier)
    causes = Counter(attempt.cause for attempt in record.attempts)
    begun = bool(record.attempts) and state not in ("finished", "blocked")
    progress = read_progress(ledger.out(stage.name)) if begun else None
    return StageStatus(
        name=stage.name,
        state=state,
        reason=reason,
        job_id=record.job_ids[-1] if record.job_ids else "",
        attempts=len(record.attempts),
        timeouts=causes["timeout"],
        preemptions=causes["preemption"] + causes["requeue"],
        seconds=sum(a.seconds for a in ledger.closed(record, state == "running")),
        progress=progress,
        eta_seconds=_eta(record.attempts[-1], progress) if state == "running" and record.attempts else None,
        last_line=_last_words(ledger, record, sight, state),
        lost=lost and state == "interrupted",
    )


def _unfit(ledger: Ledger, stage: Stage, record: StageRecord | None) -> dict[str, str]:
    """Return what a finished stage left and is no longer as it was."""
    out = ledger.out(stage.name)
    if record is None or record.state != "finished" or not out.is_dir():
        return {}
    return unfit_outputs(out, stage.leaves, record.outputs)


def _true_state(
    record: StageRecord, sight: Sight, lost: bool, held: Submission | None, copied: bool
) -> tuple[State, str]:
    """Correct the state that a stage wrote last by what is known of its job or process."""
    if record.state == "finished":
        return record.state, _why_again(record)
    if sight.unknown:
        return "unknown", sight.unknown
    if record.state == "blocked":
        return record.state, record.reason
    if sight.pending:
        return "submitted", sight.where
    if sight.where:
        return ("running" if record.state == "running" else "submitted"), sight.where
    if record.state in ("running", "submitted") and copied:
        return "interrupted", "at work in the run that this directory is a copy of"
    if sight.ended is not None:
        return _ended_in_slurm(record, sight.ended)
    if record.state == "waiting" and lost:
        return "cancelled", "its job left the queue before it began; SLURM no longer knows how it ended"
    if record.state == "running" and not _inline_lives(record.attempts[-1], held):
        return "interrupted", GONE
    return record.state, record.reason


def _ended_in_slurm(record: StageRecord, end: Ended) -> tuple[State, str]:
    """Return what became of a stage without a recorded end whose job has ended for SLURM."""
    if end.state == "CANCELLED":
        return "cancelled", str(end)
    if record.state == "running":
        return "interrupted", f"{end}; the stage wrote nothing down"
    if record.state == "waiting":
        return "failed", f"{end} before the stage began"
    if record.attempts and end.restarts > record.attempts[-1].restarts:
        return "failed", f"{end} before the stage began again"
    return record.state, record.reason or str(end)


def _never_began(sight: Sight) -> bool:
    return sight.ended is not None and sight.ended.reason in _NEVER_SATISFIED


def _last_words(ledger: Ledger, record: StageRecord, sight: Sight, state: State) -> str:
    """Return the last line that tells why a stage failed, of the job's own log where the stage wrote none."""
    if sight.ended is not None and state in ("failed", "interrupted"):
        log = ledger.run_dir / "jobs" / f"{sight.ended.job_id}_0_log.err"
        words = _last_line_of(log) if log.is_file() else ""
        return words or last_line(ledger, record.name)
    return last_line(ledger, record.name) if state == "failed" else ""


def _why_again(record: StageRecord) -> str:
    """Return why a finished stage had been done again, where it had."""
    again = (c.reason for c in record.history if c.reason.startswith(("changed:", "done again:")))
    return next(again, record.reason)


def _inline_lives(attempt: Attempt, held: Submission | None) -> bool:
    known = known_to_live(attempt.host, attempt.space, attempt.pid, attempt.process_start)
    if known is not None:
        return known
    return held is not None and held.host == attempt.host and held.pid == attempt.pid


def _because(bad: str, earlier: dict[str, StageStatus]) -> str:
    return f"{bad} {earlier[bad].state}" if bad else ""


def _eta(attempt: Attempt, progress: Progress | None) -> float | None:
    if progress is None or progress.total is None or progress.step <= attempt.first_step:
        return None
    return attempt.seconds * (progress.total - progress.step) / (progress.step - attempt.first_step)


def follow(run_dir: Path, on_event: Callable[[Event], None], poll_seconds: float = 20.0) -> RunStatus:
    """Print every change of a stage's state as it happens; return the status at the end.

    Goes on while anything is running, on its way, or unknown. Each look is one call to squeue, so
    `poll_seconds` should not be short on a busy cluster.
    """
    seen: dict[str, tuple[str, int]] = {}
    while True:
        now = status(run_dir)
        for position, stage in enumerate(now.stages, 1):
            mark = (stage.state, stage.attempts)
            if seen.get(stage.name) != mark:
                seen[stage.name] = mark
                on_event(
                    Event(stage.name, stage.state, stage.reason, position, len(now.stages), stage.seconds)
                )
        if not now.in_flight:
            return now
        time.sleep(poll_seconds)
