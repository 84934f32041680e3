"""Command line of carryover. Commands import what they need when they run, so that --help is fast."""

import errno
import logging
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from carryover.core.once import forget
from carryover.transfer.cli.checkpoint_arguments import convert, evaluate, inspect
from carryover.transfer.cli.curve_command import curve
from carryover.transfer.cli.options import Out, Overrides, command_line
from carryover.transfer.cli.run_arguments import cancel, logs, retry, run, status
from carryover.transfer.cli.study_arguments import study_app
from carryover.transfer.cli.verify_command import verify

app = typer.Typer(
    name="carryover",
    help="Evaluate what a pretraining carries over: pretrain, convert, evaluate, report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
data_app = typer.Typer(help="Generate the procedural data set, or check a data set.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(study_app, name="study")


def _version(asked: bool) -> None:
    if asked:
        from carryover.configs.formats import release

        typer.echo(release())
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log in detail.")] = False,
) -> None:
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, format="%(message)s", stream=sys.stderr, force=True
    )
    for chatty in ("matplotlib", "PIL", "fontTools", "submitit"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    forget()


@app.command()
def doctor(
    tries: Annotated[
        bool,
        typer.Option(
            "--try", help="Import torch and the reference backends, and use the device (takes seconds)."
        ),
    ] = False,
) -> None:
    """List what is installed, what is missing, and the command that installs it."""
    from carryover.transfer.cli.commands import print_findings
    from carryover.transfer.cli.doctor import examine

    if not print_findings(examine(tries)):
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Run directory.")] = Path("runs/demo"),
    overrides: Overrides = None,
) -> None:
    """Run a small pipeline on a CPU: pretrain, convert, detect, fine-tune, report."""
    from carryover.transfer.cli.run_commands import run_demo

    raise typer.Exit(run_demo(out, overrides or []))


@app.command()
def recipes(
    name: Annotated[
        str | None,
        typer.Argument(help="A recipe to print in full; or a kind, task or word to list (detection, small)."),
    ] = None,
    overrides: Overrides = None,
    paper: Annotated[str | None, typer.Option(help="List only recipes of this paper or method.")] = None,
) -> None:
    """List the recipes, or print every value of one."""
    from carryover.transfer.cli.commands import is_group, print_recipe, print_recipes

    if name is None or paper is not None:
        print_recipes(name, paper)
    elif is_group(name):
        print_recipes(name)
    else:
        print_recipe(name, overrides or [])


@data_app.command("shapes")
def data_shapes(
    out: Annotated[Path, typer.Argument(help="Directory to create.")],
    seed: int = 0,
    train: Annotated[int, typer.Option(help="Training images of the classification set.")] = 2000,
    val: Annotated[int, typer.Option(help="Validation images of the classification set.")] = 500,
    detection: Annotated[int, typer.Option(help="Images of the detection set.")] = 200,
) -> None:
    """Generate the procedural data set: class folders, and detection images in VOC and COCO layout."""
    from carryover.core.data.shapes.write import write_shapes

    typer.echo(write_shapes(out, seed=seed, n_train=train, n_val=val, n_detection=detection))


@data_app.command("check")
def data_check(
    kind: Annotated[
        str, typer.Argument(help="imagefolder, voc, coco, boxes (LabelImg, YOLO, csv) or masks.")
    ],
    root: Annotated[Path, typer.Argument(help="Root of the data set.")],
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe with the layout of masks, or of kind boxes."),
    ] = None,
) -> None:
    """Check a data set and list its defects by kind; exit status 1 if one of them is fatal."""
    from carryover.transfer.cli.commands import check_data, print_defects

    if print_defects(check_data(kind, root, recipe), str(root)):
        raise typer.Exit(1)


@app.command()
def pretrain(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or YAML file.")],
    overrides: Overrides = None,
    out: Out = None,
) -> None:
    """Pretrain a recipe and write a canonical checkpoint; run again to resume."""
    from carryover.configs import load

    config = load("pretrain", recipe, overrides or [])
    from carryover.pretrain.trainer import train
    from carryover.slurm.processes import leaving
    from carryover.transfer.pipeline.calls import BACKBONE
    from carryover.transfer.tasks.holding import alone_in

    directory = out or Path("runs") / f"{config.name}-seed{config.seed}"
    with leaving(), alone_in(directory, "pretrain", BACKBONE, command_line()):
        typer.echo(train(config, directory))


for _command in (inspect, convert, evaluate, run, status, logs, cancel, retry):
    app.command()(_command)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, or result records.")],
    out: Out = None,
    format: Annotated[
        str, typer.Option(help="Comma-separated: html, md, tex, csv, parquet, figures.")
    ] = "html,md,csv",
    title: str = "What the pretraining carries over",
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Update the report until every stage has ended, or Ctrl-C."),
    ] = False,
    interval: Annotated[int, typer.Option(help="Seconds between two updates of --watch.", min=1)] = 30,
    paired: Annotated[
        str | None,
        typer.Option(metavar="ROW", help="Compare every row with this one, paired by test image."),
    ] = None,
) -> None:
    """Write the report of one or several runs; for unfinished runs it is marked as partial."""
    from carryover.transfer.cli.commands import print_report

    if not print_report(runs, out, format, title, interval if watch else None, paired):
        raise typer.Exit(1)


@app.command()
def rescore(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, or result records.")],
) -> None:
    """Compute the metrics of finished evaluations again from their stored per-image outcomes."""
    from carryover.transfer.cli.commands import print_rescored

    if not print_rescored(runs):
        raise typer.Exit(1)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A run directory or a canonical checkpoint.")],
    second: Annotated[Path, typer.Argument(help="Another of the same kind.")],
) -> None:
    """Compare two runs or two checkpoints, including the differences of their recipes."""
    from carryover.transfer.cli.commands import print_comparison

    if not print_comparison(first, second):
        raise typer.Exit(1)


app.command()(verify)
app.command()(curve)


_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def main() -> None:
    """Run the command line; exit status 0, 1 (the work failed), 2 (invalid input) or 128 + signal."""
    try:
        app()
    except BrokenPipeError:
        sys.exit(1)
    except SystemExit as left:
        # Raised by work that a signal stopped, with how to resume it; other exits have printed their message.
        if getattr(left, "signum", 0):
            typer.secho(str(left), fg="yellow", err=True)
        elif left.code == 128 + signal.SIGINT:
            typer.secho("interrupted: the same command goes on where its files allow", fg="yellow", err=True)
        raise
    except Exception as error:
        status = _status(error)
        if status is None or "--debug" in sys.argv[1:]:
            raise
        typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
        typer.echo(str(error), err=True)
        sys.exit(status)


def _status(error: Exception) -> int | None:
    """Return the exit status of an error that is meant for the user, None for any other."""
    from carryover.configs.errors import UserError, WorkError

    if isinstance(error, UserError):
        return 2
    # A full or read-only disk, and a directory of somebody else; Python's message names the file.
    refused = isinstance(error, OSError) and error.errno in _REFUSED
    return 1 if refused or isinstance(error, WorkError) else None
