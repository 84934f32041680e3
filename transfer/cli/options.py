"""The arguments and options that several commands share."""

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


def network_of(values: Mapping[str, Any]) -> "Stated | None":
    """Return what a command's options say of a checkpoint's network and pixels."""
    from carryover.transfer.cli.commands import stated

    return stated(**{name: values[name] for name in _OF_THE_NETWORK if values[name] is not None})


Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to override.", callback=keys),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Output directory.")]
Encoder = Annotated[
    str | None, typer.Option(help="online, momentum, student, teacher, or a prefix that `inspect` prints.")
]
Architecture = Annotated[
    str | None, typer.Option(help="The network where the file does not tell: resnet50, timm/NAME.")
]
Stem = Annotated[str | None, typer.Option(help="imagenet, cifar, cifar_maxpool or cifar_no_relu.")]
Stride = Annotated[
    bool | None, typer.Option("--stride-in-1x1/--no-stride-in-1x1", help="Where bottlenecks stride.")
]
Padding = Annotated[str | None, typer.Option(help="symmetric, or same (TensorFlow's).")]
Heads = Annotated[int | None, typer.Option(help="Attention heads, which no tensor tells.", min=1)]
Pixels = Annotated[
    str | None, typer.Option(help="mean/std/order that the weights expect, or imagenet, caffe, half, clip.")
]
Label = Annotated[str | None, typer.Option(help="What records and reports call the checkpoint.")]
Method = Annotated[str | None, typer.Option(help="How it was pretrained, where its file does not say.")]
PretrainedOn = Annotated[str | None, typer.Option(help="On what data, where its file does not say.")]
Epochs = Annotated[float | None, typer.Option(help="For how many epochs, where its file does not say.")]
InputSize = Annotated[
    int | None, typer.Option(help="On crops of how many pixels a side, where its file does not say.")
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
Executor = Annotated[str, typer.Option(help="inline, local, slurm, or a package's own.")]
Cluster = Annotated[str, typer.Option(help="A cluster's name or YAML file (slurm).")]
AtOnce = Annotated[int, typer.Option(help="Stages side by side (local).", min=1)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan, open the data; run nothing.")]
Follow = Annotated[bool, typer.Option("--follow", help="Stay until every job has ended (slurm).")]
