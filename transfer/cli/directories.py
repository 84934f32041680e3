"""Directories that are no run: what they hold, whether it is finished, and how to go on."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from carryover.configs import UserError
from carryover.configs.files import read_json
from carryover.slurm.ledger import GONE, Ledger
from carryover.slurm.runner import read_progress
from carryover.slurm.submission import SINGLE, holder, submissions
from carryover.transfer.pipeline.calls import BACKBONE
from carryover.transfer.results.record import RECORD_NAME, load_record

_PRETRAIN = "pretrain"
_REPORT_FILES = ("index.html", "report.md", "tables.tex", "results.csv", "results.parquet")
_MOST_RUNS = 5


@dataclass(frozen=True)
class Directory:
    """What a directory holds.

    Attributes
    ----------
    lines
        What it is, for the user; the first line names it.
    next
        The command that goes on with it or shows more; "" where there is none.
    well
        Nothing is left to do, or a process works on it.
    """

    lines: tuple[str, ...]
    next: str = ""
    well: bool = True
    at_work: bool = False


def require_run(directory: Path) -> None:
    """Raise UserError unless a directory is a run's; the message says what else it is."""
    if Ledger(directory).pipeline_file.is_file():
        return
    if not directory.is_dir():
        raise UserError(f"{directory}: {'a file' if directory.exists() else 'no such directory'}")
    found = look_at(directory)
    if found is not None:
        raise UserError(f"{found.lines[0]}; not a run directory (`carryover status {directory}` says more)")


def look_at(directory: Path) -> Directory | None:
    """Say what a directory is that is no run's; None where nothing in it tells.

    An evaluation's or a pretraining's, a stage's or the report of a run, a report, or one with runs in it.
    """
    found = next(_possible(directory), None)
    run = _in_a_run(directory)
    if run is None:
        return found
    where, command = run
    if found is None:
        return Directory((f"{directory}: {where}",), command)
    # What is to be done about it is the run's business, and whether anything is.
    return Directory((*found.lines, where), command)


def _possible(directory: Path) -> Iterator[Directory]:
    identity = _plain(directory / "identity.json")
    if (directory / RECORD_NAME).is_file() and (directory / RECORD_NAME).stat().st_size:
        yield _finished_evaluation(directory)
    checkpoint = directory / BACKBONE
    begun = identity.get("kind") or _held_by(directory)
    if begun == _PRETRAIN or (checkpoint.is_file() and (directory / "recipe.yaml").is_file()):
        yield _work(directory, "a pretraining", identity, checkpoint.is_file())
    elif checkpoint.is_file():
        yield Directory((f"{directory}: a canonical checkpoint",), f"carryover inspect {checkpoint}")
    elif begun is not None:
        task = f" ({identity['kind']})" if "kind" in identity else ""
        yield _work(directory, f"an evaluation{task}", identity, False)
    written = [directory / name for name in _REPORT_FILES if (directory / name).is_file()]
    if written:
        when = _minutes(datetime.fromtimestamp(max(path.stat().st_mtime for path in written)))
        names = ", ".join(path.name for path in written)
        yield Directory((f"{directory}: a report, written {when}: {names}",))
    runs = sorted(directory.glob("*/pipeline.json"))
    if runs:
        more = f" and {len(runs) - _MOST_RUNS} more" if len(runs) > _MOST_RUNS else ""
        listed = ", ".join(str(path.parent) for path in runs[:_MOST_RUNS])
        yield Directory(
            (f"{directory}: holds run directories: {listed}{more}",), f"carryover status {runs[0].parent}"
        )


def _held_by(directory: Path) -> str | None:
    """Return the command that was the last to hold a directory before it wrote anything there."""
    past = submissions(Ledger(directory))
    return past[-1].executor if past and past[-1].executor in SINGLE else None


def _plain(path: Path) -> Mapping[str, Any]:
    found = read_json(path)
    return found if isinstance(found, dict) else {}


def _finished_evaluation(directory: Path) -> Directory:
    record = load_record(directory / RECORD_NAME)
    about = f"{record.recipe}, seed {record.seed}, on {record.dataset} {record.split}"
    values = [
        f"{m.label} {'undefined' if m.value is None else f'{m.value:.2f} {m.unit}'}" for m in record.metrics
    ]
    lines = (
        f"{directory}: an evaluation ({record.task}): {about}",
        f"finished {_minutes(datetime.fromisoformat(record.finished))}: {', '.join(values)}",
    )
    return Directory(lines, f"carryover report {directory}")


def _work(directory: Path, what: str, identity: Mapping[str, Any], finished: bool) -> Directory:
    """Describe work by its identity, the process that holds it, and the last step of its log."""
    seed = identity.get("seed")
    head = f"{directory}: {what}" + ("" if seed is None else f", seed {seed}")
    if finished:
        when = _minutes(datetime.fromtimestamp((directory / BACKBONE).stat().st_mtime))
        return Directory((head, f"finished {when}: {directory / BACKBONE}"))
    progress = read_progress(directory)
    steps = "no step logged yet"
    if progress is not None:
        steps = f"step {progress.step}" + (f" of {progress.total}" if progress.total is not None else "")
    ledger = Ledger(directory)
    held, past = holder(ledger), submissions(ledger)
    if held is not None:
        by = f"process {held.pid} on {held.host} since {_minutes(held.started)}"
        return Directory((head, f"at work: {by}; {steps}"), at_work=True)
    last = past[-1] if past else None
    why = "" if last is None else f"; {last.reason or GONE}"
    again = "the command that began it, with the same --out"
    if last is not None and last.origin.get("command"):
        again = f"{last.origin['command']} (in {last.origin.get('directory')})"
    return Directory((head, f"not finished: {steps}{why}"), again, well=False)


def _in_a_run(directory: Path) -> tuple[str, str] | None:
    """Say which part of a run a directory is, and the command about it; None where it lies in none."""
    here = directory.resolve()
    run = next((above for above in here.parents if (above / "pipeline.json").is_file()), None)
    if run is None:
        return None
    places = (path for path in (here, *here.parents) if (path / "stage.json").is_file())
    stage = next((path for path in places if path.is_relative_to(run / "stages")), None)
    if stage is None:
        return f"part of the run {run}", f"carryover status {run}"
    name = stage.relative_to(run / "stages").as_posix()
    return f"part of stage {name} of the run {run}", f"carryover status {run}, carryover logs {run} {name}"


def _minutes(time: datetime) -> str:
    return time.astimezone().strftime("%Y-%m-%d %H:%M")
