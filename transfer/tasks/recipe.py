"""Base class of evaluation recipes (torch-free)."""

from typing import Annotated, Any, ClassVar

from pydantic import NonNegativeInt

from carryover.configs import Incidental, Recipe
from carryover.core.training.device_name import DeviceName


class EvaluationRecipe(Recipe):
    """The recipe of one task: its keys are the class's fields, and the class says what carries them out.

    Attributes
    ----------
    implementation
        The `transfer.tasks.base.Task` that evaluates by such a recipe, as ``module:attribute``: it is
        imported when an evaluation begins, so that recipes are read and checked without torch.
    task
        The task's name, by which recipes and records know it: ``task: Literal["knn"] = "knn"``.
    data
        The section that names the data set. It has `root`, `title`, `test_label` and `contents()`; see
        `core.data.labelled.config.ClassifyData`.
    device
        What it runs on: auto (a GPU when there is one), cpu, cuda, xpu, mps, or another backend of torch.
    """

    implementation: ClassVar[str] = ""

    task: str
    data: Any
    seed: Annotated[NonNegativeInt, Incidental] = 0
    device: DeviceName = "auto"
