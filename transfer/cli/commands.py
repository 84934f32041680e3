"""Implementation of the commands; `main` and the modules `*_arguments` only declare their arguments."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from carryover.configs import UserError, dump, header, kind_of, load, recipe_names, title
from carryover.configs.counted import counted, signed
from carryover.configs.nearest import nearest
from carryover.core.formats.backbone import Stem

if TYPE_CHECKING:
    from carryover.core.backbones.stated import Stated
    from carryover.core.data.defects import Defect
    from carryover.core.formats.said import Said
    from carryover.transfer.cli.finding import Finding
    from carryover.transfer.report import Report

log = logging.getLogger(__name__)
out_console = Console()
err_console = Console(stderr=True)

_KINDS = ("pretrain", "transfer", "pipelines", "clusters")
_COMMANDS = {
    "pretrain": "carryover pretrain {name}",
    "transfer": "carryover evaluate {name} -c CHECKPOINT",
    "pipelines": "carryover run {name}",
    "clusters": "carryover run PIPELINE --executor slurm --cluster {name}",
}


def print_findings(findings: Iterable["Finding"]) -> bool:
    """Print the findings of `doctor`; return whether all requirements are met."""
    table = Table(box=None, pad_edge=False)
    for column in ("", "part", "found", "how to install it"):
        table.add_column(column, overflow="fold")
    well = True
    for finding in findings:
        mark = {"ok": "[green]✓[/]", "missing": "[dim]–[/]", "broken": "[red]✗[/]"}[finding.state]
        table.add_row(mark, finding.what, Text(finding.detail), Text(finding.remedy))
        well = well and not (finding.needed and finding.state != "ok")
    out_console.print(table)
    return well


def print_recipes(group: str | None = None, paper: str | None = None) -> None:
    """List the shipped recipes with the first line of their headers: by kind, and evaluations by task.

    `group` is a kind, a task or a word of the name, `paper` a part of the recipe's name or source. Without
    either, a terminal gets the groups with their sizes. In a pipe the output is plain lines: group, name and
    title, separated by tabs.
    """
    by_word = group is not None and not _is_kind_or_task(group)
    found = [
        (own, name, title(kind, name))
        for kind in _KINDS
        for name in recipe_names(kind)
        if group in (None, own := _group(kind, name), kind, *(name.split("_") if by_word else ()))
        and _is_of(kind, name, paper)
    ]
    if not found:
        raise UserError(f"no recipe of {' and '.join(filter(None, (group, paper)))}")
    if not out_console.is_terminal:
        for line in found:
            # Not by the console, which turns tabs into spaces.
            typer.echo("\t".join(line))
        return
    if group is None and paper is None:
        _print_groups(found)
        return
    for own in dict.fromkeys(own for own, _, _ in found):
        table = Table(title=own, box=None, title_justify="left", title_style="bold", pad_edge=False)
        table.add_column("name", no_wrap=True)
        table.add_column("what")
        for _, name, what in (line for line in found if line[0] == own):
            table.add_row(name, Text(what))
        out_console.print(table)


def _print_groups(found: Sequence[tuple[str, str, str]]) -> None:
    """Print the groups of recipes, how many are in each with some of their names, and how to see them."""
    groups: dict[str, list[str]] = {}
    for own, name, _ in found:
        groups.setdefault(own, []).append(name)
    table = Table(box=None, pad_edge=False)
    table.add_column("group", no_wrap=True)
    table.add_column("recipes", justify="right")
    table.add_column("for example")
    for own, names in groups.items():
        table.add_row(own, str(len(names)), Text(", ".join(names[:3])))
    out_console.print(table)
    out_console.print(
        Text(
            f"\n{counted(found, 'recipe')}. `carryover recipes GROUP` lists a group, `... recipes small`"
            " those with this word in their names, `carryover recipes --paper sqrtkl` those of a paper;"
            " `carryover recipes NAME` prints one, and `carryover recipes | cat` lists all."
        )
    )


def is_group(name: str) -> bool:
    """Return whether a name is a group of recipes: a kind, a task of evaluations, or a word of names."""
    if _is_kind_or_task(name):
        return True
    names = [n for kind in _KINDS for n in recipe_names(kind)]
    return name not in names and any(name in n.split("_") for n in names)


def _is_kind_or_task(name: str) -> bool:
    from carryover.transfer.tasks.config import TASKS

    return name in (*_KINDS, *TASKS.names())


def _group(kind: str, name: str) -> str:
    return str(load(kind, name).task) if kind == "transfer" else kind


def _is_of(kind: str, name: str, paper: str | None) -> bool:
    if paper is None:
        return True
    wanted = paper.casefold()
    return wanted in name.casefold() or wanted in getattr(load(kind, name), "source", "").casefold()


def print_recipe(name: str, overrides: Sequence[str]) -> None:
    """Print one recipe, shipped or a file, as YAML: the command that runs it, its header, all values."""
    own = Path(name.partition(":")[0]).suffix in (".yaml", ".yml")
    kinds = [kind_of(Path(name))] if own else [k for k in _KINDS if name in recipe_names(k)]
    if not kinds:
        guess = nearest(name, [n for kind in _KINDS for n in recipe_names(kind)])
        hint = f"; did you mean '{guess}'?" if guess else "; `carryover recipes` lists them"
        raise UserError(f"no recipe is called '{name}'{hint}")
    for kind in kinds:
        story = "".join(f"# {line}".rstrip() + "\n" for line in header(kind, name).splitlines())
        command = _COMMANDS[kind].format(name=f"./{name}" if own and "/" not in name else name)
        out_console.print(Text(f"# {command}\n{story}{dump(load(kind, name, overrides))}"), soft_wrap=True)


def check_data(kind: str, root: Path, recipe: str | None) -> list["Defect"]:
    """Return the defects of a data set; masks, and boxes in files of one's own, as a recipe says they lie."""
    if kind != "masks":
        from carryover.core.data.check import check, check_boxes

        if recipe is None:
            return check(kind, root)
        from carryover.core.data.objects.config import BoxesData

        data = getattr(load("transfer", recipe, [f"data.root={root}"]), "data", None)
        if kind != "boxes" or not isinstance(data, BoxesData):
            raise UserError(
                f"--recipe {recipe}: only masks and boxes (kind: boxes) need a recipe, not {kind}"
            )
        return check_boxes(data, splits=True)
    if recipe is None:
        raise UserError(
            "data check masks: --recipe is needed for the layout (fcn_folders, fcn_r50_ade20k, ...)"
        )
    from carryover.core.data.masks.splits import check_masks
    from carryover.transfer.tasks.segmentation.config import SegmentationConfig

    config = load("transfer", recipe, [f"data.root={root}"])
    if not isinstance(config, SegmentationConfig):
        raise UserError(f"--recipe {recipe}: is a recipe of task '{config.task}', not a segmentation")
    return check_masks(config.data)


def print_defects(defects: Sequence["Defect"], what: str) -> int:
    """Print a data set's defects by kind; return how many of them are fatal."""
    from carryover.core.data.defects import summarize

    out_console.print(Text(summarize(defects, what)), soft_wrap=True)
    return sum(defect.action == "fatal" for defect in defects)


def stated(**said: Any) -> "Stated | None":
    """Return what options say of a checkpoint's network and pixels; None where none was given.

    Raises UserError for pixel statistics, a stem or a padding that there are not.
    """
    if not said:
        return None
    from carryover.core.backbones.stated import Stated, parse_pixels

    for name, allowed in (("stem", get_args(Stem)), ("padding", ("symmetric", "same"))):
        if name in said and said[name] not in allowed:
            raise UserError(f"--{name} {said[name]}: expected {', '.join(allowed)}")
    where = ", ".join(f"--{name.replace('_', '-')}" for name in said)
    if "pixels" in said:
        said["pixels"] = parse_pixels(said["pixels"])
    return Stated(**said, where=where)


def convert_checkpoint(
    checkpoint: Path,
    to: str,
    out: Path,
    encoder: str | None,
    said: "Said | None" = None,
    network: "Stated | None" = None,
    against: Path | None = None,
) -> str:
    """Convert a checkpoint of any maker; return the receipt's summary, what was assumed and is left to do."""
    from carryover.core.backbones.inspected import in_words
    from carryover.transfer.convert import TARGETS, convert

    receipt = convert(checkpoint, to, out, encoder, said, network, against)
    lines = [receipt.summary, *in_words(receipt.metadata.assumed)]
    if not receipt.proofs:
        lines.append(
            f"Names, shapes and values are as they should be; that {to} loads the file was not tried, as it"
            f" could not be imported here ({TARGETS.get(to).version()[1]}). `carryover doctor` says how to"
            " get it; convert again where it is installed."
        )
    return "\n".join(lines)


def evaluate_checkpoint(
    recipe: str,
    checkpoint: Path,
    overrides: Sequence[str],
    out: Path | None,
    encoder: str | None = None,
    said: "Said | None" = None,
    network: "Stated | None" = None,
    line: str = "",
) -> None:
    """Run one evaluation recipe on a checkpoint of any maker, or on one of the encoders that it holds.

    `line` is the command line, which `carryover status` prints for an evaluation that was stopped.
    """
    from carryover.core.formats.checkpoint_files import checkpoint_file
    from carryover.transfer.tasks.config import check_roots

    config = load("transfer", recipe, overrides)
    check_roots(config)
    checkpoint_file(checkpoint)
    from carryover.transfer.results.record import RECORD_NAME
    from carryover.transfer.tasks.evaluate import canonical_of, evaluate
    from carryover.transfer.tasks.holding import alone_in

    directory = out or Path("runs") / f"{checkpoint.stem}-{config.name}-seed{config.seed}"
    with alone_in(directory, "evaluate", RECORD_NAME, line):
        evaluate(config, canonical_of(checkpoint, directory, encoder, said, network), directory)


def print_report(
    runs: Sequence[Path],
    out: Path | None,
    formats: str,
    title: str,
    every: int | None = None,
    reference: str | None = None,
) -> bool:
    """Write the report of some runs; return whether every record could be read.

    With `every` (seconds) it is written again and again until nothing of the runs is under way, or Ctrl-C.
    """
    from carryover.transfer.cli.run_commands import print_former_stages
    from carryover.transfer.report import watch, write_report

    wanted = [f.strip() for f in formats.split(",") if f.strip()]
    alone = len(runs) == 1 and runs[0].is_dir()
    directory = out or (runs[0] / "report" if alone else Path("report"))
    if every is not None:
        watch(runs, directory, title, wanted, every, _print_progress)
    for run in runs:
        print_former_stages(run)
        _refresh_costs(run)
    report = write_report(runs, directory, title, wanted, reference=reference)
    for partial in report.partial:
        err_console.print(Text(f"partial: {partial.run}: {partial.text()}", style="yellow"), soft_wrap=True)
    for problem in report.problems:
        err_console.print(Text(f"left out: {problem.path}: {problem.reason}", style="yellow"), soft_wrap=True)
    for file in report.files:
        out_console.print(Text(str(file)), soft_wrap=True)
    return not report.problems


def _print_progress(report: "Report") -> None:
    for partial in report.partial:
        line = f"{partial.run}: {partial.text()}; {report.records} results"
        err_console.print(Text(line), soft_wrap=True, highlight=False)


def _refresh_costs(run: Path) -> None:
    """Query the costs of a run again: sacct may have been incomplete when the run wrote its own report."""
    from carryover.slurm.ledger import Ledger
    from carryover.transfer.pipeline.costs import write_costs

    if not Ledger(run).pipeline_file.is_file():
        return
    try:
        write_costs(run)
    except OSError as error:
        log.warning("%s: costs are shown as recorded: %s", run, error)


def print_rescored(runs: Sequence[Path]) -> bool:
    """Print the metrics of some runs counted again; return whether all of them are as they were recorded."""
    from carryover.transfer.results.rescore import rescore

    done, problems = rescore(runs)
    well = True
    for one in done:
        wrong = {m.label for m in one.differing}
        well = well and not wrong
        counted = {m.label: m for m in one.counted}
        for stated in one.stated:
            again = counted.get(stated.label)
            value = "not counted" if again is None else _shown(again.value, again.unit)
            verdict = (
                f"recorded as {_shown(stated.value, stated.unit)}" if stated.label in wrong else "agrees"
            )
            out_console.print(Text(f"{one.stored.path}: {stated.label} {value}: {verdict}"), soft_wrap=True)
    for problem in problems:
        err_console.print(Text(f"left out: {problem.path}: {problem.reason}", style="yellow"), soft_wrap=True)
    return well and not problems


def _shown(value: float | None, unit: str) -> str:
    return "undefined" if value is None else f"{value:.4f} {unit}"


def print_comparison(first: Path, second: Path) -> bool:
    """Print what tells two runs or checkpoints apart; return whether every record could be read."""
    from carryover.transfer.report.compare import compare

    found = compare(first, second)
    if found.lines:
        table = Table(box=None, pad_edge=False)
        for column in ("evaluation", "metric", "first", "second", "second - first", "95 % interval"):
            table.add_column(column, overflow="fold")
        for line in found.lines:
            difference = "" if line.difference is None else f"{signed(line.difference)}"
            interval = (
                ""
                if line.interval is None
                else f"{signed(line.interval.low)} to {signed(line.interval.high)}"
            )
            values = [f"{cell.text()} {cell.brackets()}".strip() for cell in (line.first, line.second)]
            table.add_row(line.evaluation, line.metric, *map(Text, values), difference, Text(interval))
        out_console.print(table)
        for caption, note in dict.fromkeys((line.evaluation, line.note) for line in found.lines if line.note):
            out_console.print(Text(f"{caption}: not the same protocol: {note}"), soft_wrap=True)
    if found.tensors:
        out_console.print(Text(found.tensors), soft_wrap=True)
    for where, names in ((first, found.only_first), (second, found.only_second)):
        for name in names:
            out_console.print(Text(f"only in {where}: {name}"), soft_wrap=True)
    for setting in found.recipe:
        line_ = f"{setting.key}: {setting.first or '-'} | {setting.second or '-'}"
        out_console.print(Text(line_), soft_wrap=True)
    if not (found.lines or found.recipe or found.only_first or found.only_second or found.tensors):
        out_console.print("no difference")
    for problem in found.problems:
        err_console.print(Text(f"left out: {problem.path}: {problem.reason}", style="yellow"), soft_wrap=True)
    return not found.problems
