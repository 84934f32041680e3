"""Arguments of the commands on one checkpoint: inspect, convert, evaluate."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from carryover.transfer.cli.options import (
    Architecture,
    Encoder,
    Epochs,
    Heads,
    InputSize,
    Label,
    Method,
    Out,
    Overrides,
    Padding,
    Pixels,
    PretrainedOn,
    Stem,
    Stride,
    command_line,
    network_of,
)

if TYPE_CHECKING:
    from carryover.core.formats.said import Said


def inspect(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint file of any supported project.")],
    encoder: Encoder = None,
    architecture: Architecture = None,
    stem: Stem = None,
    stride_in_1x1: Stride = None,
    padding: Padding = None,
    heads: Heads = None,
    pixels: Pixels = None,
    method: Method = None,
    tensors: Annotated[bool, typer.Option("--tensors", "--verbose", "-v", help="List every tensor.")] = False,
    reference_script: Annotated[
        bool,
        typer.Option(
            "--reference-script",
            help="Print a script for the authors' code that writes the file for `convert --against`.",
        ),
    ] = False,
) -> None:
    """Print the layout and backbone of a checkpoint, its coverage, and what is assumed."""
    from carryover.core.backbones.light import short_lived

    network = network_of(locals(), "method")
    with short_lived():
        from carryover.core.backbones.remembered import look_into

        found = look_into(checkpoint, encoder, network)
    if reference_script:
        from carryover.core.backbones.reference_script import script_for

        typer.echo(script_for(found))
    else:
        typer.echo(found.report(tensors))


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint file of any supported project.")],
    to: Annotated[str, typer.Option(help="Target: detectron2, mmseg, torchvision, timm or canonical.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File to write; the receipt is written beside it.")
    ],
    encoder: Encoder = None,
    architecture: Architecture = None,
    stem: Stem = None,
    stride_in_1x1: Stride = None,
    padding: Padding = None,
    heads: Heads = None,
    pixels: Pixels = None,
    label: Label = None,
    method: Method = None,
    pretrained_on: PretrainedOn = None,
    epochs: Epochs = None,
    input_size: InputSize = None,
    against: Annotated[
        Path | None, typer.Option(help="The authors' features as .npz (`inspect --reference-script`).")
    ] = None,
) -> None:
    """Convert a checkpoint, and verify that the target library loads all of it."""
    from carryover.transfer.cli.commands import convert_checkpoint

    network = network_of(locals())
    said = _said(label, method, pretrained_on, epochs, input_size)
    typer.echo(convert_checkpoint(checkpoint, to, out, encoder, said, network, against))


def evaluate(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or YAML file.")],
    checkpoint: Annotated[
        Path,
        typer.Option("--checkpoint", "-c", help="Checkpoint file of carryover or any supported project."),
    ],
    overrides: Overrides = None,
    out: Out = None,
    encoder: Encoder = None,
    architecture: Architecture = None,
    stem: Stem = None,
    stride_in_1x1: Stride = None,
    padding: Padding = None,
    heads: Heads = None,
    pixels: Pixels = None,
    label: Label = None,
    method: Method = None,
    pretrained_on: PretrainedOn = None,
    epochs: Epochs = None,
    input_size: InputSize = None,
) -> None:
    """Evaluate a checkpoint with one recipe; run again to resume."""
    from carryover.slurm.processes import leaving
    from carryover.transfer.cli.commands import evaluate_checkpoint

    network = network_of(locals())
    said = _said(label, method, pretrained_on, epochs, input_size)
    with leaving():
        evaluate_checkpoint(recipe, checkpoint, overrides or [], out, encoder, said, network, command_line())


def _said(
    label: str | None, method: str | None, dataset: str | None, epochs: float | None, input_size: int | None
) -> "Said":
    from carryover.core.formats.said import Said

    return Said(label, method, dataset, epochs, input_size)
