"""A vision transformer looked through: extraction beside the bare forward loop, 9 heads of a probe beside 1.

    python benchmarks/features_vit.py [--arch vit_small_patch16_224] [--images 32] [--runs 5] [--threads 1]

A randomly initialized network on random images already decoded. Processor seconds, sides in turn, medians of
the ratios of neighboring runs.

- extraction: the feature store (views, forward pass, files, checksums) beside `model(x)` over float tensors
  of the same views in the same batches.
- heads: steps of a linear evaluation on the class tokens of the last four blocks and the mean of the patches,
  with 9 heads (3 rates x 3 weight decays) and with one, forward pass and random crops included.

Writes a dated table to benchmarks/results/.
"""

import argparse
import datetime
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measuring import spread, write_table
from carryover.core.backbones.build import build_backbone
from carryover.core.data.datasets import MemoryImages
from carryover.core.data.labelled.config import ImageConfig
from carryover.core.data.prepared import EvaluationLoader, Loader
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.training.distributed import Ranks
from carryover.core.training.provenance import hardware
from carryover.transfer.tasks.frozen.depths import pooled
from carryover.transfer.tasks.frozen.features import Request, stored_features
from carryover.transfer.tasks.linear.model import StackedHeads, StackedSGD, head_losses

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEPTH = "cls@4+mean"
ALONE = Ranks(0, 1, torch.device("cpu"))


def extract(images: MemoryImages, size: int, backbone: nn.Module, batch: int) -> None:
    """Extract the pooled features into an empty store."""
    augment = ImageConfig(size=size, resize=size).augment(MEAN, STD)
    with tempfile.TemporaryDirectory() as store:
        request = Request("0" * 64, images, augment, ("pooled",), "fp32")
        stored_features(request, backbone, Path(store), ALONE, batch, 0)


def bare(batches: list[Tensor], backbone: nn.Module) -> None:
    """Run the network over batches that lie ready."""
    with torch.inference_mode():
        for x in batches:
            backbone(x)


def probe(images: MemoryImages, size: int, backbone: nn.Module, heads: StackedHeads, batch: int) -> None:
    """Train heads for an epoch, as a linear evaluation does."""
    loader = Loader(images, ImageConfig(size=size, resize=size).augment(MEAN, STD), batch, 0, drop_last=False)
    optimizer = StackedSGD(heads)
    for shown in loader.epoch(0):
        with torch.no_grad():
            features = pooled(backbone, shown.views[0], (DEPTH,))
        assert shown.label is not None
        loss = head_losses(heads(features), shown.label).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def processor_seconds(sides: Mapping[str, Callable[[], None]], runs: int) -> dict[str, list[float]]:
    """Return the processor seconds of every run of every side, in turn after one round not counted."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for run in range(runs + 1):
        for name, side in sides.items():
            start = time.process_time()
            side()
            if run:
                taken[name].append(time.process_time() - start)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--arch", default="vit_small_patch16_224")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig(arch=f"timm/{asked.arch}")).eval().requires_grad_(False)
    size = backbone.input_rule.size or 224
    pixels = torch.randint(0, 256, (asked.images, 3, size, size), dtype=torch.uint8)
    labels = [i % asked.classes for i in range(asked.images)]
    images = MemoryImages(pixels, labels, [str(c) for c in range(asked.classes)])
    augment = ImageConfig(size=size, resize=size).augment(MEAN, STD)
    batches = [b.views[0] for b in EvaluationLoader(images, augment, asked.batch, 0, 1, 0, ALONE.device)]
    dims = {DEPTH: pooled(backbone, batches[0][:1], (DEPTH,))[DEPTH].shape[1]}
    one = StackedHeads(dims, [0.1], [0.0], asked.classes)
    nine = StackedHeads(dims, [0.1, 0.3, 1.0], [0.0, 1e-5, 1e-4], asked.classes)
    seconds = processor_seconds(
        {
            "bare": lambda: bare(batches, backbone),
            "store": lambda: extract(images, size, backbone, asked.batch),
            "one": lambda: probe(images, size, backbone, one, asked.batch),
            "nine": lambda: probe(images, size, backbone, nine, asked.batch),
        },
        asked.runs,
    )
    rates = [b / s for b, s in zip(seconds["bare"], seconds["store"], strict=True)]
    heads = [n / o for n, o in zip(seconds["nine"], seconds["one"], strict=True)]
    lines = [
        "# A vision transformer looked through",
        "",
        f"`python benchmarks/features_vit.py --arch {asked.arch} --images {asked.images}"
        f" --batch {asked.batch} --classes {asked.classes} --runs {asked.runs} --threads {asked.threads}`",
        "",
        f"{datetime.date.today().isoformat()}, {hardware()}, torch {torch.__version__}; processor seconds,"
        f" medians (smallest to largest) of {asked.runs} runs in turn.",
        "",
        "| what | seconds | beside | ratio | wanted |",
        "|---|---|---|---|---|",
        f"| bare forward loop | {spread(seconds['bare'], 2)} | | | |",
        f"| features extracted and stored | {spread(seconds['store'], 2)} | bare loop, images a second |"
        f" {statistics.median(rates):.3f} ({min(rates):.3f} to {max(rates):.3f}) | at least 0.95 |",
        f"| one epoch, one head | {spread(seconds['one'], 2)} | | | |",
        f"| one epoch, nine heads | {spread(seconds['nine'], 2)} | one head |"
        f" {statistics.median(heads):.3f} ({min(heads):.3f} to {max(heads):.3f}) | at most 1.3 |",
    ]
    print("\n".join(lines))
    write_table("features-vit", lines)


if __name__ == "__main__":
    main()
