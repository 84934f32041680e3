"""Interface between a library and a detection run."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.models.convnext import LayerNorm2d

from carryover.configs import WorkError
from carryover.core.backbones.layers import UNDECAYED
from carryover.core.data.objects.dataset import DetectionImage
from carryover.core.data.objects.splits import Splits
from carryover.core.training.device import bf16_autocast
from carryover.transfer.tasks.backend import Model
from carryover.transfer.tasks.base import Run
from carryover.transfer.tasks.detection.config import DetectionConfig, SolverConfig
from carryover.transfer.tasks.detection.predictions import ImagePrediction
from carryover.transfer.tasks.optimizers import NORMS, Decay

Step = tuple[Any, ...]
"""The arguments that a detector takes for this rank's part of one training step."""

DetectionRun = Run[DetectionConfig, Splits]

CAUSE = "the learning rate is too high for this batch, or the warm-up too short"


class Detector(Model[Step], Protocol):
    """A detector of some library; in training, `model` maps the arguments of a `Step` to a dict of losses."""

    def recalibrate(self, start: int, stop: int) -> int:
        """Estimate batch statistics again over these steps; returns how many layers have any."""

    def test_images(self, images: Sequence[DetectionImage]) -> Dataset[Any]:
        """Return the images as `detect` takes them, in order."""

    def detect(self, loaded: Any, source: DetectionImage) -> ImagePrediction:
        """Find the objects in one loaded test image, in pixels of the original."""


def is_norm(module: nn.Module) -> bool:
    """Return whether Detectron2 treats a module as a normalization (not channel-wise LN)."""
    return isinstance(module, NORMS) and not isinstance(module, LayerNorm2d)


def decay_of(solver: SolverConfig) -> Decay:
    """Return the weight decay of every parameter: that of norms or the rest, none of positions."""

    def decay(module: nn.Module, name: str) -> float:
        if is_norm(module):
            return solver.weight_decay_norm
        return 0.0 if name in UNDECAYED else solver.weight_decay

    return decay


def losses_of(run: DetectionRun, shared: nn.Module, step: Step, iteration: int) -> dict[str, Tensor]:
    """Return a detector's losses of a step and their sum, in the recipe's precision.

    Raises WorkError where the library finds something that is not finite before there is a loss.
    """
    bf16 = run.config.solver.precision == "bf16"
    with bf16_autocast(run.ranks.device, bf16):
        try:
            losses: dict[str, Tensor] = shared(*step)
        except FloatingPointError as error:
            # Detectron2 looks at its proposals first.
            reason = f"{error} (something is not finite; {CAUSE})"
            raise WorkError(f"iteration {iteration + 1}: {reason}") from None
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}
