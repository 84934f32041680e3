"""What a library brings to a segmentation run, besides what every back end does."""

from typing import Any, Protocol

import numpy as np

from carryover.core.data.masks.dataset import SegmentationImage
from carryover.core.data.masks.splits import Splits
from carryover.transfer.tasks.backend import Model
from carryover.transfer.tasks.base import Run
from carryover.transfer.tasks.segmentation.config import SegmentationConfig

SegmentationRun = Run[SegmentationConfig, Splits]

CAUSE = "the learning rate is too high for this batch"


class Segmenter(Model[Any], Protocol):
    """A segmenter of some library."""

    def segment(self, source: SegmentationImage) -> np.ndarray:
        """Return the label of every pixel of a test image, (height, width) uint8, at its own size."""
