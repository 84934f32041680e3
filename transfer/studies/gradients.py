"""carryover study gradients: every method's gradient beside every other's, as a table and as a picture."""

import csv
import io
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import TYPE_CHECKING

from carryover.configs import load
from carryover.transfer.studies.writing import (
    make,
    markdown,
    out_console,
    print_table,
    provenance_line,
    rounded,
    short,
    write,
)

if TYPE_CHECKING:
    from carryover.pretrain.config import PretrainConfig
    from carryover.pretrain.studies.gradients import GradientComparison, TwoViews

# Views, projector and the rest of what all methods share: those of UniGrad's Table 2.
_COMMON = "unigrad_table2e_unigrad"


@dataclass(frozen=True)
class Asked:
    """Inputs of the comparison; `images` None: shapes, `checkpoint` None: random weights."""

    images: Path | None
    checkpoint: Path | None
    batch_size: int
    size: int
    width: int
    seed: int


def gradients(asked: Asked, out: Path | None, command: str) -> None:
    """Compare the methods, print the tables, and write them and the heat-map to `out`.

    Raises UserError where there are fewer images than two batches, or the checkpoint cannot be read.
    """
    from carryover.pretrain.studies.gradients import SUBJECTS, compare_gradients, overrides

    make(out)
    started = time.monotonic()
    if asked.images is not None:
        earlier, batch = _embedded(asked, asked.images)
    else:
        from carryover.core.data.shapes.write import write_shapes

        with tempfile.TemporaryDirectory() as folder:
            count = max(2 * asked.batch_size, 32)
            shapes = write_shapes(
                Path(folder) / "shapes", seed=asked.seed, n_train=count, n_val=32, n_detection=4
            )
            earlier, batch = _embedded(asked, shapes.classification)
    configs: dict[str, PretrainConfig] = {}
    for title, recipe in SUBJECTS.items():
        method = load("pretrain", recipe).method.name
        changed = overrides(method, asked.batch_size, asked.width)
        configs[title] = load("pretrain", recipe, [*changed, f"seed={asked.seed}"])
    compared = compare_gradients(configs, earlier, batch)
    seconds = time.monotonic() - started

    cosine, ratio = cosine_rows(compared), ratio_rows(compared)
    header = ["", "method", *ascii_lowercase[: len(compared.names)]]
    print_table("cosine similarity of the gradients", header, cosine)
    print_table("norm of the row's gradient in units of the column's", header, ratio)
    if out is None:
        return
    from carryover.transfer.studies.heatmap import draw_gradients

    draw_gradients(compared, out)
    out_console.print(str(out / "gradients.svg"), soft_wrap=True)
    story = [
        "# The methods' gradients on one batch",
        f"Each method's loss, differentiated in the same {asked.batch_size} x {asked.width} embeddings of the"
        " first view; target branch at rest, queue, F and bank from the batch before. Images:"
        f" {asked.images or 'procedural shapes'}; backbone: {asked.checkpoint or 'random ResNet-18'}.",
        f"`{command}`",
        provenance_line(asked.seed, seconds),
        "Cosine similarity:",
        markdown(header, cosine),
        "Norm of the row's gradient in units of the column's:",
        markdown(header, ratio),
    ]
    write(out / "gradients.md", "\n\n".join(story) + "\n")
    write(out / "gradients.csv", _csv(compared))


def cosine_rows(compared: "GradientComparison") -> list[list[str]]:
    """Return the table of cosines as text, a letter and a name before each row."""
    return _rows(compared, [[rounded(value) for value in row] for row in compared.cosine.tolist()])


def ratio_rows(compared: "GradientComparison") -> list[list[str]]:
    """Return the table of norm ratios as text."""
    return _rows(compared, [[short(value) for value in row] for row in compared.norm_ratio.tolist()])


def _rows(compared: "GradientComparison", cells: Sequence[Sequence[str]]) -> list[list[str]]:
    return [
        [letter, name, *row]
        for letter, name, row in zip(ascii_lowercase, compared.names, cells, strict=False)
    ]


def _csv(compared: "GradientComparison") -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "other", "cosine", "norm_ratio"])
    cosine, ratio = compared.cosine.tolist(), compared.norm_ratio.tolist()
    for i, name in enumerate(compared.names):
        for j, other in enumerate(compared.names):
            writer.writerow([name, other, f"{cosine[i][j]:.6f}", f"{ratio[i][j]:.6g}"])
    return text.getvalue()


def _embedded(asked: Asked, root: Path) -> "tuple[TwoViews, TwoViews]":
    """Two views each of two batches of images, embedded by the common network as it would in training."""
    import torch

    from carryover.core.backbones.build import build_backbone
    from carryover.core.data.prepared import Loader, build_dataset
    from carryover.core.formats.backbone import BackboneConfig
    from carryover.pretrain.heads import Encoder, build_projector
    from carryover.pretrain.studies.gradients import TwoViews

    torch.manual_seed(asked.seed)
    pixels: list[str] = []
    if asked.checkpoint is None:
        backbone: torch.nn.Module = build_backbone(BackboneConfig(arch="resnet18"))
        width = 512
    else:
        from carryover.core.backbones.inspection import load_backbone

        backbone, about = load_backbone(asked.checkpoint)
        width = int(getattr(backbone, "feature_dim"))  # noqa: B009 (Module's attributes are untyped)
        pixels = [f"augment.mean={list(about.pixel_mean)}", f"augment.std={list(about.pixel_std)}"]
    views = [f"data.root={root}", f"augment.view.size={asked.size}", f"seed={asked.seed}"]
    config: PretrainConfig = load("pretrain", _COMMON, [*views, *pixels])
    assert config.projector is not None
    projector = config.projector.model_copy(update={"out": asked.width})
    network = Encoder(backbone, build_projector(projector, width), False).train()

    dataset = build_dataset(config.data)
    loader = Loader(dataset, config.augment, asked.batch_size, asked.seed, 0, 1, 0)
    batches = iter(loader.epoch(0))
    with torch.no_grad():
        found = []
        for _ in range(2):
            first, second = next(batches).views
            found.append(TwoViews(network(first), network(second)))
    return found[0], found[1]
