"""Implementation of run, status, logs, cancel and retry. All but `run` need only the run directory."""

import os
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

import carryover.transfer.pipeline.calls  # noqa: F401 (makes the calls of a run directory known)
from carryover.configs import UserError, load
from carryover.configs.counted import counted
from carryover.core.processor import bf16_instructions

if TYPE_CHECKING:
    from carryover.slurm.executor import Event, Executor, GraphResult
    from carryover.slurm.graph import Graph
    from carryover.slurm.plan import Decision
    from carryover.slurm.preview import Preview
    from carryover.slurm.runner import Progress
    from carryover.slurm.status import RunStatus
    from carryover.transfer.pipeline.clusters import ClusterConfig
    from carryover.transfer.pipeline.config import PipelineConfig

# In a pipe there is no width to keep to, and folded stage names cannot be searched for.
_WIDTH = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200
out_console = Console(width=_WIDTH)
err_console = Console(stderr=True)

# Each look is a call to squeue, which asks not to be run in tight loops.
_LOOK_SECONDS = 20.0
_GONE = "no longer in the pipeline"
_MOST_FORMER = 10
UNKNOWN = 3
"""Exit status of `status` if SLURM gave no reliable answer."""

_STYLES = {
    "finished": "green",
    "skipped": "dim",
    "failed": "bold red",
    "blocked": "yellow",
    "interrupted": "yellow",
    "cancelled": "yellow",
    "unknown": "bold yellow",
}


def run_demo(run_dir: Path, overrides: Sequence[str]) -> int:
    """Run the demo's pipeline, in float32 where the processor emulates bfloat16; return the exit status."""
    if not bf16_instructions() and not any(o.startswith("precision=") for o in overrides):
        overrides = ["precision=fp32", *overrides]
        note = (
            "precision=fp32: this CPU has no bf16 instructions that are known; with them the demo is faster"
        )
        out_console.print(note, soft_wrap=True)
    return run_pipeline("demo", run_dir, "inline", overrides)


def run_pipeline(
    name: str,
    run_dir: Path,
    executor: str,
    overrides: Sequence[str],
    *,
    cluster: str = "default",
    at_once: int = 2,
    dry_run: bool = False,
    follow: bool = False,
) -> int:
    """Plan a pipeline and run or submit it; return the exit status."""
    from carryover.slurm.executor import EXECUTORS, run_graph
    from carryover.slurm.plan import MissingPathsError
    from carryover.slurm.sbatch import describe, without_secrets
    from carryover.transfer.pipeline.foresight import explain_missing
    from carryover.transfer.pipeline.plan import plan

    if executor not in EXECUTORS:
        raise UserError(f"--executor: {EXECUTORS.unknown(executor)}")
    config: PipelineConfig = load("pipelines", name, overrides)
    graph = plan(config, run_dir)
    place: ClusterConfig = load("clusters", cluster)
    absent = f"not in the pipeline with only=[{', '.join(config.only)}]" if config.only else _GONE
    if dry_run:
        planned = _print_plan(graph, run_dir, place, executor)
        print_former_stages(run_dir, graph.names, absent)
        for line in explain_missing(planned.missing, config.roots):
            out_console.print(Text(line, style="yellow"), soft_wrap=True)
        if not _print_opened(planned.plan):
            return 2
        return 0
    print_former_stages(run_dir, graph.names, absent)
    origin = describe(Path(__file__).parent) | {"pipeline": name, "overrides": without_secrets(overrides)}
    try:
        result = run_graph(
            graph, _executor(executor, place, at_once), run_dir, on_event=_print_event, origin=origin
        )
    except MissingPathsError as error:
        raise UserError("\n".join(explain_missing(error.paths, config.roots))) from None
    if follow and executor == "slurm" and result.succeeded:
        from carryover.slurm.status import follow as watch

        watch(run_dir, _print_event)
        return print_status(run_dir)
    return _conclude(result)


def print_former_stages(run_dir: Path, names: Collection[str] | None = None, absent: str = _GONE) -> None:
    """Print the stages of a run that are not among `names`, or that its own pipeline.json does not name."""
    from carryover.configs.counted import counted
    from carryover.slurm.flights import Flights
    from carryover.slurm.former import former_stages
    from carryover.slurm.ledger import Ledger

    ledger = Ledger(run_dir)
    former = former_stages(ledger, names)
    if not former:
        return
    are, stay = ("is", "it stays") if len(former) == 1 else ("are", "they stay")
    listed = ", ".join(_shortened(former, _MOST_FORMER))
    line = (
        f"{counted(len(former), 'stage')} in {run_dir} {are} {absent};"
        f" {stay} on disk and {are} left out of the report: {listed}"
    )
    err_console.print(Text(line, style="yellow"), soft_wrap=True)
    open_ones = [r for name in former if (r := ledger.readable(name)[0]) and r.state != "finished"]
    flights = Flights(ledger) if open_ones else None
    for record in open_ones:
        if flights is not None and (where := flights.sight(record).where):
            line = f"{record.name} is still at work: {where}; `carryover cancel {run_dir}` stops it as well"
            err_console.print(Text(line, style="yellow"), soft_wrap=True)


def _print_opened(plan: Sequence["Decision"]) -> bool:
    """Open the data that the stages would read, and print the problems; return whether there are none."""
    from carryover.transfer.pipeline.opening import open_data

    opened = open_data(plan)
    for problem in opened.problems:
        more = f" and {len(problem.stages) - 1} more" if len(problem.stages) > 1 else ""
        out_console.print(
            Text(f"{problem.stages[0]}{more}: {problem.text}", style="bold red"), soft_wrap=True
        )
    told = f"{opened.data_sets} data sets opened: " if opened.data_sets else "no data to open yet"
    found = f"{len(opened.problems)} problems" if opened.problems else "no problems found"
    out_console.print(f"{told}{found if opened.data_sets else ''}")
    return not opened.problems


def print_status(run_dir: Path, *, follow: bool = False) -> int:
    """Print the state of every stage of a run; return the exit status that summarizes it.

    0: every stage has finished, is queued or is running. 1: a stage failed, or nothing works on it. 3: no
    stage is known to have failed, but the state of one is unknown. With `follow`, the table is updated until
    nothing is queued, running or unknown. Of an evaluation's, a pretraining's or a report's directory it is
    printed what that is; 1: it is not finished, and nothing works on it.
    """
    from carryover.slurm.status import status
    from carryover.transfer.cli.directories import require_run

    other = _other_directory(run_dir, follow)
    if other is not None:
        return other
    require_run(run_dir)
    now = status(run_dir)
    if follow:
        with Live(_status_table(now), console=out_console, auto_refresh=False) as screen:
            while now.in_flight:
                time.sleep(_LOOK_SECONDS)
                now = status(run_dir)
                screen.update(_status_table(now), refresh=True)
    else:
        out_console.print(_status_table(now))
    counted = ", ".join(f"{n} {state}" for state, n in now.counts.items())
    out_console.print(Text(f"{now.run_dir.name}: {counted}" + (f"; {now.note}" if now.note else "")))
    if now.ended_badly:
        return 1
    return UNKNOWN if now.counts["unknown"] else 0


def _other_directory(directory: Path, follow: bool) -> int | None:
    """Print what a directory is that is no run's, and return the exit status; None where it is not known."""
    from carryover.slurm.ledger import Ledger
    from carryover.transfer.cli.directories import look_at

    if Ledger(directory).pipeline_file.is_file() or not directory.is_dir():
        return None
    while (found := look_at(directory)) is not None and found.at_work and follow:
        time.sleep(_LOOK_SECONDS)
    if found is None:
        return None
    for line in (*found.lines, *([f"next: {found.next}"] if found.next else [])):
        out_console.print(Text(line), soft_wrap=True)
    return 0 if found.well else 1


def _status_table(now: "RunStatus") -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "state", "job", "attempts", "elapsed", "progress", "left", "reason"):
        table.add_column(column, overflow="fold")
    for stage in now.stages:
        done = _steps(stage.progress)
        left = "" if stage.eta_seconds is None else _clock(stage.eta_seconds)
        tries = str(stage.attempts) if stage.attempts else ""
        if stage.preemptions or stage.timeouts:
            tries += f" ({stage.preemptions} preempted, {stage.timeouts} timed out)"
        told = [t for t in (stage.reason, stage.last_line) if t]
        # A failed stage's log ends with the error that is its reason.
        why = " | ".join(t for t in told if not any(t in other for other in told if other is not t))
        if len(told) == 2 and told[0] == told[1]:
            why = told[0]
        elapsed = _clock(stage.seconds) if stage.seconds else ""
        state = Text(stage.state, style=_STYLES.get(stage.state, "cyan"))
        table.add_row(stage.name, state, stage.job_id, tries, elapsed, done, left, Text(why))
    return table


def _steps(progress: "Progress | None") -> str:
    if progress is None:
        return ""
    return f"{progress.step}" + (f"/{progress.total}" if progress.total is not None else "")


def print_logs(run_dir: Path, stage: str, attempt: int | None) -> None:
    """Print the log and output of one attempt at a stage."""
    from carryover.slurm.ledger import Ledger
    from carryover.slurm.status import log_files
    from carryover.transfer.cli.directories import require_run

    require_run(run_dir)
    files = log_files(Ledger.open(run_dir), stage, attempt)
    if not files:
        err_console.print(Text(f"{stage} has printed nothing yet"))
    for path in files:
        err_console.print(Text(f"==> {path}", style="bold"), soft_wrap=True)
        out_console.print(Text(path.read_text(encoding="utf-8", errors="replace")), soft_wrap=True)


def cancel_run(run_dir: Path, stages: Sequence[str]) -> None:
    """Stop a run, or some of its stages, and print which were stopped."""
    from carryover.slurm.control import cancel
    from carryover.transfer.cli.directories import require_run

    require_run(run_dir)
    stopped = cancel(run_dir, stages or None)
    for name in stopped:
        out_console.print(Text(f"{name}: stopped"))
    if not stopped:
        out_console.print("nothing was running or queued")


def retry_run(run_dir: Path, failed_only: bool) -> int:
    """Run or submit unfinished stages again, with the last settings; return the exit status."""
    from carryover.slurm.control import retry
    from carryover.slurm.sbatch import describe
    from carryover.transfer.cli.directories import require_run

    require_run(run_dir)
    origin = describe(Path(__file__).parent)
    return _conclude(retry(run_dir, failed_only=failed_only, on_event=_print_event, origin=origin))


def _executor(name: str, place: "ClusterConfig", at_once: int) -> "Executor":
    from carryover.slurm.executor import EXECUTORS

    settings = {"cluster": place.cluster.to_json(), "packages": place.packages, "at_once": at_once}
    return EXECUTORS.get(name).of(settings)


def _print_plan(graph: "Graph", run_dir: Path, place: "ClusterConfig", executor: str) -> "Preview":
    """Print the planned action for every stage, and on a cluster every sbatch header."""
    from carryover.slurm.plan import Action
    from carryover.slurm.preview import preview

    planned = preview(graph, run_dir, place.cluster)
    table = Table(box=None, pad_edge=False)
    # Resources are what SLURM is asked for: nothing of them, a time limit least of all, holds elsewhere.
    asked = executor == "slurm"
    for column in ("stage", "plan", *(["resources"] if asked else []), "depends on"):
        table.add_column(column, overflow="fold")
    for decision in planned.plan:
        stage = decision.stage
        waits = ", ".join(_shortened((*stage.upstream, *stage.after)))
        what = decision.action.value
        done = (
            what if decision.action is Action.RUN and not decision.damaged else f"{what}: {decision.reason}"
        )
        resources = [stage.resources.over(place.defaults).summary] if asked else []
        table.add_row(Text(stage.name), Text(done), *resources, waits)
    out_console.print(table)
    out_console.print(f"{counted(len(graph), 'stage')}: {_in_short(planned.plan)}")
    if executor != "slurm":
        return planned
    for job in planned.jobs:
        chained = f", {job.links} in a chain" if job.links > 1 else ""
        title = f"job {job.number}: {job.name} ({counted(job.stages, 'stage')}{chained})"
        out_console.print(Text(f"\n{title}", style="bold"), soft_wrap=True)
        for line in (*job.header, *(f"scontrol update {request}" for request in job.updates)):
            out_console.print(Text(line), soft_wrap=True)
    out_console.print(
        f"\n{counted(planned.jobs, 'job')}, {planned.gpu_hours:.0f} GPU-hours requested, if every stage uses"
        " its time limit once"
    )
    return planned


def _in_short(plan: Iterable["Decision"]) -> str:
    """Count the actions of a plan: stages to repeat, to run for the first time, to resume, and to keep."""
    from carryover.slurm.plan import Action

    kinds = {
        "to repeat": lambda d: d.action is Action.REPLACE or bool(d.unfit) or d.damaged,
        "to run": lambda d: d.action is Action.RUN,
        "to resume": lambda d: d.action is Action.RESUME,
        "finished": lambda d: d.action in (Action.SKIP, Action.RESTORE),
    }
    counts = dict.fromkeys(kinds, 0)
    for decision in plan:
        kind = next((k for k, belongs in kinds.items() if belongs(decision)), None)
        if kind is not None:
            counts[kind] += 1
    return ", ".join(f"{n} {kind}" for kind, n in counts.items() if n or kind == "to repeat")


def _shortened(names: Sequence[str], most: int = 3) -> list[str]:
    return [*names[:most], f"and {len(names) - most} more"] if len(names) > most + 1 else list(names)


def _print_event(event: "Event") -> None:
    took = f" {event.seconds:.0f} s" if event.seconds else ""
    line = Text(f"[{event.position:>{len(str(event.total))}}/{event.total}] {event.stage}: ")
    line.append(event.state, style=_STYLES.get(event.state, "cyan"))
    line.append(took + (f" ({event.reason})" if event.reason else ""))
    err_console.print(line, soft_wrap=True, highlight=False)


def _conclude(result: "GraphResult") -> int:
    page = result.run_dir / "report" / "index.html"
    if page.exists():
        out_console.print(Text(f"report: {page}"), soft_wrap=True)
    if result.signum:
        err_console.print("interrupted: run the same command again to resume", style="yellow")
        return 128 + result.signum
    for name, outcome in result.unsuccessful.items():
        err_console.print(Text(f"{name}: {outcome.state}: {outcome.reason}", style="red"), soft_wrap=True)
    return 0 if result.succeeded else 1


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
