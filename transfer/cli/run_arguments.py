"""Arguments of the commands on a run directory: run, status, logs, cancel, retry."""

from pathlib import Path
from typing import Annotated

import typer

from carryover.transfer.cli.options import AtOnce, Cluster, DryRun, Executor, Follow, Out, Overrides, Run


def run(
    pipeline: Annotated[str, typer.Argument(help="A pipeline's name or YAML file.")],
    overrides: Overrides = None,
    executor: Executor = "inline",
    cluster: Cluster = "default",
    at_once: AtOnce = 2,
    dry_run: DryRun = False,
    follow: Follow = False,
    out: Out = None,
) -> None:
    """Run a pipeline; finished stages are not repeated."""
    from carryover.transfer.cli.run_commands import run_pipeline

    run_dir = out or Path("runs") / Path(pipeline).stem
    raise typer.Exit(
        run_pipeline(
            pipeline,
            run_dir,
            executor,
            overrides or [],
            cluster=cluster,
            at_once=at_once,
            dry_run=dry_run,
            follow=follow,
        )
    )


def status(
    run_dir: Run,
    follow: Annotated[
        bool, typer.Option("--follow", help="Wait until nothing is queued or running.")
    ] = False,
) -> None:
    """Print the state of every stage, or of one evaluation or pretraining by its directory.

    Exit status 0: finished, queued or running, 1: failed, 3: unknown.
    """
    from carryover.transfer.cli.run_commands import print_status

    raise typer.Exit(print_status(run_dir, follow=follow))


def logs(
    run_dir: Run,
    stage: Annotated[str, typer.Argument(help="A stage's name, as `status` prints it.")],
    attempt: Annotated[int | None, typer.Option(help="Number of the attempt; default: the last.")] = None,
) -> None:
    """Print the log and output of a stage."""
    from carryover.transfer.cli.run_commands import print_logs

    print_logs(run_dir, stage, attempt)


def cancel(
    run_dir: Run,
    stages: Annotated[list[str] | None, typer.Argument(help="Only these stages.")] = None,
) -> None:
    """Stop a run; running stages save their state first and can be resumed."""
    from carryover.transfer.cli.run_commands import cancel_run

    cancel_run(run_dir, stages or [])


def retry(
    run_dir: Run,
    failed: Annotated[
        bool, typer.Option("--failed", help="Only failed stages and those that they block.")
    ] = False,
) -> None:
    """Run or submit unfinished stages again, with the settings of the last time."""
    from carryover.transfer.cli.run_commands import retry_run

    raise typer.Exit(retry_run(run_dir, failed))
