"""Backbones of other projects from file to number: converted, evaluated by every kind of task, interrupted.

    PYTHONPATH=path/to/detectron2 python benchmarks/backbones_end_to_end.py --makers CODE \
        --cifar CIFAR10 --voc BCCD --coco COCO

CODE holds the makers' checkouts (`benchmarks/makers_own_code.py`); CIFAR10 the folders train/CLASS and
test/CLASS, BCCD one VOC folder, COCO annotations and images of 2017. Every file is written by its maker's
own code with random weights, converted to every target and evaluated on a few of the images. Every evaluation
runs twice: undisturbed, and with a SIGTERM half way and a second command that goes on. What both leave is
compared byte by byte. Losses are means of the first and last five steps. Writes a dated table to
benchmarks/results/.
"""

import argparse
import datetime
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision  # noqa: F401 (here once, for all the forks)
from PIL import Image
from pycocotools.coco import COCO

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.makers_own_code import MAKERS, make_file
from benchmarks.measuring import RESULTS, write_table
from carryover.core.formats.receipt import read_receipt
from carryover.transfer.cli.main import main as carryover
from carryover.transfer.convert import TARGETS as registered

NETWORKS = (
    "DINO ViT-S/16",
    "DINOv2 ViT-S/14",
    "MAE ViT-S/16",
    "ConvNeXt-T (authors)",
    "torchvision ResNeXt-50",
)
TARGETS = {
    "canonical": ".safetensors",
    "torchvision": ".pth",
    "timm": ".safetensors",
    "mmseg": ".pth",
    "detectron2": ".pkl",
}
IMPORTED = tuple(
    f"carryover.transfer.tasks.{name}"
    for name in (
        "evaluate",
        *("knn.task", "linear.task", "finetune.task", "detection.task", "segmentation.task"),
        *("detection.torchvision.backend", "detection.detectron2.backend", "segmentation.mmseg.backend"),
    )
)
# What an evaluation leaves that no clock decides.
KEPT = ("*.safetensors", "outcomes.npz", "confusion.json", "predictions.json.gz", "choices.csv")


@dataclass(frozen=True)
class Data:
    """The images that are evaluated on: a few of each data set."""

    labeled: Path
    boxes: Path
    masks: Path


def take_labeled(source: Path, out: Path, train: int, test: int) -> Path:
    """Link the first images of every class."""
    for split, count in (("train", train), ("test", test)):
        for folder in sorted(p for p in (source / split).iterdir() if p.is_dir()):
            there = out / split / folder.name
            there.mkdir(parents=True)
            for picture in sorted(folder.iterdir())[:count]:
                (there / picture.name).symlink_to(picture.absolute())
    return out


def take_boxes(source: Path, out: Path, train: int, test: int) -> Path:
    """Link a VOC folder, with lists of its first images."""
    (out / "ImageSets" / "Main").mkdir(parents=True)
    for name in ("JPEGImages", "Annotations"):
        (out / name).symlink_to((source / name).absolute())
    for ours, theirs, count in (("few", "trainval", train), ("test", "test", test)):
        names = (source / "ImageSets" / "Main" / f"{theirs}.txt").read_text().split()[:count]
        (out / "ImageSets" / "Main" / f"{ours}.txt").write_text("\n".join(names) + "\n")
    return out


def take_masks(source: Path, out: Path, train: int, test: int) -> Path:
    """Paint masks of COCO's people (1) and other objects (2); crowds are ignored."""
    for split, count in (("train", train), ("val", test)):
        coco = COCO(str(source / "annotations" / f"instances_{split}2017.json"))
        for folder in ("images", "masks"):
            (out / split / folder).mkdir(parents=True)
        for image in coco.loadImgs(sorted(coco.getImgIds())[:count]):
            mask = np.zeros((image["height"], image["width"]), np.uint8)
            for note in coco.loadAnns(coco.getAnnIds(image["id"])):
                label = 255 if note["iscrowd"] else 1 if note["category_id"] == 1 else 2
                mask[coco.annToMask(note) == 1] = label
            name = Path(image["file_name"])
            Image.fromarray(mask).save(out / split / "masks" / f"{name.stem}.png")
            (out / split / "images" / name.name).symlink_to((source / f"{split}2017" / name.name).absolute())
    return out


def recipes(network: str, data: Data, steps: int) -> dict[str, list[str]]:
    """Return every evaluation as the arguments of `carryover evaluate`: a recipe and what is changed."""
    patch = 14 if "/14" in network else 16
    small, crop = 2 * patch, 4 * patch
    wide = [2 * crop, crop]
    shared = ["workers=0"]
    images = [
        f"data={{kind: imagefolder, name: CIFAR-10, root: '{data.labeled}', split: train, test_split: test}}",
        f"image.size={small}",
        f"image.resize={small}",
        "image.input_size=any",
        "precision=fp32",
        *shared,
    ]
    detection = [
        "demo_faster_fpn",
        f"data={{kind: voc, title: BCCD, root: '{data.boxes}', classes: [RBC, WBC, Platelets],"
        " train: [few], test: test, metric: area, defects: {absent_class: keep}}",
        f"input.min_sizes_train=[{5 * patch}]",
        f"input.max_size_train={8 * patch}",
        f"input.min_size_test={5 * patch}",
        f"input.max_size_test={8 * patch}",
        f"solver={{ims_per_batch: 2, reference_ims_per_batch: 2, base_lr: 0.005, max_iter: {steps},"
        f" steps: [{steps - 4}], warmup_iters: 4, precision: fp32}}",
        "precise_bn=0",
        "samples=0",
        "log_every=1",
        *shared,
    ]
    segmentation = [
        "fcn_folders",
        f"data={{root: '{data.masks}', title: COCO, classes: [background, person, object],"
        " train: {image_dir: train/images, mask_dir: train/masks},"
        " test: {image_dir: val/images, mask_dir: val/masks}}",
        "model={name: upernet, channels: 64, auxiliary: null}",
        f"input={{scale: {wide}, crop_size: [{crop}, {crop}], test_scale: {wide}}}",
        f"solver={{ims_per_batch: 2, reference_ims_per_batch: 2, base_lr: 0.05, max_iter: {steps}}}",
        "backend=mmseg",
        "samples=0",
        "log_every=1",
        *shared,
    ]
    return {
        "k-NN": ["knn_cifar10", "k=[5]", *images],
        "linear": [
            "linear_cifar10",
            "mode={batch_size: 20, base_lrs: [0.01], lr_per: 20, held_out: null, refit: false,"
            f" schedule: {{name: cosine, epochs: {steps // 10}, per: step}}}}",
            "log_every=1",
            *images,
        ],
        "10 % fine-tuning": [
            "cifar10_finetune_10percent",
            "batch_size=10",
            f"schedule={{name: cosine, epochs: {steps // 2}, per: step}}",
            "keep_weights=true",
            "log_every=1",
            *images,
        ],
        "detection, torchvision": [*detection, "backend=torchvision"],
        "detection, Detectron2": [*detection, "backend=detectron2"],
        "segmentation, mmseg": segmentation,
    }


def begun(arguments: Sequence[str], log: Path) -> int:
    """Begin a command of carryover in a process of its own, a fork of this one; return its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        written = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(written, 1)
        os.dup2(written, 2)
        sys.argv = ["carryover", *arguments]
        carryover()
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        status = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run(arguments: Sequence[str], log: Path) -> int:
    """Run a command to its end; return its exit status."""
    return os.waitstatus_to_exitcode(os.waitpid(begun(arguments, log), 0)[1])


def interrupted(arguments: Sequence[str], log: Path, half_way: Callable[[], bool]) -> int:
    """Run a command and ask it to stop half way; return its exit status."""
    pid = begun(arguments, log)
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if half_way():
            os.kill(pid, signal.SIGTERM)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        time.sleep(0.02)


def logged(out: Path) -> int:
    """Return how many steps a training has logged."""
    log = out / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def losses(out: Path) -> list[float]:
    """Return the loss of every step."""
    log = out / "metrics.jsonl"
    if not log.exists():
        return []
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def left(out: Path) -> dict[str, bytes]:
    """Return what an evaluation left, by name."""
    found = {p.name: p.read_bytes() for pattern in KEPT for p in sorted(out.glob(pattern))}
    found["losses"] = json.dumps(losses(out)).encode()
    found["metrics"] = json.dumps(json.loads((out / "result.json").read_text())["metrics"]).encode()
    return found


def evaluated(arguments: list[str], checkpoint: Path, folder: Path, steps: int) -> str:
    """Evaluate undisturbed and interrupted; return the row's cells."""
    log, recipe, changes = folder / "log.txt", arguments[0], arguments[1:]
    whole, parts = folder / "whole", folder / "parts"
    if "knn" in recipe:
        changes = [*changes, f"store={folder}/features"]
    called = {
        out: ["evaluate", recipe, "-c", str(checkpoint), "-o", str(out), *changes] for out in (whole, parts)
    }
    started = time.perf_counter()
    if status := run(called[whole], log):
        return f"failed ({status}): {last_line(log)} | | |"
    seconds = time.perf_counter() - started
    shutil.rmtree(folder / "features", ignore_errors=True)

    def half_way() -> bool:
        return logged(parts) >= steps // 2 or any((folder / "features").rglob("*.*"))

    stopped = interrupted(called[parts], log, half_way)
    taken = logged(parts)
    shown = f"{falls(losses(whole))} | {measured(whole)}"
    if (parts / "result.json").exists():
        return f"{shown} | was not interrupted | {seconds:.0f}"
    if status := run(called[parts], log):
        return f"{shown} | going on failed ({status}): {last_line(log)} | {seconds:.0f}"
    one, other = left(whole), left(parts)
    differing = sorted(n for n in one.keys() | other.keys() if one.get(n) != other.get(n))
    said = f"ended with {stopped} after {taken} steps; " if taken else f"ended with {stopped}; "
    said += f"differ: {', '.join(differing)}" if differing else f"equal: {', '.join(one)}"
    return f"{shown} | {said} | {seconds:.0f}"


def falls(values: list[float]) -> str:
    """Return the means of the first and last five losses."""
    if not values:
        return "no training"
    first, last = np.mean(values[:5]), np.mean(values[-5:])
    return f"{first:.3f} -> {last:.3f}{'' if last < first else ' (does not fall)'}"


def measured(out: Path) -> str:
    """Return the first metric of the record."""
    metric: dict[str, Any] = json.loads((out / "result.json").read_text())["metrics"][0]
    return f"{metric['name']} {metric['value']:.1f}"


def last_line(log: Path) -> str:
    """Return what a command said last."""
    lines = log.read_text().strip().splitlines() or [""]
    return lines[-1][:300].replace("|", "/")


def converted(file: Path, folder: Path, told: Sequence[str]) -> tuple[Path, str]:
    """Convert for every target; return the canonical file and the largest difference in each."""
    said, log = [], folder / "log.txt"
    for target, suffix in TARGETS.items():
        out = folder / f"{target}{suffix}"
        if status := run(["convert", str(file), "--to", target, "--out", str(out), *told], log):
            said.append(f"{target}: failed ({status}): {last_line(log)}")
            continue
        receipt = read_receipt(out)
        said.append(f"{target} {receipt.largest_difference:.1g}")
    return folder / "canonical.safetensors", ", ".join(said)


def row(network: str, name: str, words: list[str], checkpoint: Path, folder: Path, steps: int) -> str:
    """Return the row of one evaluation."""
    place = folder / "".join(c if c.isalnum() else "_" for c in name)
    place.mkdir()
    found = f"| {network} | {name} | {evaluated(words, checkpoint, place, steps)} |"
    print(found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("makers", "cifar", "voc", "coco"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=1, help="evaluations at a time")
    parser.add_argument("--networks", nargs="*", default=NETWORKS)
    parser.add_argument("--tasks", nargs="*", help="only these")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the table goes")
    parser.add_argument("--work", type=Path, help="a folder that is kept, with everything that was made")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    lines = [
        "# Backbones of other projects, from file to number",
        "",
        f"`python benchmarks/backbones_end_to_end.py` on {options.jobs} evaluations at a time,"
        f" {datetime.date.today().isoformat()}, torch {torch.__version__}, timm {timm.__version__}. Files by"
        " the makers' own code, random weights. Losses: mean of the first five steps -> of the last five, of"
        f" {options.steps}. Resumed: what an evaluation with a SIGTERM half way leaves (weights, outcomes,"
        " predictions, losses, metrics), byte by byte, against an undisturbed one.",
        "",
    ]
    # Imported once, for all the forks.
    for name in TARGETS:
        print(registered.get(name).version()[0] or registered.get(name).version()[1])
    for name in IMPORTED:
        importlib.import_module(name)
    work = options.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(work / "data", ignore_errors=True)
    data = Data(
        take_labeled(options.cifar, work / "data" / "labeled", 20, 5),
        take_boxes(options.voc, work / "data" / "boxes", 24, 4),
        take_masks(options.coco, work / "data" / "masks", 24, 4),
    )
    conversions = ["| network | largest difference of features in every target |", "|---|---|"]
    rows = ["| network | evaluation | losses | result | resumed | seconds |", "|---|---|---|---|---|---|"]
    for network in options.networks:
        folder = work / "".join(c if c.isalnum() else "_" for c in network)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        maker = MAKERS[network]
        file = make_file(maker, options.makers, folder)
        told = [word for key, value in maker.told.items() for word in (f"--{key}", value)]
        checkpoint, said = converted(file, folder, told)
        conversions.append(f"| {network} | {said} |")
        print(conversions[-1], flush=True)
        todo = {
            name: arguments
            for name, arguments in recipes(network, data, options.steps).items()
            if not options.tasks or name in options.tasks
        }
        cells = [(network, name, words, checkpoint, folder, options.steps) for name, words in todo.items()]
        with multiprocessing.get_context("fork").Pool(options.jobs) as pool:
            rows += pool.starmap(row, cells, chunksize=1)
        write_table("backbones-end-to-end", [*lines, *conversions, "", *rows], options.out)


if __name__ == "__main__":
    main()
