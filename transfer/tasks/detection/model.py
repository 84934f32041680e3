"""What a library brings to a detection run; the protocol and the loop around it are the same for all."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.data import Dataset

from carryover.core.backbones.source import Source
from carryover.core.data.objects.dataset import DetectionImage
from carryover.core.data.objects.splits import Splits
from carryover.core.formats.claims import Work
from carryover.core.training.distributed import Ranks
from carryover.transfer.tasks.detection.config import DetectionConfig
from carryover.transfer.tasks.detection.predictions import ImagePrediction

Step = tuple[Any, ...]
"""The arguments that a detector takes for this rank's part of one training step."""


@dataclass(frozen=True)
class Training:
    """One detector training: what is trained, on what, and where its state is kept.

    `work` tells this training from any other (`core.formats.claims`); other work's state in `out` is refused.
    """

    config: DetectionConfig
    images: Sequence[DetectionImage]
    out: Path
    ranks: Ranks
    work: Work


class Detector(Protocol):
    """A detector of some library around the carried backbone, on the ranks' device.

    Attributes
    ----------
    model
        In training, maps the arguments of a `Step` to a dict of losses.
    carried
        How many backbone tensors of the model were found equal to the checkpoint's.
    facts, artifacts
        What the result record should say besides what it always says.
    """

    model: nn.Module
    carried: int

    @property
    def facts(self) -> Mapping[str, str | int | float | bool | None]: ...

    @property
    def artifacts(self) -> Mapping[str, str]: ...

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Build the optimiser of the recipe over what is trained; its rate is set at every step."""

    def steps(self, start: int, stop: int) -> Generator[Step, None, None]:
        """Yield this rank's part of steps `start` to `stop`: a function of the seed alone."""

    def recalibrate(self, start: int, stop: int) -> int:
        """Estimate batch statistics anew over these steps; returns how many layers have any."""

    def test_images(self, images: Sequence[DetectionImage]) -> Dataset[Any]:
        """Return the images as `detect` takes them, in order."""

    def detect(self, loaded: Any, source: DetectionImage) -> ImagePrediction:
        """Find the objects in one loaded test image, in pixels of the original."""


@dataclass(frozen=True)
class Backend:
    """A library that detectors are built, trained and tested with.

    Attributes
    ----------
    name, version
        For the record; a version of None is looked up among the installed distributions.
    require
        Raises UserError for a recipe that the library cannot train with so many processes.
    detector
        Builds a detector around a checkpoint's backbone, proves that it was carried, and puts away what it
        needed when the run is over.
    """

    name: str
    version: str | None
    require: Callable[[DetectionConfig, Ranks], None]
    detector: Callable[[Training, Splits, Source], AbstractContextManager[Detector]]
