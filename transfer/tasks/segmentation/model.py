"""Interface between a library and a segmentation run."""

from typing import Any, Protocol

import numpy as np
from torch import nn

from carryover.core.backbones.layers import UNDECAYED
from carryover.core.data.masks.dataset import SegmentationImage
from carryover.core.data.masks.splits import Splits
from carryover.transfer.tasks.backend import Model
from carryover.transfer.tasks.base import Run
from carryover.transfer.tasks.optimizers import Decay
from carryover.transfer.tasks.segmentation.config import SegmentationConfig, SolverConfig

SegmentationRun = Run[SegmentationConfig, Splits]

CAUSE = "the learning rate is too high for this batch"


def decay_of(solver: SolverConfig) -> Decay:
    """Return the weight decay of every parameter of a segmenter."""

    def decay(module: nn.Module, name: str) -> float:
        light = module.get_parameter(name).ndim <= 1 or name in UNDECAYED
        return 0.0 if solver.decay_weights_only and light else solver.weight_decay

    return decay


class Segmenter(Model[Any], Protocol):
    """A segmenter of some library."""

    def segment(self, source: SegmentationImage) -> np.ndarray:
        """Return the label of every pixel of a test image, (height, width) uint8, at its own size."""
