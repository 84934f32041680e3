"""Evaluation recipes: the union of all protocols, told apart by `task`, and the module that runs each."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from carryover.configs import UserError, register
from carryover.transfer.tasks.detection.config import DetectionConfig
from carryover.transfer.tasks.finetune.config import FinetuneConfig
from carryover.transfer.tasks.knn.config import KnnConfig
from carryover.transfer.tasks.linear.config import LinearConfig
from carryover.transfer.tasks.segmentation.config import SegmentationConfig
from carryover.transfer.tasks.svm.config import SvmConfig
from carryover.transfer.tasks.tsne.config import TsneConfig

TransferConfig = Annotated[
    FinetuneConfig | LinearConfig | KnnConfig | SvmConfig | TsneConfig | DetectionConfig | SegmentationConfig,
    Field(discriminator="task"),
]

# Each module has `evaluate(config, checkpoint, out) -> ResultRecord`; it is imported when it is asked for.
PROTOCOLS: dict[type, Callable[[Any], str]] = {
    FinetuneConfig: lambda config: "carryover.transfer.tasks.finetune.entry",
    LinearConfig: lambda config: "carryover.transfer.tasks.linear.task",
    KnnConfig: lambda config: "carryover.transfer.tasks.knn.task",
    SvmConfig: lambda config: "carryover.transfer.tasks.svm.task",
    TsneConfig: lambda config: "carryover.transfer.tasks.tsne.task",
    DetectionConfig: lambda config: f"carryover.transfer.tasks.detection.{config.backend}.entry",
    SegmentationConfig: lambda config: f"carryover.transfer.tasks.segmentation.{config.backend}.entry",
}

register("transfer", TransferConfig)


def check_roots(config: Any) -> None:
    """Raise UserError when the recipe's data root is not there, before anything heavy is imported."""
    root = getattr(getattr(config, "data", None), "root", None)
    if root is not None and not Path(root).expanduser().is_dir():
        raise UserError(f"data.root: {root}: no such directory")
