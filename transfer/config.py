"""Evaluation recipes: the union of all protocols, told apart by `task`, and the module that runs each."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from carryover.configs import UserError, register
from carryover.transfer.classify.config import FinetuneConfig
from carryover.transfer.classify.probe_config import KnnConfig, LinearConfig, SvmConfig, TsneConfig
from carryover.transfer.detect.config import DetectionConfig
from carryover.transfer.segment.config import SegmentationConfig

TransferConfig = Annotated[
    FinetuneConfig | LinearConfig | KnnConfig | SvmConfig | TsneConfig | DetectionConfig | SegmentationConfig,
    Field(discriminator="task"),
]

# Each module has `evaluate(config, checkpoint, out) -> ResultRecord`; it is imported when it is asked for.
PROTOCOLS: dict[type, Callable[[Any], str]] = {
    FinetuneConfig: lambda config: "carryover.transfer.classify.finetune",
    LinearConfig: lambda config: "carryover.transfer.classify.linear",
    KnnConfig: lambda config: "carryover.transfer.classify.knn",
    SvmConfig: lambda config: "carryover.transfer.classify.svm",
    TsneConfig: lambda config: "carryover.transfer.classify.tsne",
    DetectionConfig: lambda config: f"carryover.transfer.detect.{config.backend}_rcnn",
    SegmentationConfig: lambda config: f"carryover.transfer.segment.{config.backend}_fcn",
}

register("transfer", TransferConfig)


def check_roots(config: Any) -> None:
    """Raise UserError when the recipe's data root is not there, before anything heavy is imported."""
    root = getattr(getattr(config, "data", None), "root", None)
    if root is not None and not Path(root).expanduser().is_dir():
        raise UserError(f"data.root: {root}: no such directory")
