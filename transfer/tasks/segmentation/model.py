"""Interface between a library and a segmentation run."""

from typing import Any, Protocol

import numpy as np
from torch import nn

from carryover.configs import UserError
from carryover.core.backbones.layers import UNDECAYED
from carryover.core.data.masks.dataset import SegmentationImage
from carryover.core.data.masks.splits import Splits
from carryover.core.training.distributed import Ranks
from carryover.transfer.tasks.backend import Model
from carryover.transfer.tasks.base import Run
from carryover.transfer.tasks.optimizers import Decay
from carryover.transfer.tasks.segmentation.config import SegmentationConfig, SolverConfig
from carryover.transfer.tasks.segmentation.model_config import UPerNetConfig

SegmentationRun = Run[SegmentationConfig, Splits]

CAUSE = "the learning rate is too high for this batch"


def decay_of(solver: SolverConfig) -> Decay:
    """Return the weight decay of every parameter of a segmenter."""

    def decay(module: nn.Module, name: str) -> float:
        light = module.get_parameter(name).ndim <= 1 or name in UNDECAYED
        return 0.0 if solver.decay_weights_only and light else solver.weight_decay

    return decay


def require_batches(config: SegmentationConfig, ranks: Ranks) -> None:
    """Raise UserError where UPerNet's batch normalization would see a single pixel."""
    model, size = config.model, config.solver.ims_per_batch
    together = size if model.norm == "SyncBN" else size // ranks.world
    if isinstance(model, UPerNetConfig) and 1 in model.pool_scales and together == 1:
        raise UserError(
            "solver.ims_per_batch: UPerNet pools each image to one pixel, and batch normalization needs more"
            " than one of them; give it at least 2 images"
        )


class Segmenter(Model[Any], Protocol):
    """A segmenter of some library."""

    def segment(self, source: SegmentationImage) -> np.ndarray:
        """Return the label of every pixel of a test image, (height, width) uint8, at its own size."""
