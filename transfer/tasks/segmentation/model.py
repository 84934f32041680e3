"""What a library brings to a segmentation run; the protocol around it is the same for all."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import nn

from carryover.core.backbones.source import Source
from carryover.core.data.masks.dataset import SegmentationDataset, SegmentationImage
from carryover.core.formats.claims import Work
from carryover.core.training.distributed import Ranks
from carryover.core.training.interrupt import StopRequest
from carryover.transfer.tasks.segmentation.config import SegmentationConfig


@dataclass(frozen=True)
class Training:
    """One segmenter's training: what is trained, on what, and where its state is kept.

    `work` tells this training from any other (`core.formats.claims`); other work's state in `out` is refused.
    """

    config: SegmentationConfig
    dataset: SegmentationDataset
    out: Path
    ranks: Ranks
    work: Work


class Segmenter(Protocol):
    """A segmenter of some library around the carried backbone, on the ranks' device.

    Attributes
    ----------
    model
        The module that is trained; its state dict is kept when it is.
    carried
        How many backbone tensors of the model were found equal to the checkpoint's.
    artifacts
        Files of the library's own beside the record, by name.
    states
        Files that resuming needs and a finished run does not.
    """

    carried: int

    @property
    def model(self) -> nn.Module: ...

    @property
    def artifacts(self) -> Mapping[str, str]: ...

    @property
    def states(self) -> tuple[Path, ...]: ...

    def train(self, stop: StopRequest) -> float:
        """Train to the end of the schedule, from the state in `out` if there is one.

        A state is saved `config.checkpoints` times over the run, at its end, and on SIGUSR2 or SIGTERM.
        Returns the seconds spent, all attempts together. Raises UserError where `out` holds the state of
        another run, WorkError for a loss that is not finite, Interrupted when asked to stop.
        """

    def segment(self, source: SegmentationImage) -> np.ndarray:
        """Return the label of every pixel of a test image, (height, width) uint8, at its own size."""


@dataclass(frozen=True)
class Backend:
    """A library that segmenters are built, trained and tested with.

    Attributes
    ----------
    name, version
        For the record; a version of None is looked up among the installed distributions.
    require
        Raises UserError for a recipe that the library cannot train with so many processes.
    segmenter
        Builds a segmenter around a checkpoint's backbone, proves that it was carried, and puts away what it
        needed when the run is over.
    """

    name: str
    version: str | None
    require: Callable[[SegmentationConfig, Ranks], None]
    segmenter: Callable[[Training, Source], AbstractContextManager[Segmenter]]
