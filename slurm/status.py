"""How a run stands: states, progress and logs of its stages, and watching them change."""

import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from carryover.slurm.errors import RequestError, RunError
from carryover.slurm.executor import Event
from carryover.slurm.ledger import Attempt, Ledger, StageRecord, State
from carryover.slurm.outputs import unfit_outputs
from carryover.slurm.processes import lives
from carryover.slurm.runner import Progress, read_progress
from carryover.slurm.stage import Stage
from carryover.slurm.submission import Flights, Submission, holder, is_copy, submissions

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
    for path in log_files_newest_first(ledger, stage):
        lines = [line for line in _tail(path).splitlines() if line.strip()]
        if lines:
            return lines[-1].strip()
    return ""


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


@dataclass(frozen=True)
class StageStatus:
    """One stage: its state, corrected for what it could not write down itself (a killed job, a lost one).

    `state` is "damaged" where its record cannot be read, or where what it left is gone or changed.

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


@dataclass(frozen=True)
class RunStatus:
    """A whole run. `holder` is the process at work on it now; `note` says what could not be asked."""

    run_dir: Path
    stages: tuple[StageStatus, ...]
    holder: Submission | None = None
    note: str = ""
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def in_flight(self) -> bool:
        """Whether anything is running or on its way."""
        return self.holder is not None or bool(self.counts["running"] + self.counts["submitted"])

    @property
    def succeeded(self) -> bool:
        """Whether every stage has finished."""
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
    note = ""
    stages: dict[str, StageStatus] = {}
    for stage in graph:
        record, damage = ledger.readable(stage.name)
        if damage:
            stages[stage.name] = StageStatus(stage.name, "damaged", damage)
            continue
        try:
            where = flights(record) if record is not None and record.state != "finished" else ""
        except RunError as error:
            note, where = str(error), "unknown"
        lost = not where and flights.submitted(stage.name)
        stages[stage.name] = _stage_status(stage, record, where, lost, stages, ledger, held, copied)
    counts: Counter[str] = Counter(s.state for s in stages.values())
    return RunStatus(ledger.run_dir, tuple(stages.values()), held, note, counts)


def _stage_status(
    stage: Stage,
    record: StageRecord | None,
    where: str,
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
    state, reason = _true_state(record, where, lost, held, copied)
    if bad and state in ("waiting", "cancelled", "blocked") and not where:
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
        last_line=last_line(ledger, stage.name) if state == "failed" else "",
    )


def _unfit(ledger: Ledger, stage: Stage, record: StageRecord | None) -> dict[str, str]:
    """Return what a finished stage left and is no longer as it was."""
    out = ledger.out(stage.name)
    if record is None or record.state != "finished" or not out.is_dir():
        return {}
    return unfit_outputs(out, stage.leaves, record.outputs)


def _true_state(
    record: StageRecord, where: str, lost: bool, held: Submission | None, copied: bool
) -> tuple[State, str]:
    """Correct the state that a stage wrote last by what is known of its job or process."""
    if record.state == "finished":
        return record.state, _why_again(record)
    if where == "unknown" or record.state == "blocked":
        return record.state, record.reason
    if " is pending" in where or " is requeue" in where:
        return "submitted", where
    if where:
        return ("running" if record.state == "running" else "submitted"), where
    if record.state == "waiting" and lost:
        return "cancelled", "its job left the queue before it began"
    if record.state in ("running", "submitted") and copied:
        return "interrupted", "at work in the run that this directory is a copy of"
    if record.state == "running" and not _inline_lives(record.attempts[-1], held):
        return "interrupted", "its process was killed"
    return record.state, record.reason


def _why_again(record: StageRecord) -> str:
    """Say why a finished stage had been done again, where it had."""
    again = (c.reason for c in record.history if c.reason.startswith(("changed:", "done again:")))
    return next(again, record.reason)


def _inline_lives(attempt: Attempt, held: Submission | None) -> bool:
    if attempt.host == socket.gethostname():
        return lives(attempt.pid, attempt.process_start)
    return held is not None and held.host == attempt.host and held.pid == attempt.pid


def _because(bad: str, earlier: dict[str, StageStatus]) -> str:
    return f"{bad} {earlier[bad].state}" if bad else ""


def _eta(attempt: Attempt, progress: Progress | None) -> float | None:
    if progress is None or progress.total is None or progress.step <= attempt.first_step:
        return None
    return attempt.seconds * (progress.total - progress.step) / (progress.step - attempt.first_step)


def follow(run_dir: Path, on_event: Callable[[Event], None], poll_seconds: float = 20.0) -> RunStatus:
    """Tell every change of a stage's state as it happens; return the status at the end.

    Each look is one call to squeue, so `poll_seconds` should not be short on a busy cluster.
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
