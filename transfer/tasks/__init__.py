"""Evaluation tasks. A task of one's own is written with what is imported here (docs/adding-a-task.md)."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from carryover.core.data.labelled.config import ClassifyData
    from carryover.core.data.labelled.images import LabeledImages
    from carryover.core.data.labelled.labels import AllLabels, Labels
    from carryover.transfer.results.record import Facts, Metric
    from carryover.transfer.tasks.base import Outcome, Run, Task
    from carryover.transfer.tasks.config import register_task
    from carryover.transfer.tasks.facts import LabeledFacts
    from carryover.transfer.tasks.frozen.backbone import Frozen
    from carryover.transfer.tasks.frozen.config import FrozenRecipe
    from carryover.transfer.tasks.frozen.task import FrozenTask
    from carryover.transfer.tasks.recipe import EvaluationRecipe

# Imported when first asked for: recipes are read without torch.
_HOMES = {
    "carryover.core.data.labelled.config": ("ClassifyData",),
    "carryover.core.data.labelled.images": ("LabeledImages",),
    "carryover.core.data.labelled.labels": ("AllLabels", "Labels"),
    "carryover.transfer.results.record": ("Facts", "Metric"),
    "carryover.transfer.tasks.base": ("Outcome", "Run", "Task"),
    "carryover.transfer.tasks.config": ("register_task",),
    "carryover.transfer.tasks.facts": ("LabeledFacts",),
    "carryover.transfer.tasks.frozen.backbone": ("Frozen",),
    "carryover.transfer.tasks.frozen.config": ("FrozenRecipe",),
    "carryover.transfer.tasks.frozen.task": ("FrozenTask",),
    "carryover.transfer.tasks.recipe": ("EvaluationRecipe",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AllLabels",
    "ClassifyData",
    "EvaluationRecipe",
    "Facts",
    "Frozen",
    "FrozenRecipe",
    "FrozenTask",
    "LabeledFacts",
    "LabeledImages",
    "Labels",
    "Metric",
    "Outcome",
    "Run",
    "Task",
    "register_task",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'carryover.transfer.tasks' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value
