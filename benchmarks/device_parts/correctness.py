"""Correctness: what a device computes beside what the CPU computes, and beside itself after a resume."""

import json
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.device_parts.row import Row, Setting
from carryover.configs import load
from carryover.core.backbones.build import build_backbone
from carryover.core.data.shapes.write import write_shapes
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.formats.canonical import CanonicalMetadata, save_canonical
from carryover.core.training import loop
from carryover.core.training.interrupt import Interrupted
from carryover.pretrain.trainer import train
from carryover.transfer.tasks.evaluate import evaluate

TWO = "augment.views=two"
SINGLE = "augment.views=single"
MULTICROP = ("augment.views=multicrop", "augment.local={count: 2, view: {size: 16}}")
PREDICTOR = "predictor: {hidden: 256}"
METHODS: dict[str, tuple[str, ...]] = {
    "unigrad": ("method={name: unigrad}", TWO),
    "unigrad, CutMix, multi-crop": ("method={name: unigrad}", "augment.cutmix.alpha=1", *MULTICROP),
    "simo": ("method={name: simo, negatives: 15}", TWO),
    "moco": ("method={name: moco, queue: 64, symmetric: true}", TWO),
    "simclr": ("method={name: simclr}", TWO),
    "byol": (f"method={{name: byol, {PREDICTOR}}}", TWO),
    "simsiam": (f"method={{name: simsiam, {PREDICTOR}}}", TWO),
    "directpred": ("method={name: directpred}", TWO),
    "barlow_twins": ("method={name: barlow_twins}", TWO),
    "vicreg": ("method={name: vicreg, lam1: 1, lam2: 6}", TWO),
    "msbreg": (f"method={{name: msbreg, {PREDICTOR}}}", *MULTICROP),
    "sqrtkl": ("method={name: sqrtkl}", SINGLE, "projector={depth: 1, out: 64, norm: none}"),
    "sqrtkl, sharded": (
        "method={name: sqrtkl, bank_sharded: true}",
        SINGLE,
        "projector={depth: 1, out: 64, norm: none}",
    ),
    "npid": ("method={name: npid, proximal: 1}", SINGLE, "projector={depth: 1, out: 64, norm: none}"),
    "supervised": ("method={name: supervised}", SINGLE, "projector=null"),
}
# At these rates a few steps do not amplify rounding.
CALM = (
    "source=benchmark",
    "backbone={arch: resnet18, stem: cifar}",
    "projector={depth: 2, hidden: 128, out: 64, norm: batch}",
    "augment.view={size: 32}",
    "optimizer={name: sgd, base_lr: 0.01, momentum: 0.9}",
    "precision=fp32",
    "channels_last=false",
    "tensorboard=false",
    "log_every=1",
    "workers=0",
    "seed=0",
)
# Relative: rounding of another library of convolutions, after one step and after all of them.
FIRST, LAST = 1e-4, 2e-2


def methods(setting: Setting) -> Iterator[Row]:
    """Train every method a few steps on both devices, from the same weights and images."""
    steps, batch = (3, 8) if setting.tiny else (20, 32)
    data = shapes_for(setting).classification
    chosen = list(METHODS.items())[::6] if setting.tiny else list(METHODS.items())
    for name, overrides in chosen:
        shared = (*CALM, f"data={{kind: imagefolder, name: shapes, root: {data}, resize: 32}}")
        shared = (
            *shared,
            f"batch_size={batch}",
            "schedule={epochs: 1}",
            f"data.subset.count={batch * steps}",
        )
        losses, waits = [], 0.0
        for device in ("cpu", str(setting.device)):
            config: Any = load("pretrain", _base(setting), [*shared, *overrides, f"device={device}"])
            out = _fresh(setting.folder / "method")
            with _waits_counted(setting.device) as counted:
                train(config, out)
            waits = counted()
            lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            losses.append([row["loss"] for row in map(json.loads, lines) if "loss" in row])
        apart = [abs(a - b) / max(abs(a), 1e-6) for a, b in zip(*losses, strict=True)]
        reached = apart[0] <= FIRST and max(apart) <= LAST
        said = f"step 1: {apart[0]:.1e}, {len(apart)} steps: {max(apart):.1e}"
        what = f"{name}: losses beside the CPU's" + (f"; waits in all: {waits:.0f}" if waits else "")
        yield Row(what, said, max(apart), "0", None, f"<= {FIRST:g}, <= {LAST:g}", reached)


def resume(setting: Setting) -> Iterator[Row]:
    """Stop a fine-tuning, a detection and a segmentation on the device, go on, and compare the weights."""
    shapes, network = shapes_for(setting), network_for(setting)
    device, small = f"device={setting.device}", setting.tiny
    masks = masks_of(shapes.detection, setting.folder / "masks")
    tiny_detector = [
        "model.fpn_dim=32",
        "model.box_fc_dim=64",
        "input.min_sizes_train=[64]",
        "input.min_size_test=64",
    ]
    runs: dict[str, tuple[str, list[str], str]] = {
        "fine-tuning": (
            "demo_finetune_10percent",
            [
                f"data.root={shapes.classification}",
                "labels.fraction=0.5",
                "schedule.epochs=2",
                "batch_size=8",
                "optimizer.lr_per=8",
                "keep_weights=true",
            ],
            "classifier.safetensors",
        ),
        "detection": (
            "demo_faster_fpn",
            [
                f"data.root={shapes.detection}",
                "data.defects.absent_class=keep",
                "solver.max_iter=6",
                "solver.steps=[4]",
                "solver.warmup_iters=2",
                "precise_bn=0",
                *(tiny_detector if small else []),
            ],
            "detector.safetensors",
        ),
        "segmentation": (
            "fcn_folders",
            [
                f"data.root={masks}",
                "data.classes=[background, thing]",
                "solver.max_iter=6",
                "solver.ims_per_batch=2",
                "solver.reference_ims_per_batch=2",
                *(
                    ["model.channels=16", "input.crop_size=[48, 48]", "input.scale=[128, 64]"]
                    if small
                    else []
                ),
            ],
            "segmenter.safetensors",
        ),
    }
    for name, (recipe, overrides, weights) in runs.items():
        config: Any = load("transfer", recipe, [*overrides, device, "workers=0", "log_every=100"])
        whole, parts = (_fresh(setting.folder / f"{name}-{part}") for part in ("whole", "parts"))
        evaluate(config, network, whole)
        with _stopped_after(3), suppress(Interrupted):
            evaluate(config, network, parts)
        stopped = not (parts / weights).exists()
        evaluate(config, network, parts)
        first, second = load_file(whole / weights), load_file(parts / weights)
        apart = max(float((first[k].float() - second[k].float()).abs().max()) for k in first)
        most = max(float(value.float().abs().max()) for value in first.values())
        said = f"largest difference {apart:.1e} of {most:.3g}"
        # Kernels of a GPU that add in any order are not exact: what counts is that the run is the same one.
        reached = stopped and apart <= 1e-3 * most
        yield Row(f"{name}: gone on with", said, apart, "0", None, "<= 1e-3 of it", reached)


def _base(setting: Setting) -> Path:
    path = setting.folder / "base.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("source: benchmark\n", encoding="utf-8")
    return path


def shapes_for(setting: Setting) -> Any:
    counts = (48, 12, 8) if setting.tiny else (800, 200, 24)
    return write_shapes(
        setting.folder / f"shapes-{counts[0]}", n_train=counts[0], n_val=counts[1], n_detection=counts[2]
    )


def network_for(setting: Setting) -> Path:
    path = setting.folder / "backbone.safetensors"
    config = BackboneConfig(arch="resnet18" if setting.tiny else "resnet50")
    torch.manual_seed(0)
    about = {
        "backbone": config,
        "input_size": 64,
        "method": "random",
        "epochs": 0,
        "dataset": "none",
        "seed": 0,
        "recipe": "random",
        "recipe_hash": None,
        "git_revision": "unknown",
        "library_versions": {},
    }
    save_canonical(path, build_backbone(config).state_dict(), CanonicalMetadata.model_validate(about))
    return path


def masks_of(detection: Path, out: Path) -> Path:
    """Paint a mask of boxes beside every picture: what is segmented does not matter here."""
    from PIL import Image, ImageDraw

    if out.exists():
        return out
    for ours, theirs in (("train", "train"), ("val", "test")):
        annotations = json.loads((detection / "annotations" / f"{theirs}.json").read_text(encoding="utf-8"))
        for folder in ("images", "masks"):
            (out / ours / folder).mkdir(parents=True)
        for image in annotations["images"]:
            mask = Image.new("L", (image["width"], image["height"]))
            for thing in (a for a in annotations["annotations"] if a["image_id"] == image["id"]):
                x, y, width, height = thing["bbox"]
                ImageDraw.Draw(mask).rectangle((x, y, x + width, y + height), fill=1)
            name = Path(image["file_name"])
            mask.save(out / ours / "masks" / f"{name.stem}.png")
            shutil.copy(detection / "VOC2007" / "JPEGImages" / name.name, out / ours / "images" / name.name)
    return out


def _fresh(out: Path) -> Path:
    shutil.rmtree(out, ignore_errors=True)
    return out


@contextmanager
def _stopped_after(step: int) -> Iterator[None]:
    """Send this process SIGTERM after a step of its training."""
    before = loop.after_step
    loop.after_step = lambda taken: os.kill(os.getpid(), signal.SIGTERM) if taken == step else None
    try:
        yield
    finally:
        loop.after_step = before


@contextmanager
def _waits_counted(device: torch.device) -> Iterator[Callable[[], float]]:
    """Count how often CUDA makes the host wait; other devices do not tell."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lambda: float(sum("synchronizing" in str(warning.message) for warning in said))
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
