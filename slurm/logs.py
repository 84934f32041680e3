"""Finding what a stage said."""

from collections.abc import Sequence
from pathlib import Path

from carryover.slurm.errors import RequestError
from carryover.slurm.ledger import Ledger
from carryover.slurm.submission import submissions

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
