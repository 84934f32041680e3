"""Records of runs that followed a shipped recipe, perhaps with overrides."""

from typing import Any

from carryover.configs import load, protocol, recipe_hash
from carryover.transfer.results.record import Metric, ResultRecord
from tests.transfer.records import record


def run_of(name: str, *overrides: str, metrics: dict[str, float], **changes: Any) -> ResultRecord:
    """Return a record of a ResNet-50 under the shipped recipe `name`, changed by `overrides`."""
    recipe = load("transfer", name, overrides)
    fields: dict[str, Any] = {
        "task": recipe.task,
        "recipe": recipe.name,
        "recipe_hash": recipe_hash(recipe),
        "protocol": protocol(recipe),
        "dataset": recipe.data.title,
        "backend": getattr(recipe, "backend", "torchvision"),
        "backbone": "resnet50",
        "metrics": tuple(Metric(name=n, value=v, n=4952) for n, v in metrics.items()),
    }
    return record(**(fields | changes))
