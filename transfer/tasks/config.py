"""The tasks by name, and the type of every evaluation recipe: its `task` says which of them it is."""

from pathlib import Path
from typing import Annotated, Any

from carryover.configs import UserError
from carryover.configs.registry import Registry, imported
from carryover.configs.tagged import Tagged
from carryover.transfer.tasks.recipe import EvaluationRecipe

TASKS: Registry[type[EvaluationRecipe]] = Registry("task", "carryover.tasks")
"""Recipe classes by task; a user's package adds one by an entry point of the group, or by `register_task`."""

for _name, _recipe in {
    "finetune": "finetune.config:FinetuneConfig",
    "linear": "linear.config:LinearConfig",
    "knn": "knn.config:KnnConfig",
    "svm": "svm.config:SvmConfig",
    "tsne": "tsne.config:TsneConfig",
    "detection": "detection.config:DetectionConfig",
    "segmentation": "segmentation.config:SegmentationConfig",
}.items():
    TASKS.register(_name, f"carryover.transfer.tasks.{_recipe}")

TransferConfig = Annotated[EvaluationRecipe, Tagged(TASKS, "task")]


def register_task(recipe: type[EvaluationRecipe]) -> type[EvaluationRecipe]:
    """Add a task for this process: the class of its recipes, whose `task` is its name.

    A package does the same for every process by an entry point of the group ``carryover.tasks``. May be used
    as a decorator.

    Raises UserError where another task has the name, or what is given is no class of recipes with a name.
    """
    name = None
    if isinstance(recipe, type) and issubclass(recipe, EvaluationRecipe):
        name = recipe.model_fields["task"].default
    if not isinstance(name, str):
        raise UserError(
            f"{getattr(recipe, '__name__', recipe)}: a task is registered by the class of its recipes, an"
            " EvaluationRecipe with a name, task: Literal['NAME'] = 'NAME'"
        )
    TASKS.register(name, recipe)
    return recipe


def implementation_of(config: EvaluationRecipe) -> Any:
    """Return the task that evaluates by a recipe, ready to run; raises UserError where it is not there."""
    from carryover.transfer.tasks.base import Task

    where, what = config.implementation, f"task '{config.task}': implementation"
    if ":" not in where:
        raise UserError(
            f"{what}: {type(config).__name__} must say what carries it out,"
            f" implementation: ClassVar[str] = 'module:Class' (got {where!r})"
        )
    try:
        found = imported(where)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{what}: {where}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise UserError(f"{what}: {where} is no Task")
    if found.__abstractmethods__:
        raise UserError(f"{what}: {where} lacks the method {', '.join(sorted(found.__abstractmethods__))}")
    return found()


def check_roots(config: Any) -> None:
    """Raise UserError when the recipe's data root is not there, before anything heavy is imported."""
    root = getattr(getattr(config, "data", None), "root", None)
    if root is not None and not Path(root).expanduser().is_dir():
        raise UserError(f"data.root: {root}: no such directory")
