"""Running one stage in this process: its record, its progress, its log, its ending."""

import io
import json
import logging
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from carryover.configs.errors import DamagedFileError
from carryover.configs.files import read_json
from carryover.slurm.errors import RunError
from carryover.slurm.ledger import Attempt, Ledger, StageRecord, State, now
from carryover.slurm.outputs import describe_outputs
from carryover.slurm.processes import here, leaving, pid_space
from carryover.slurm.stage import Stage, replace_outputs

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# A progress bar redraws its line by moving the cursor; in a file that is only noise.
_DRAWING = re.compile(r"\x1b\[\d*[ABCDFGHJK]|\x1b\[\?25[lh]|\r(?!\n)")
_COLOR = re.compile(r"\x1b\[[0-9;]*m|\x1b\]8;[^\x1b\x07]*(?:\x1b\\|\x07)")
_PROGRESS_BYTES = 16384


@dataclass(frozen=True)
class Progress:
    """The last line's ``step``, and its ``total`` where the stage writes one."""

    step: int
    total: int | None = None


def read_progress(out: Path) -> Progress | None:
    """Return the progress of the stage that writes into `out`; None when it tells none.

    Only the file's end is read, and a line cut off by a crash is passed over.
    """
    try:
        with (out / "metrics.jsonl").open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _PROGRESS_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            row = json.loads(line)
            return Progress(int(row["step"]), int(row["total"]) if "total" in row else None)
        except (ValueError, KeyError, TypeError):
            continue
    return None


@contextmanager
def captured(log_file: Path) -> Iterator[TextIO]:
    """Copy log records into `log_file`, and what is written to stdout and stderr into ``<name>.out``.

    Yields the open log file, for what belongs there and nowhere else.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    root = logging.getLogger()
    level, before = root.level, (sys.stdout, sys.stderr)
    with (
        log_file.open("a", encoding="utf-8", errors="replace") as log,
        log_file.with_suffix(".out").open("a", encoding="utf-8", errors="replace") as printed,
    ):
        handlers = [_handler(log, logging.INFO)]
        if not root.handlers:
            # Without a handler of its own Python shows warnings; with ours alone it would not.
            handlers.append(_handler(sys.stderr, logging.WARNING))
        sys.stdout, sys.stderr = _Tee(before[0], printed), _Tee(before[1], printed)
        root.setLevel(min(level, logging.INFO) if level else logging.INFO)
        for handler in handlers:
            root.addHandler(handler)
        try:
            yield log
        finally:
            for handler in handlers:
                root.removeHandler(handler)
            root.setLevel(level)
            sys.stdout, sys.stderr = before


def _handler(stream: TextIO, level: int) -> logging.Handler:
    handler = logging.StreamHandler(stream)
    handler.setLevel(level)
    handler.setFormatter(logging.Formatter(_FORMAT))
    return handler


class _Tee(io.TextIOBase):
    """Writes to a stream, and to a file what is text rather than drawing."""

    def __init__(self, stream: TextIO, copy: TextIO) -> None:
        self._stream, self._copy = stream, copy

    def write(self, text: str) -> int:
        self._stream.write(text)
        if not self._copy.closed and not _DRAWING.search(text):
            self._copy.write(_COLOR.sub("", text))
            self._copy.flush()
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ending:
    """Outcome of a stage's callable.

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
    asked_to_stop: Callable[[], int] = lambda: 0,
) -> Ending:
    """Call a stage's callable and record the attempt: running, then finished, failed or interrupted.

    What it prints and logs goes to its log files too, a traceback only there. The stage's record must exist
    (`plan.carry_out` makes it). Nothing is raised for what the callable does; how it ended is returned. It is
    not called at all when a signal, whose number `asked_to_stop` tells, has come before.

    Raises
    ------
    RunError
        Its record or its logs cannot be written (a full disk, say).
    """
    try:
        return _run_stage(stage, ledger, executor, job_id, judge, asked_to_stop)
    except OSError as error:
        raise RunError(f"stage {stage.name}: its record or log cannot be written: {error}") from error


def _run_stage(
    stage: Stage,
    ledger: Ledger,
    executor: str,
    job_id: str | None,
    judge: Judge,
    asked_to_stop: Callable[[], int],
) -> Ending:
    record = ledger.read(stage.name)
    assert record is not None
    record = _begun(record, stage, ledger, executor, job_id)
    ledger.write(record)
    missing = ledger.missing_after(stage)
    with captured(ledger.directory(stage.name) / record.attempts[-1].log) as log_file:
        signum = asked_to_stop()
        ending = _stopped_by(signum) if signum else call_stage(stage, ledger, log_file)
    if ending.signum:
        # Written down before SLURM is asked why, which may take longer than the process is given.
        ledger.write(_ended(record, ending, ()))
        ending = judge(ending, record)
    ended = _ended(record, ending, missing if ending.state == "finished" else ())
    ledger.write(_described(ended, stage, ledger))
    return ending


def call_stage(stage: Stage, ledger: Ledger, log_file: TextIO, *, heeds_signals: bool = True) -> Ending:
    """Call a stage's callable on its resolved parameters, without a record; tracebacks go to `log_file`.

    Unless it `heeds_signals`, only the callable's own handlers act on them.
    """
    start = time.monotonic()
    out = ledger.out(stage.name)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with leaving() if heeds_signals else nullcontext():
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
    """Return what an exception says in one line: its type, and the first line of its message."""
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
        space=pid_space(),
        restarts=restarts(),
    )
    return record.changed("running", attempts=(*earlier, attempt), missing=())


def _stopped_by(number: int) -> Ending:
    signum = signal.Signals(number)
    return Ending("interrupted", f"stopped by {signum.name}", signum, signum.name)


def restarts() -> int:
    """Return how often SLURM has started this job before."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def _ending_of_exit(left: SystemExit) -> Ending:
    code = left.code
    if code is None or code == 0:
        return Ending("finished")
    if isinstance(code, int) and code > 128 and code - 128 in set(signal.Signals):
        return _stopped_by(code - 128)
    return Ending("failed", f"left with exit status {code}" if isinstance(code, int) else str(code))


def _ended(record: StageRecord, ending: Ending, missing: tuple[str, ...]) -> StageRecord:
    changes = {"ended": now(), "state": ending.state, "reason": ending.reason, "cause": ending.cause}
    last = record.attempts[-1].model_copy(update=changes)
    attempts = (*record.attempts[:-1], last)
    return record.changed(ending.state, ending.reason, attempts=attempts, missing=missing)
