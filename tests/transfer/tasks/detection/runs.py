"""Detection runs of a second: what shrinks them, stops them in the middle, and compares them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from carryover.configs import load
from carryover.transfer.tasks.detection.config import DetectionConfig

TINY = [
    # So few images do not show every class.
    "data.defects.absent_class=keep",
    "model.fpn_dim=16",
    "model.box_fc_dim=32",
    "model.rpn.post_nms_train=16",
    "model.rpn.post_nms_test=8",
    "model.roi.batch_per_image=8",
    "input.min_sizes_train=[64, 72]",
    "input.min_size_test=64",
    "solver.ims_per_batch=2",
    "solver.reference_ims_per_batch=2",
    "solver.max_iter=6",
    "solver.steps=[4]",
    "solver.warmup_iters=2",
    "precise_bn=1",
    "log_every=2",
    "samples=2",
]
# Only a pyramid has these: a C4 recipe refuses them.
_OF_A_PYRAMID = ("model.fpn", "model.box")
TINY_C4 = [key for key in TINY if not key.startswith(_OF_A_PYRAMID)]


def recipe(name: str | Path, shapes: Path, *more: str, tiny: Sequence[str] = TINY) -> DetectionConfig:
    """A demo recipe, made a run of a second; in float32, as bfloat16 kernels are not all deterministic."""
    config = load("transfer", name, overrides(shapes, *more, tiny=tiny))
    assert isinstance(config, DetectionConfig)
    return config


def overrides(shapes: Path, *more: str, tiny: Sequence[str] = TINY) -> list[str]:
    """What `recipe` overrides."""
    return [f"data.root={shapes}", "solver.precision=fp32", *tiny, *more]


def assert_same_files(one: Path, two: Path) -> None:
    """Two runs left the same weights, predictions, numbers and pictures."""
    for name in ("detector.safetensors", "predictions.json.gz", "metrics.jsonl"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert np.array_equal(*(sorted(p.name for p in (d / "samples").iterdir()) for d in (one, two)))
