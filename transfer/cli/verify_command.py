"""Verification of a checkpoint: `carryover verify`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from carryover.transfer.cli.options import (
    Architecture,
    Encoder,
    Heads,
    Overrides,
    Padding,
    Pixels,
    Stem,
    Stride,
    network_of,
)

if TYPE_CHECKING:
    from carryover.core.backbones.stated import Stated
    from carryover.transfer.verify.config import VerifyConfig


def verify(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint file of any supported project.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file to write the result to.")] = None,
    encoder: Encoder = None,
    architecture: Architecture = None,
    stem: Stem = None,
    stride_in_1x1: Stride = None,
    padding: Padding = None,
    heads: Heads = None,
    pixels: Pixels = None,
) -> None:
    """Check that a checkpoint is what it claims to be, and name the likely cause if it is not.

    Keys: data.root=DIRECTORY (one folder per class, or any labeled data set with the keys of the tasks:
    data.kind, data.split, data.test_split), or images=FOLDER without labels; size, train_images,
    test_images, device. Exit status 1 if a cause is named: channel order, mean/std, stem, stride, padding,
    encoder, size, batch-norm statistics, random weights.
    """
    network = network_of(locals())
    if not print_verification(checkpoint, overrides or [], out, encoder, network):
        raise typer.Exit(1)


def print_verification(
    checkpoint: Path,
    overrides: Sequence[str],
    out: Path | None = None,
    encoder: str | None = None,
    network: "Stated | None" = None,
) -> bool:
    """Verify a checkpoint, print what was found and write it to `out`; return whether nothing is named."""
    from rich.text import Text

    from carryover.core.formats.checkpoint_files import checkpoint_file
    from carryover.transfer.studies.writing import out_console, print_table

    config = settings(overrides)
    checkpoint_file(checkpoint)
    from carryover.transfer.verify.text import HEADER, header, rows, write
    from carryover.transfer.verify.verify import verify as run

    found = run(checkpoint, config, encoder, network)
    for line in header(found):
        style = "bold red" if line.startswith("  verdict") and found.named is not None else ""
        out_console.print(Text(line, style=style), soft_wrap=True)
    if found.readings:
        print_table("The same tensors, read in other ways, on the same images", HEADER, rows(found))
    if out is not None:
        write(found, out)
        out_console.print(Text(str(out)), soft_wrap=True)
    return found.named is None


def settings(overrides: Sequence[str]) -> "VerifyConfig":
    """Return what KEY=VALUE pairs say of the images; raises UserError for an unknown key."""
    from carryover.configs.keys import with_default_tags
    from carryover.configs.loading import validate
    from carryover.configs.merging import apply_overrides
    from carryover.transfer.verify.config import VerifyConfig

    def of(**splits: object) -> VerifyConfig:
        base: dict[str, Any] = {"data": {"kind": "imagefolder", "split": "train", **splits}}
        stated = with_default_tags(VerifyConfig, apply_overrides(base, overrides, VerifyConfig))
        config: VerifyConfig = validate(VerifyConfig, stated, "carryover verify", overrides)
        return config

    config = of(test_split="val")
    if _holds_the_classes(config, overrides):
        return of(test_split="test", splits={"test": 0.2})
    return config


def _holds_the_classes(config: "VerifyConfig", overrides: Sequence[str]) -> bool:
    """Return whether data.root itself contains the folders of the classes, and no split was named."""
    data = config.data
    if data.kind != "imagefolder" or data.root is None:
        return False
    if any(word.startswith(("data.split", "data.test_split", "data={")) for word in overrides):
        return False
    root = data.root.expanduser()
    return root.is_dir() and not any((root / split).is_dir() for split in (data.split, data.test_split))
