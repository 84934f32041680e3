"""The torchvision side of a segmentation run: its models, their training and testing."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from carryover.core.backbones.verify import prove_tensors
from carryover.core.data.masks.dataset import SegmentationImage
from carryover.core.data.steps import step_loader
from carryover.core.training.device import bf16_autocast
from carryover.core.training.distributed import Ranks, with_sync_bn
from carryover.transfer.tasks.backend import Backend
from carryover.transfer.tasks.optimizers import build_layered
from carryover.transfer.tasks.segmentation.config import SegmentationConfig
from carryover.transfer.tasks.segmentation.data import Steps, TrainingImages
from carryover.transfer.tasks.segmentation.model import (
    CAUSE,
    SegmentationRun,
    Segmenter,
    decay_of,
    require_batches,
)
from carryover.transfer.tasks.segmentation.torchvision import inference
from carryover.transfer.tasks.segmentation.torchvision.model import (
    DilatedFCN,
    batch_of,
    build_segmenter,
    losses,
)
from carryover.transfer.tasks.segmentation.transforms import Example


@dataclass
class TorchvisionSegmenter:
    """A segmenter of torchvision's components in a run; see `segmentation.model.Segmenter`."""

    run: SegmentationRun
    model: DilatedFCN
    carried: int
    cause: str = CAUSE
    facts: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)

    def build_optimizer(self) -> torch.optim.Optimizer:
        solver = self.run.config.solver
        if solver.layered or solver.decay_weights_only:
            network = self.run.source.backbone
            return build_layered(self.model, network, ("backbone.",), solver, decay_of(solver))
        return build_optimizer(self.model, self.run.config)

    def steps(self, start: int, stop: int) -> Generator[list[Example], None, None]:
        config, dataset, ranks = self.run.config, self.run.data.train, self.run.ranks
        images, size = len(dataset.images), config.solver.ims_per_batch
        draws = Steps(images, size, config.seed, start, stop, ranks.rank, ranks.world)
        yield from step_loader(TrainingImages(dataset, config.input, config.seed), draws, config.workers)

    def losses(self, shared: nn.Module, step: list[Example], iteration: int) -> dict[str, Tensor]:
        config, device = self.run.config, self.run.ranks.device
        pixels, labels = batch_of(step, config.input, device)
        with bf16_autocast(device, config.solver.precision == "bf16"):
            logits = shared(pixels)
        parts = losses(logits, labels, config.model)
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    def segment(self, source: SegmentationImage) -> np.ndarray:
        return inference.segment(self.model, source, self.run.config.input)


def build_optimizer(model: nn.Module, config: SegmentationConfig) -> torch.optim.SGD:
    """Build SGD over all parameters, as mmseg's schedules do."""
    solver = config.solver
    return torch.optim.SGD(
        model.parameters(), lr=solver.peak_lr, momentum=solver.momentum, weight_decay=solver.weight_decay
    )


def prove(segmenter: nn.Module, canonical: Mapping[str, Tensor]) -> int:
    """Prove that every backbone tensor of a segmenter equals the checkpoint's, and count them.

    Raises WorkError naming the tensors that are missing, are not accounted for, or differ.
    """
    prefix = "backbone."
    arrived = {
        name.removeprefix(prefix): value
        for name, value in segmenter.state_dict().items()
        if name.startswith(prefix)
    }
    prove_tensors(canonical, arrived, "the segmenter")
    return len(arrived)


def _require(config: SegmentationConfig, ranks: Ranks) -> None:
    # pretrain's own SyncBN serves CPU processes too.
    require_batches(config, ranks)


@contextmanager
def _build(run: SegmentationRun) -> Iterator[TorchvisionSegmenter]:
    config, weights = run.config, run.source.backbone.state_dict()
    classes, about = len(run.data.train.classes), run.source.metadata.backbone
    model = build_segmenter(about, weights, config.model, classes, config.seed)
    carried = prove(model, weights)
    if config.model.norm == "SyncBN" and run.ranks.world > 1:
        with_sync_bn(model, run.ranks.device)
    yield TorchvisionSegmenter(run, model.to(run.ranks.device), carried)


BACKEND: Backend[Segmenter] = Backend("torchvision", None, _require, _build)
