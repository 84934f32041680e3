"""What frozen-feature evaluation costs: many heads beside one, cached beside re-forwarded, k-NN's memory.

    python benchmarks/probe.py [--images 1000] [--classes 100] [--size 64] [--runs 5] [--threads 2]

A randomly initialized ResNet-18 on random images already decoded; times are medians of runs taken in turn.

- heads: one training step of 9 linear heads (3 rates x 3 weight decays) beside one of a single head, the
  frozen forward pass and the random crops included.
- cached: features extracted once and five logistic regressions fitted, beside 90 epochs of such steps
  (measured over one epoch, times 90).
- k-NN: peak memory of one search for growing numbers of training and test rows, each in a process of its own,
  beyond the features themselves.

Writes a dated table to benchmarks/results/.
"""

import argparse
import datetime
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measuring import write_table
from carryover.core.backbones.build import build_backbone
from carryover.core.data.datasets import MemoryImages
from carryover.core.data.labelled.config import ImageConfig
from carryover.core.data.prepared import Loader
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.training.distributed import Ranks
from carryover.core.training.provenance import hardware
from carryover.transfer.tasks.frozen.features import Request, stored_features
from carryover.transfer.tasks.knn.model import Neighborhood, classify, nearest
from carryover.transfer.tasks.linear.logistic import fit_path
from carryover.transfer.tasks.linear.model import StackedHeads, StackedSGD, head_losses

BATCH = 256
EPOCHS = 90
COSTS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
ALONE = Ranks(0, 1, torch.device("cpu"))


def training_epoch(images: MemoryImages, size: int, backbone: torch.nn.Module, heads: StackedHeads) -> float:
    """Return the seconds of one epoch of a linear evaluation by protocol."""
    augment = ImageConfig(size=size, resize=size).augment((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    loader = Loader(images, augment, min(BATCH, len(images)), seed=0, drop_last=False)
    optimizer = StackedSGD(heads)
    start = time.perf_counter()
    for batch in loader.epoch(0):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            features = backbone(batch.views[0].contiguous(memory_format=torch.channels_last)).float()
        assert batch.label is not None
        loss = head_losses(heads({"pooled": features}), batch.label).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return time.perf_counter() - start


def cached(images: MemoryImages, size: int, backbone: torch.nn.Module, classes: int) -> float:
    """Return the seconds of extracting features into an empty store and fitting every cost."""
    augment = ImageConfig(size=size, resize=size).augment((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    with tempfile.TemporaryDirectory() as store:
        start = time.perf_counter()
        request = Request("0" * 64, images, augment, ("pooled",), "bf16")
        features = stored_features(request, backbone, Path(store), ALONE, BATCH, 0)
        x = features.pooled
        fit_path((x - x.mean(0)) / x.std(0).clamp_min(1e-12), features.labels, classes, COSTS)
        return time.perf_counter() - start


def knn_peak(train: int, test: int, dim: int = 512, classes: int = 100) -> float:
    """Return the MiB that one k-NN search adds to a fresh process's peak, beyond the features."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_knn_peak, (train, test, dim, classes))


def _knn_peak(train: int, test: int, dim: int, classes: int) -> float:
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(train, dim, generator=generator)
    queries = torch.randn(test, dim, generator=generator)
    bank_labels = torch.arange(train) % classes
    hows = [Neighborhood(k, t) for k in (20, 200) for t in (0.07, 0.1)]
    # A first small search, so that libraries' own buffers are not counted.
    deque(classify(nearest(queries[:300], bank[:300], 200), bank_labels[:300], classes, hows), maxlen=0)
    # Linux: 5 sets the process's peak back to what it holds now.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _peak_mib()
    deque(classify(nearest(queries, bank, 200), bank_labels, classes, hows), maxlen=0)
    return _peak_mib() - before


def _peak_mib() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return float(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0] if __doc__ else None,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    load = os.getloadavg()[0]
    torch.manual_seed(0)
    size, classes = arguments.size, arguments.classes
    pixels = torch.randint(0, 256, (arguments.images, 3, size, size), dtype=torch.uint8)
    labels = [i % classes for i in range(arguments.images)]
    images = MemoryImages(pixels, labels, [str(c) for c in range(classes)])
    backbone = build_backbone(BackboneConfig(arch="resnet18")).eval().requires_grad_(False)
    backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    dims = {"pooled": backbone.feature_dim}
    one = StackedHeads(dims, [0.1], [0.0], classes)
    nine = StackedHeads(dims, [0.1, 0.3, 1.0], [0.0, 1e-5, 1e-4], classes)

    seconds: dict[str, list[float]] = {"one": [], "nine": [], "cached": []}
    for run in range(arguments.runs + 1):
        taken = {
            "one": training_epoch(images, size, backbone, one),
            "nine": training_epoch(images, size, backbone, nine),
            "cached": cached(images, size, backbone, classes),
        }
        if run:
            for name, value in taken.items():
                seconds[name].append(value)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    whole = EPOCHS * median["one"]

    sizes = [(20_000, 2_000), (80_000, 2_000), (20_000, 8_000), (80_000, 8_000)]
    peaks = {pair: knn_peak(*pair) for pair in sizes}

    lines = [
        "# What frozen-feature evaluation costs",
        "",
        f"`python benchmarks/probe.py --images {arguments.images} --classes {classes} --size {size}"
        f" --runs {arguments.runs} --threads {arguments.threads}`",
        "",
        f"{datetime.date.today().isoformat()}, {hardware()}, torch {torch.__version__}. ResNet-18,"
        f" {arguments.images} images of {size} px, {classes} classes; medians of {arguments.runs} runs;"
        f" load average before the first {load:.1f}.",
        "",
        "| what | seconds | beside | ratio | wanted |",
        "|---|---|---|---|---|",
        f"| one epoch, one head | {median['one']:.3f} | | | |",
        f"| one epoch, nine heads | {median['nine']:.3f} | one head |"
        f" {median['nine'] / median['one']:.2f} | at most 1.3 |",
        f"| {EPOCHS} epochs, one head ({EPOCHS} x the epoch) | {whole:.1f} | | | |",
        f"| features once, five values of C | {median['cached']:.2f} | {EPOCHS} epochs |"
        f" {whole / median['cached']:.0f} times faster | at least 10 |",
        "",
        "k-NN at k = 20 and 200, T = 0.07 and 0.1 in one search; memory beyond the features, in MiB:",
        "",
        "| training rows | test rows | peak | a whole matrix of similarities |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {train:,} | {test:,} | {peak:.0f} | {train * test * 4 / 2**20:.0f} |"
        for (train, test), peak in peaks.items()
    ]
    print("\n".join(lines))
    write_table("probe", lines)


if __name__ == "__main__":
    main()
