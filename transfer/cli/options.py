"""Arguments and options shared by several commands."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from carryover.core.backbones.stated import Stated

_OF_THE_NETWORK = ("architecture", "stem", "stride_in_1x1", "padding", "heads", "pixels")


def keys(given: list[str] | None) -> list[str]:
    """Return the overrides; raise UserError for ``out=``, which is not a recipe key."""
    from carryover.configs import UserError

    for override in given or []:
        if override.startswith("out="):
            raise UserError(f"'{override}': the output directory is not a recipe key: --out {override[4:]}")
    # typer 0.12 cannot convert None.
    return given or []


def command_line() -> str:
    """Return the command line, for the record."""
    return shlex.join(["carryover", *sys.argv[1:]])


def network_of(values: Mapping[str, Any], *more: str) -> "Stated | None":
    """Return the options of a command that describe a checkpoint's network and pixels, and `more` of them."""
    from carryover.transfer.cli.commands import stated

    names = (*_OF_THE_NETWORK, *more)
    return stated(**{name: values[name] for name in names if values[name] is not None})


Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to override.", callback=keys),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Output directory.")]
Encoder = Annotated[
    str | None,
    typer.Option(help="Encoder: online, momentum, student, teacher, or a prefix printed by `inspect`."),
]
Architecture = Annotated[
    str | None, typer.Option(help="Network, if the file does not state it: resnet50, timm/NAME.")
]
Stem = Annotated[str | None, typer.Option(help="Stem: imagenet, cifar, cifar_maxpool or cifar_no_relu.")]
Stride = Annotated[
    bool | None,
    typer.Option(
        "--stride-in-1x1/--no-stride-in-1x1", help="Bottlenecks stride in the 1x1 convolution (Caffe)."
    ),
]
Padding = Annotated[str | None, typer.Option(help="Padding: symmetric, or same (TensorFlow's).")]
Heads = Annotated[int | None, typer.Option(help="Number of attention heads.", min=1)]
Pixels = Annotated[
    str | None,
    typer.Option(
        help="Pixel statistics that the weights expect: mean/std/order, or imagenet, caffe, half, clip."
    ),
]
Label = Annotated[str | None, typer.Option(help="Name of the checkpoint in records and reports.")]
Method = Annotated[str | None, typer.Option(help="Pretraining method, if the file does not state it.")]
PretrainedOn = Annotated[str | None, typer.Option(help="Pretraining data, if the file does not state it.")]
Epochs = Annotated[float | None, typer.Option(help="Pretraining epochs, if the file does not state it.")]
InputSize = Annotated[
    int | None, typer.Option(help="Side of the pretraining crops in pixels, if the file does not state it.")
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")]
Executor = Annotated[str, typer.Option(help="Executor: inline, local, slurm, or one of your own packages.")]
Cluster = Annotated[str, typer.Option(help="Name or YAML file of a cluster (slurm).")]
AtOnce = Annotated[int, typer.Option(help="Stages that run at the same time (local).", min=1)]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the plan and check the data without running anything.")
]
Follow = Annotated[bool, typer.Option("--follow", help="Wait until every job has ended (slurm).")]
