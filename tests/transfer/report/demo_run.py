"""A run directory as `carryover demo` leaves it, with made-up numbers."""

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from carryover.transfer.results.record import Metric, write_record
from tests.transfer.records import record

# Made-up levels: what each pretraining adds to random initialization, in points.
GAINS = {
    "random_demo": ("random", 0.0, 0.0),
    "simo_demo": ("simo", 30.0, 7.5),
    "sqrtkl_demo": ("sqrtkl", 30.0, 0.6),
    "supervised_demo": ("supervised", 30.0, 14.0),
    "unigrad_demo": ("unigrad", 30.0, 9.8),
}
FINETUNE = {"demo_finetune_1percent": (0.01, 20, 24.0, 1.0), "demo_finetune_10percent": (0.1, 200, 57.0, 0.6)}
DETECTORS = {
    "demo_faster_fpn": ("Faster R-CNN FPN", 31.0),
    "demo_faster_c4": ("Faster R-CNN C4", 22.0),
    "demo_mask_fpn": ("Mask R-CNN FPN", 29.0),
}


def write_demo_run(run: Path, seeds: int = 3, pictures: bool = True) -> Path:
    """Write records, training logs and samples of a demo below `run`, and return it."""
    rng = np.random.default_rng(0)
    for number, (pretrained, (method, epochs, gain)) in enumerate(GAINS.items()):
        stage = run / "stages" / "pretrain" / f"{pretrained}-seed0" / "out"
        stage.mkdir(parents=True)
        checkpoint = stage / "backbone.safetensors"
        checkpoint.write_bytes(b"not read by the report")
        if method != "random":
            looks = {
                "online_knn": 30 + gain,
                "online_linear": 35 + gain,
                "rankme": 60 + 4 * gain,
                "lidar": 9 + gain,
            }
            _write_log(stage, rng, 6 - number, 1.5, looks)
        shared = {
            "method": method,
            "pretrain_epochs": epochs,
            "pretrain_recipe": pretrained,
            "checkpoint": str(checkpoint),
            "checkpoint_sha256": f"{number + 1:x}" * 64,
            "pretrain_wall_seconds": 2.0 + 20 * epochs * (1 + number % 3),
        }
        evaluations = run / "stages" / "evaluate" / f"{pretrained}-seed0"
        for recipe, (fraction, images, level, noise) in FINETUNE.items():
            for seed in range(seeds):
                out = evaluations / f"{recipe}-seed{seed}" / "out"
                top1 = level + gain * (1 - fraction * 5) + rng.normal(0, noise)
                values = {"top1": top1, "top5": 100 - (100 - top1) * 0.55}
                metrics = [_metric(name, value, 500) for name, value in values.items()]
                write_record(
                    record(
                        **shared,
                        recipe=recipe,
                        recipe_hash=f"{images % 7 + 1}" * 64,
                        seed=seed,
                        metrics=tuple(metrics),
                        label_fraction=fraction,
                        train_images=images,
                        backend="carryover",
                        backend_version="0.1.0",
                        artifacts={"metrics": "metrics.jsonl"},
                    ),
                    out,
                )
                _write_log(out, rng, 2.3, 0.4, {"validation_top1": top1})
        for k, (recipe, (detector, level)) in enumerate(DETECTORS.items()):
            out = evaluations / f"{recipe}-seed0" / "out"
            value = level + 0.6 * gain + rng.normal(0, 1)
            write_record(
                record(
                    **shared,
                    task="detection",
                    recipe=recipe,
                    recipe_hash="abc"[k] * 64,
                    split="2007/test" if k < 2 else "test",
                    metrics=_detection_metrics(value, masks="Mask" in detector),
                    train_images=200,
                    model=detector,
                    facts={"iterations": 80},
                    artifacts={"metrics": "metrics.jsonl", "samples": "samples"},
                ),
                out,
            )
            looks = {"validation_AP": value} | ({"validation_mask_AP": 0.95 * value} if k == 2 else {})
            _write_log(out, rng, 2.0, 0.5, looks)
            if pictures:
                _write_samples(out / "samples", rng)
    return run


def _detection_metrics(value: float, masks: bool) -> tuple[Metric, ...]:
    found = {"AP": value, "AP50": value * 1.8, "AP75": value * 0.9}
    if not masks:
        return tuple(_metric(k, v, 100) for k, v in found.items())
    found |= {"APs": None, "APm": value * 0.8, "APl": value * 1.1}
    of_masks = {k: None if v is None else v * 0.95 for k, v in found.items()}
    return (
        *(_metric(k, v, 100) for k, v in found.items()),
        *(_metric(k, v, 100, of="mask") for k, v in of_masks.items()),
    )


def _metric(name: str, value: float | None, n: int, **params: str) -> Metric:
    """A metric with the interval of a proportion of that size over the test images."""
    if value is None:
        return Metric(name=name, params=params, value=None, n=n)
    half = 196 * math.sqrt(value / 100 * (1 - min(value, 99) / 100) / n)
    return Metric(
        name=name, params=params, value=value, n=n, low=max(0.0, value - half), high=min(100.0, value + half)
    )


def _write_log(
    out: Path, rng: np.random.Generator, start: float, end: float, looks: dict[str, float]
) -> None:
    """Write a loss from `start` to `end`, and every 60 steps numbers that rise to those of `looks`."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "step": step,
            "loss": end + (start - end) * math.exp(-step / 120) + float(rng.normal(0, 0.03)),
            "embedding_spread": 0.7 + 0.2 * (1 - math.exp(-step / 80)),
            "positive_similarity": 0.9 - 0.3 * math.exp(-step / 100),
        }
        | ({} if step % 60 else {k: v * (1 - math.exp(-step / 150)) for k, v in looks.items()})
        for step in range(10, 600, 10)
    ]
    (out / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")


def _write_samples(directory: Path, rng: np.random.Generator) -> None:
    directory.mkdir()
    for name in ("000003", "000057", "000101"):
        picture = Image.new("RGB", (320, 320), (90, 110, 120))
        pen = ImageDraw.Draw(picture)
        # The picture is the same for every pretraining; what is found in it is not.
        shown = np.random.default_rng(int(name))
        for _ in range(4):
            x, y, side = (int(v) for v in (*shown.integers(10, 220, 2), shown.integers(40, 90)))
            pen.ellipse((x, y, x + side, y + side), fill=tuple(int(v) for v in shown.integers(80, 255, 3)))
            pen.rectangle((x, y, x + side, y + side), outline="#FFFFFF", width=1)
            drawn = (*rng.integers(10, 220, 2), rng.integers(40, 90), *rng.integers(80, 255, 3))
            left, top, right, low, luck, _ = (int(v) % 13 - 6 for v in drawn)
            if luck > -4:
                box = (x + left, y + top, x + side + right, y + side + low)
                pen.rectangle(box, outline="#E69F00", width=2)
        picture.save(directory / f"{name}.png")
