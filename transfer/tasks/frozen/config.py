"""Options shared by the recipes of all frozen-feature tasks (torch-free)."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import NonNegativeInt, PositiveInt

from carryover.configs import Incidental
from carryover.core.data.labelled.config import ImageConfig
from carryover.transfer.tasks.recipe import EvaluationRecipe


class FrozenRecipe(EvaluationRecipe):
    """Base class of recipes that evaluate a frozen network.

    Attributes
    ----------
    feature
        Which features are read: "pooled", the network's own; of a vision transformer also "cls", "mean",
        "cls+mean", "cls@4" (the class tokens of the last four blocks) and "cls@4+mean"; or a stage by name.
    precision
        That of the network's forward pass; features are kept, and classifiers trained, in float32.
    extract_batch
        Images of one forward pass over all ranks where nothing is trained.
    store
        Folder of the feature store; None: ``features`` beside the checkpoint, or in the output directory
        where that cannot be written.
    """

    image: ImageConfig = ImageConfig()
    feature: str = "pooled"
    precision: Literal["bf16", "fp32"] = "fp32"
    seed: Annotated[NonNegativeInt, Incidental] = 0
    extract_batch: Annotated[PositiveInt, Incidental] = 256
    store: Annotated[Path | None, Incidental] = None
    workers: Annotated[NonNegativeInt, Incidental] = 4
