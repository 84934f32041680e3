"""Learning curves on the user's own data: `carryover curve`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from carryover.transfer.cli.options import AtOnce, Cluster, DryRun, Executor, Follow, Out

if TYPE_CHECKING:
    from carryover.transfer.pipeline.curve import Asked

PIPELINE_NAME = "curve.yaml"


def curve(
    given: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT... data.root=DIR [KEY=VALUE]...",
            help="Checkpoint files, and keys of the evaluation recipes.",
        ),
    ],
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            "--recipe",
            "-r",
            help="Recipe for classification, detection or segmentation (repeatable). Default: small_knn,"
            " small_linear and small_finetune (small_finetune_cpu without a GPU).",
        ),
    ] = None,
    shares: Annotated[
        str, typer.Option("--labels", help="Percentages of the labels, comma-separated.")
    ] = "1,2,5,10,20,50,100",
    seeds: Annotated[int, typer.Option(help="Random draws of the labels per point.", min=1)] = 3,
    supervised: Annotated[Path | None, typer.Option(help="A supervised checkpoint to compare with.")] = None,
    train_supervised: Annotated[
        bool, typer.Option("--train-supervised", help="Train one on all labels of the training images.")
    ] = False,
    executor: Executor = "inline",
    cluster: Cluster = "default",
    at_once: AtOnce = 2,
    dry_run: DryRun = False,
    follow: Follow = False,
    out: Out = None,
) -> None:
    """Plot accuracy or AP against the fraction of labels: pretrained, random and supervised.

    Every point is a stage of a pipeline, written to OUT/curve.yaml and run there: run again to resume, or use
    `carryover status`, `retry` and `report`. Labels are drawn from every class, and are nested.
    """
    from carryover.transfer.cli.run_commands import run_pipeline
    from carryover.transfer.pipeline.curve import RECIPES, RECIPES_ON_A_CPU, Asked

    checkpoints = tuple(Path(word) for word in given if "=" not in word)
    overrides = tuple(word for word in given if "=" in word)
    usual = RECIPES if executor == "slurm" or _has_accelerator() else RECIPES_ON_A_CPU
    asked = Asked(
        checkpoints,
        tuple(recipe) if recipe else usual,
        _shares(shares),
        seeds,
        supervised,
        train_supervised,
        overrides,
    )
    run_dir = out or Path("runs") / "curve"
    path = _written(asked, run_dir)
    status = run_pipeline(
        str(path), run_dir, executor, [], cluster=cluster, at_once=at_once, dry_run=dry_run, follow=follow
    )
    if not dry_run:
        print_curve(run_dir)
    raise typer.Exit(status)


def print_curve(run_dir: Path) -> None:
    """Print the points that are there and the labels saved; write both to the report's folder."""
    from rich.text import Text

    from carryover.configs import UserError
    from carryover.transfer.report.learning_curves import HEADER, collected, points, rows, saved_labels, write
    from carryover.transfer.report.savings import SAVINGS_NOTE
    from carryover.transfer.studies.writing import out_console, print_table

    try:
        collection = collected([run_dir])
    except UserError:
        return
    if not (found := points(collection)):
        return
    print_table("Against the share of the labels", HEADER, rows(found))
    saving = saved_labels(collection)
    for one in saving:
        out_console.print(Text(f"Labels saved: {one.heading}", style="bold"), soft_wrap=True)
        for text in one.texts:
            out_console.print(Text(f"  {text}"), soft_wrap=True)
    if saving:
        out_console.print(Text(SAVINGS_NOTE, style="dim"), soft_wrap=True)
    for file in write(found, saving, run_dir / "report"):
        out_console.print(Text(str(file)), soft_wrap=True)


def _written(asked: "Asked", run_dir: Path) -> Path:
    """Write the pipeline of a curve into its run directory, and say what it leaves out."""
    import yaml
    from rich.text import Text

    from carryover.configs.files import write_atomic
    from carryover.transfer.cli.commands import err_console
    from carryover.transfer.pipeline.curve import curve as lay_out

    plain, left_out = lay_out(asked)
    for line in left_out:
        err_console.print(Text(f"left out: {line}", style="yellow"), soft_wrap=True)
    path = run_dir / PIPELINE_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110)
    write_atomic(path, f"# Written by `carryover curve`; `carryover run` takes it too.\n{text}")
    return path


def _shares(text: str) -> tuple[float, ...]:
    from carryover.configs import UserError

    try:
        shares = tuple(float(part) / 100 for part in text.split(","))
    except ValueError:
        raise UserError(f"--labels {text}: expected percentages, as 1,10,100") from None
    if not shares or min(shares) <= 0 or max(shares) > 1:
        raise UserError(f"--labels {text}: percentages must be above 0 and at most 100")
    return shares


def _has_accelerator() -> bool:
    from carryover.core.training.device import device_count

    return device_count() > 0
