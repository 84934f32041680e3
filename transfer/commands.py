"""What the command line's commands do and print; `transfer.cli` only declares their arguments."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from configs import UserError, dump, header, load, recipe_names
from configs.keys import nearest

if TYPE_CHECKING:
    from slurm.executor import Event, Executor, GraphResult
    from transfer.detect.defects import Defect
    from transfer.doctor import Finding

log = logging.getLogger(__name__)
out_console = Console()
err_console = Console(stderr=True)

_KINDS = ("pretrain", "transfer", "pipelines")
_STYLES = {
    "finished": "green",
    "skipped": "dim",
    "failed": "bold red",
    "blocked": "yellow",
    "interrupted": "yellow",
}


def print_findings(findings: Iterable["Finding"]) -> bool:
    """Print the doctor's findings; return whether nothing indispensable is missing."""
    table = Table(box=None, pad_edge=False)
    for column in ("", "what", "found", "how to get it"):
        table.add_column(column, overflow="fold")
    well = True
    for finding in findings:
        mark = {"ok": "[green]✓[/]", "missing": "[dim]–[/]", "broken": "[red]✗[/]"}[finding.state]
        table.add_row(mark, finding.what, Text(finding.detail), Text(finding.remedy))
        well = well and not (finding.needed and finding.state != "ok")
    out_console.print(table)
    return well


def print_recipes() -> None:
    """List every shipped recipe with the first line of its story."""
    _register()
    for kind in _KINDS:
        table = Table(title=kind, box=None, title_justify="left", title_style="bold", pad_edge=False)
        table.add_column("name", no_wrap=True)
        table.add_column("what")
        for name in recipe_names(kind):
            table.add_row(name, Text((header(kind, name).splitlines() or [""])[0]))
        out_console.print(table)


def print_recipe(name: str, overrides: Sequence[str]) -> None:
    """Print one recipe: its story, then every resolved value as YAML that can be loaded again."""
    _register()
    kinds = [kind for kind in _KINDS if name in recipe_names(kind)]
    if Path(name).suffix in (".yaml", ".yml"):
        raise UserError(
            f"{name}: `recipes` shows shipped recipes; load your own with the command that runs it"
        )
    if not kinds:
        guess = nearest(name, [n for kind in _KINDS for n in recipe_names(kind)])
        hint = f"; did you mean '{guess}'?" if guess else "; `carryover recipes` lists them"
        raise UserError(f"no recipe is called '{name}'{hint}")
    for kind in kinds:
        story = "".join(f"# {line}".rstrip() + "\n" for line in header(kind, name).splitlines())
        out_console.print(
            Text(f"# {kind}/{name}\n{story}{dump(load(kind, name, overrides))}"), soft_wrap=True
        )


def print_defects(defects: Sequence["Defect"]) -> int:
    """Print a data set's defects, a line each; return their number."""
    for defect in defects:
        out_console.print(Text(str(defect)), soft_wrap=True)
    out_console.print(f"{len(defects)} defects" if defects else "no defects")
    return len(defects)


def convert_checkpoint(checkpoint: Path, to: str, out: Path, encoder: str | None) -> str:
    """Convert a checkpoint of any maker; return the receipt's summary."""
    from transfer.convert import convert

    return convert(checkpoint, to, out, encoder).summary


def evaluate_checkpoint(recipe: str, checkpoint: Path, overrides: Sequence[str], out: Path | None) -> None:
    """Run one evaluation recipe on a checkpoint of any maker."""
    import transfer.config

    config = load("transfer", recipe, overrides)
    transfer.config.check_roots(config)
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: no such checkpoint")
    from transfer.evaluate import canonical_of, evaluate

    directory = out or Path("runs") / f"{checkpoint.stem}-{config.name}-seed{config.seed}"
    evaluate(config, canonical_of(checkpoint, directory), directory)


def run_pipeline(name: str, run_dir: Path, executor: str, overrides: Sequence[str], *, dry_run: bool) -> int:
    """Plan a pipeline and run it; return the exit status."""
    from slurm.executor import run_graph
    from transfer.pipeline import plan

    _register()
    config = load("pipelines", name, overrides)
    graph = plan(config, run_dir)
    if dry_run:
        _print_plan(graph)
        return 0
    result = run_graph(graph, _executor(executor), run_dir, on_event=_print_event)
    return _conclude(result)


def print_report(runs: Sequence[Path], out: Path | None, formats: str, title: str) -> bool:
    """Write the report of some runs; return whether every record could be read."""
    from transfer.report import write_report

    directory = out or (runs[0] / "report" if runs[0].is_dir() else Path("report"))
    report = write_report(runs, directory, title, [f.strip() for f in formats.split(",") if f.strip()])
    for problem in report.problems:
        err_console.print(Text(f"left out: {problem.path}: {problem.reason}", style="yellow"), soft_wrap=True)
    for file in report.files:
        out_console.print(Text(str(file)), soft_wrap=True)
    return not report.problems


def _register() -> None:
    import pretrain.config  # noqa: F401
    import transfer.config
    import transfer.pipeline_config  # noqa: F401 (each registers its kind)


def _executor(name: str) -> "Executor":
    from slurm.inline import InlineExecutor

    executors = {"inline": InlineExecutor}
    if name not in executors:
        raise UserError(f"--executor {name}: unknown; there are: {', '.join(executors)}")
    return executors[name]()


def _print_plan(graph: Iterable[object]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "runs", "waits for"):
        table.add_column(column, overflow="fold")
    for stage in graph:
        waits = (*stage.upstream, *stage.after)  # type: ignore[attr-defined]
        table.add_row(stage.name, stage.call_name, ", ".join(waits))  # type: ignore[attr-defined]
    out_console.print(table)


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
        err_console.print("interrupted: run the same command again to go on", style="yellow")
        return 128 + result.signum
    for name, outcome in result.unsuccessful.items():
        err_console.print(Text(f"{name}: {outcome.state}: {outcome.reason}", style="red"), soft_wrap=True)
    return 0 if result.succeeded else 1
