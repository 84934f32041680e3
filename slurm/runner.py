"""Running one stage in this process, and keeping its record true whatever happens."""

import logging
import signal
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from carryover.configs.errors import DamagedFileError
from carryover.configs.files import read_json
from carryover.slurm.capture import captured
from carryover.slurm.ledger import Attempt, Ledger, StageRecord, State, now
from carryover.slurm.outputs import describe_outputs
from carryover.slurm.processes import here
from carryover.slurm.progress import read_progress
from carryover.slurm.signals import leaving
from carryover.slurm.stage import Stage, replace_outputs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ending:
    """How a stage's callable ended.

    `signum` is the signal that asked it to stop, or 0; `cause` says why that signal came.
    """

    state: State
    reason: str = ""
    signum: int = 0
    cause: str = ""


Judge = Callable[[Ending, StageRecord], Ending]
"""Given how an interrupted stage ended, says what that means: a cause, and whether it failed after all."""


def run_stage(
    stage: Stage,
    ledger: Ledger,
    executor: str,
    job_id: str | None = None,
    judge: Judge = lambda ending, record: ending,
) -> Ending:
    """Call a stage's callable and record the attempt: running, then finished, failed or interrupted.

    What it prints and logs goes to its log files too, a traceback only there. The stage's record must exist
    (`plan.carry_out` makes it). Nothing is raised for what the callable does; how it ended is returned.
    """
    record = ledger.read(stage.name)
    assert record is not None
    record = _begun(record, stage, ledger, executor, job_id)
    ledger.write(record)
    missing = ledger.missing_after(stage)
    with captured(ledger.directory(stage.name) / record.attempts[-1].log) as log_file:
        ending = call_stage(stage, ledger, log_file)
    if ending.signum:
        ending = judge(ending, record)
    record = _ended(record, ending, missing if ending.state == "finished" else ())
    ledger.write(_described(record, stage, ledger))
    return ending


def call_stage(stage: Stage, ledger: Ledger, log_file: TextIO) -> Ending:
    """Call a stage's callable on its resolved parameters, without a record; tracebacks go to `log_file`."""
    start = time.monotonic()
    out = ledger.out(stage.name)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with leaving():
            params: dict[str, Any] = replace_outputs(stage.params, ledger.resolve)
            stage.calls.load()(**params, out=out)
    except KeyboardInterrupt:
        return Ending("interrupted", "interrupted from the keyboard", signal.SIGINT, "SIGINT")
    except SystemExit as left:
        return _ending_of_exit(left)
    except Exception as error:
        traceback.print_exc(file=log_file)
        log_file.flush()
        return Ending("failed", one_line(error))
    log.info("%s finished in %.1f s", stage.name, time.monotonic() - start)
    return Ending("finished")


def one_line(error: BaseException) -> str:
    """Say what an exception says in one line: its type, and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _described(record: StageRecord, stage: Stage, ledger: Ledger) -> StageRecord:
    """Add what the stage says that it worked on (identity.json), and, if it finished, what it left."""
    out = ledger.out(stage.name)
    update: dict[str, Any] = {}
    if record.stated is not None:
        update["stated"] = {**record.stated, **_worked_on(out, stage.known)}
    if record.state == "finished":
        update["outputs"] = describe_outputs(out, stage.leaves)
    return record.model_copy(update=update)


def _worked_on(out: Path, known: Collection[str]) -> dict[str, Any]:
    """Return the digests that a stage noted of what it read, which may have changed since it was planned."""
    try:
        noted = read_json(out / "identity.json")
    except DamagedFileError as error:
        log.warning("%s", error)
        return {}
    return {name: noted[name] for name in known if isinstance(noted, dict) and noted.get(name)}


def _begun(
    record: StageRecord, stage: Stage, ledger: Ledger, executor: str, job_id: str | None
) -> StageRecord:
    earlier = ledger.closed(record, running=False)
    host, pid, start = here()
    progress = read_progress(ledger.out(stage.name))
    attempt = Attempt(
        number=len(earlier) + 1,
        executor=executor,
        host=host,
        pid=pid,
        process_start=start,
        started=now(),
        job_id=job_id,
        log=f"logs/{len(earlier) + 1:03d}.log",
        first_step=progress.step if progress else 0,
    )
    return record.changed("running", attempts=(*earlier, attempt), missing=())


def _ending_of_exit(left: SystemExit) -> Ending:
    code = left.code
    if code is None or code == 0:
        return Ending("finished")
    if isinstance(code, int) and code > 128 and code - 128 in set(signal.Signals):
        signum = signal.Signals(code - 128)
        return Ending("interrupted", f"stopped by {signum.name}", signum, signum.name)
    return Ending("failed", f"left with exit status {code}" if isinstance(code, int) else str(code))


def _ended(record: StageRecord, ending: Ending, missing: tuple[str, ...]) -> StageRecord:
    changes = {"ended": now(), "state": ending.state, "reason": ending.reason, "cause": ending.cause}
    last = record.attempts[-1].model_copy(update=changes)
    attempts = (*record.attempts[:-1], last)
    return record.changed(ending.state, ending.reason, attempts=attempts, missing=missing)
