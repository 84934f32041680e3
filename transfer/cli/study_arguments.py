"""Arguments of `carryover study`: experiments of the papers that need no training run."""

from pathlib import Path
from typing import Annotated

import typer

from carryover.transfer.cli.options import Out, command_line

study_app = typer.Typer(help="Experiments of the papers that need no training run.", no_args_is_help=True)


@study_app.command("eqco-mi")
def study_eqco_mi(
    seed: Annotated[int, typer.Option(min=0)] = 0,
    steps: Annotated[int, typer.Option(help="Training steps of each critic.", min=1)] = 5000,
    estimates: Annotated[int, typer.Option(help="Batches over which each bound is averaged.", min=1)] = 1000,
    out: Out = None,
) -> None:
    """Estimate a known mutual information with InfoNCE and EqCo (EqCo's Table 5); writes csv and md."""
    from carryover.transfer.studies.eqco_mi import eqco_mi

    eqco_mi(seed, steps, estimates, out, command_line())


@study_app.command("gradients")
def study_gradients(
    images: Annotated[
        Path | None, typer.Option(help="A folder of images; default: procedural shapes.")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", "-c", help="Checkpoint of the backbone; default: random weights."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Batch size.", min=4)] = 128,
    size: Annotated[int, typer.Option(help="Side length of the views in pixels.", min=16)] = 64,
    width: Annotated[int, typer.Option(help="Width of the embeddings.", min=8)] = 2048,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Out = None,
) -> None:
    """Compare the gradients of all methods on one batch: a table and a heat map."""
    from carryover.transfer.studies.gradients import Asked, gradients

    gradients(Asked(images, checkpoint, batch_size, size, width, seed), out, command_line())
