"""Seconds a training iteration of a detector: the torchvision backend beside Detectron2, on the same recipe.

    python benchmarks/detection.py ROOT CHECKPOINT [--models c4 fpn] [--short-side 480] [--runs 5] [--steps 4]

ROOT holds a data set in Pascal VOC's layout, CHECKPOINT is a canonical backbone. Every turn is a process of
its own that trains through `carryover`'s loop for a few iterations that are not counted and `--steps` that
are, from files to updated weights: same recipe, images, resizing, batch, threads and precision, and each
library's own loader, detector and losses. The backends take turns, and medians are compared. Writes a dated
table to benchmarks/results/.
"""

import argparse
import datetime
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torchvision

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measuring import RESULTS, in_fresh_process, spread, write_table
from carryover.configs import load
from carryover.core.backbones.inspection import load_backbone
from carryover.core.backbones.source import open_source
from carryover.core.data.objects.splits import read_splits
from carryover.core.formats.claims import Work
from carryover.core.training.distributed import joined
from carryover.core.training.interrupt import StopRequest
from carryover.core.training.iterations import train_iterations
from carryover.core.training.provenance import hardware
from carryover.transfer.tasks.base import Run
from carryover.transfer.tasks.detection.config import DetectionConfig
from carryover.transfer.tasks.detection.detectron2 import library
from carryover.transfer.tasks.detection.task import backend_of
from carryover.transfer.tasks.identity import identify

BACKENDS = ("torchvision", "detectron2")
RECIPES = {"c4": "voc07_c4", "fpn": "voc0712_fpn_24k"}
WARM = 2


class Clock(StopRequest):
    """Asked after every iteration whether to stop, it notes the time and says no."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def requested(self) -> bool:
        self.times.append(time.perf_counter())
        return False


def seconds_an_iteration(backend: str, model: str, options: argparse.Namespace) -> float:
    """Train in this process; the median over the iterations that count."""
    config = load("transfer", RECIPES[model], overrides(backend, model, options))
    assert isinstance(config, DetectionConfig)
    splits = read_splits(config.data, needs_masks=config.model.masks)
    source = open_source(options.checkpoint)
    with tempfile.TemporaryDirectory() as out, joined() as ranks:
        work = Work(Path(out), config, identify(config, source))
        if backend == "detectron2":
            library.import_detectron2()
        run = Run(config, splits, source, Path(out), ranks, work)
        with backend_of(config).build(run) as detector:
            clock = Clock()
            train_iterations(run, detector, "benchmark", clock, lambda images: {})
    between = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
    return statistics.median(between[-options.steps :])


def overrides(backend: str, model: str, options: argparse.Namespace) -> list[str]:
    """What a short training on a CPU changes of a VOC recipe, alike for both libraries."""
    iterations = WARM + options.steps + 1
    norms = ["model.norm=BN"] + (["model.fpn_norm=BN", "model.head_norm=BN"] if model == "fpn" else [])
    return [
        f"backend={backend}",
        f"data.root={options.root}",
        f"data.classes=[{','.join(options.classes)}]",
        f"data.train=[{options.split}]",
        f"data.test={options.split}",
        # Nothing is tested here, so that no other images are needed.
        "data.defects.test_in_train=keep",
        *norms,
        f"input.min_sizes_train=[{options.short_side}]",
        f"solver.ims_per_batch={options.batch}",
        f"solver.reference_ims_per_batch={options.batch}",
        "solver.base_lr=0.001",
        f"solver.max_iter={iterations}",
        "solver.steps=[]",
        "solver.warmup_iters=1",
        f"solver.precision={options.precision}",
        "checkpoints=1",
        f"log_every={iterations}",
        "workers=0",
    ]


def compare(options: argparse.Namespace) -> list[str]:
    """Both libraries' seconds an iteration, and their ratio."""
    lines = [
        "| detector | torchvision / Detectron2 | torchvision, s | Detectron2, s |",
        "|---|---|---|---|",
    ]
    for model in options.models:
        found: dict[str, list[float]] = {name: [] for name in BACKENDS}
        for _ in range(options.runs):
            for name in BACKENDS:
                found[name].append(in_fresh_process([*sys.argv[1:], "--turn", name, model]))
        ratio = statistics.median(found["torchvision"]) / statistics.median(found["detectron2"])
        spans = [spread(values, 2) for values in found.values()]
        lines.append(f"| {RECIPES[model]} | {ratio:.2f} | {' | '.join(spans)} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--classes", nargs="+", default=["RBC", "WBC", "Platelets"], help="default: BCCD's")
    parser.add_argument(
        "--split", default="trainval", help='as recipes write it: "2007/trainval", "trainval"'
    )
    parser.add_argument("--models", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--short-side", type=int, default=480)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--turn", nargs=2, metavar=("BACKEND", "MODEL"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.turn:
        print(seconds_an_iteration(*options.turn, options))
        return
    if importlib.util.find_spec("detectron2") is None:
        raise SystemExit("Detectron2 is not importable: there is nothing to compare with")

    load_before = os.getloadavg()[0]
    lines = compare(options)
    _, metadata = load_backbone(options.checkpoint)
    text = [
        "# Training a detector: torchvision beside Detectron2",
        "",
        f"`python benchmarks/detection.py ROOT CHECKPOINT --short-side {options.short_side} --batch"
        f" {options.batch} --precision {options.precision} --runs {options.runs} --steps {options.steps}`",
        "",
        f"{datetime.date.today()}, {hardware()}, torch {torch.__version__}, torchvision"
        f" {torchvision.__version__}, {options.threads} threads; load average before the first run"
        f" {load_before:.1f}. {metadata.backbone.arch}, BN, {options.batch} images an iteration, shorter side"
        f" {options.short_side}, {options.precision}; seconds an iteration, median of {options.runs} runs"
        " (smallest to largest), each the median of its iterations. Detectron2 is its source tree, unbuilt:"
        " its RoIAlign and NMS are torchvision's.",
        "",
        *lines,
    ]
    write_table("detection", text, options.out)


if __name__ == "__main__":
    main()
