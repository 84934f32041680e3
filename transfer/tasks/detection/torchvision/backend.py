"""The torchvision side of a detection run: the detector of `rcnn_model`, its steps and its detections."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from carryover.configs import UserError
from carryover.core.data.objects.dataset import DetectionImage
from carryover.core.data.steps import step_loader
from carryover.core.training.device import copied_to
from carryover.core.training.distributed import Ranks
from carryover.transfer.tasks.backend import Backend
from carryover.transfer.tasks.detection.config import DetectionConfig, InputConfig, SolverConfig
from carryover.transfer.tasks.detection.data import Steps, TrainingImages, annotated_images
from carryover.transfer.tasks.detection.model import (
    CAUSE,
    DetectionRun,
    Detector,
    Step,
    decay_of,
    is_norm,
    losses_of,
)
from carryover.transfer.tasks.detection.predictions import ImagePrediction
from carryover.transfer.tasks.detection.pyramid import as_trained, attention_in_words
from carryover.transfer.tasks.detection.torchvision.backbone import assert_carried
from carryover.transfer.tasks.detection.torchvision.masks import to_original
from carryover.transfer.tasks.detection.torchvision.model import build_detector
from carryover.transfer.tasks.detection.torchvision.precise_bn import recalibrate
from carryover.transfer.tasks.detection.transforms import resize_for_test
from carryover.transfer.tasks.optimizers import build_layered


class TestImages(Dataset[Tensor]):
    """The resized test images, in order."""

    __test__ = False  # not a pytest class

    def __init__(self, images: Sequence[DetectionImage], config: InputConfig) -> None:
        self.images, self.config = images, config

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return resize_for_test(self.images[index], self.config)


@dataclass
class TorchvisionDetector:
    """A detector of torchvision's components in a run; see `detection.model.Detector`."""

    run: DetectionRun
    model: nn.Module
    carried: int
    images: Sequence[DetectionImage]
    cause: str = CAUSE
    facts: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)

    @property
    def network(self) -> nn.Module:
        """The carried network, which says at which depth its parameters lie."""
        return self.run.source.backbone

    def build_optimizer(self) -> torch.optim.Optimizer:
        solver = self.run.config.solver
        if not solver.layered:
            return build_optimizer(self.model, solver)
        return build_layered(self.model, self.network, ("backbone.body.",), solver, decay_of(solver))

    def steps(self, start: int, stop: int) -> Generator[Step, None, None]:
        config, ranks = self.run.config, self.run.ranks
        images, size = self.images, config.solver.ims_per_batch
        dataset = TrainingImages(images, config.input, config.model.masks, config.seed)
        draws = Steps(images, size, config.seed, start, stop, ranks.rank, ranks.world)
        for examples in step_loader(dataset, draws, config.workers):
            tensors = [copied_to(e.image, ranks.device) for e in examples]
            targets = [{k: copied_to(v, ranks.device) for k, v in e.target.items()} for e in examples]
            yield tensors, targets

    def losses(self, shared: nn.Module, step: Step, iteration: int) -> dict[str, Tensor]:
        return losses_of(self.run, shared, step, iteration)

    def recalibrate(self, start: int, stop: int) -> int:
        return recalibrate(self.model, self.steps(start, stop))

    def test_images(self, images: Sequence[DetectionImage]) -> Dataset[Tensor]:
        return TestImages(images, self.run.config.input)

    def detect(self, loaded: Tensor, source: DetectionImage) -> ImagePrediction:
        detections = self.model([copied_to(loaded, self.run.ranks.device)])[0]
        return to_original(detections, (loaded.shape[-2], loaded.shape[-1]), source)


def build_optimizer(model: nn.Module, solver: SolverConfig) -> torch.optim.SGD:
    """Build SGD with a weight decay of its own for the parameters of normalization layers."""
    norms: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in model.modules():
        group = norms if is_norm(module) else others
        group += [p for p in module.parameters(recurse=False) if p.requires_grad]
    groups = [
        {"params": others, "weight_decay": solver.weight_decay},
        {"params": norms, "weight_decay": solver.weight_decay_norm},
    ]
    return torch.optim.SGD([g for g in groups if g["params"]], lr=solver.peak_lr, momentum=solver.momentum)


def _require(config: DetectionConfig, ranks: Ranks) -> None:
    if ranks.world > 1 and ranks.device.type == "cpu" and config.model.norms & {"SyncBN", "naiveSyncBN"}:
        raise UserError(
            "torch has no SyncBN over several CPU processes; train in one process, or choose BN for"
            " model.norm, model.fpn_norm and model.head_norm"
        )


@contextmanager
def _build(run: DetectionRun) -> Iterator[TorchvisionDetector]:
    config, classes = run.config, len(run.data.train.classes)
    about, weights, tokens = as_trained(
        run.source.metadata.backbone, run.source.backbone.state_dict(), config.model, config.input
    )
    model = build_detector(about, weights, config.model, config.input, classes, config.seed)
    carried = assert_carried(model, weights, config.model)
    images = annotated_images(run.data.train)
    facts = {}
    if tokens is not None:
        facts = {"prefix_tokens": tokens, "attention": attention_in_words(about)}
    yield TorchvisionDetector(run, model.to(run.ranks.device), carried, images, facts=facts)


BACKEND: Backend[Detector] = Backend("torchvision", None, _require, _build)
