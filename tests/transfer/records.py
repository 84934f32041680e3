"""Result records for tests: complete, and different only where a test says so."""

from typing import Any

from carryover.transfer.results.record import Metric, ResultRecord


def record(value: float | None = 50.0, metric: str = "top1", **changes: Any) -> ResultRecord:
    """Return a valid record whose single metric is `value` (or `metrics=` as given)."""
    fields: dict[str, Any] = {
        "method": "unigrad",
        "pretrain_epochs": 10.0,
        "pretrain_dataset": "shapes",
        "pretrain_seed": 0,
        "pretrain_recipe": "unigrad_demo",
        "backbone": "resnet18",
        "checkpoint": "/models/backbone.safetensors",
        "checkpoint_sha256": "a" * 64,
        "recipe": "one_percent",
        "recipe_hash": "b" * 64,
        "task": "finetune",
        "dataset": "shapes",
        "split": "val",
        "backend": "torchvision",
        "backend_version": "0.29",
        "seed": 0,
        "metrics": (Metric(name=metric, value=value, n=500),),
        "train_images": 20,
        "wall_seconds": 3.0,
        "gpu_hours": 0.0,
        "hardware": "2 cores",
        "git_revision": "abc",
        "library_versions": {"torch": "2.15"},
        "host": "here",
        "job_id": None,
        "finished": "2026-01-01T00:00:00+00:00",
    }
    return ResultRecord(**(fields | changes))
