"""The torchvision side of a segmentation run: the FCN of `fcn_model`, its training and its testing."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from carryover.core.backbones.source import Source
from carryover.core.backbones.verify import prove_tensors
from carryover.core.data.masks.dataset import SegmentationImage
from carryover.core.formats.state import STATE_NAME, previous
from carryover.core.training.distributed import Ranks, with_sync_bn
from carryover.core.training.interrupt import StopRequest
from carryover.transfer.tasks.segmentation.config import SegmentationConfig
from carryover.transfer.tasks.segmentation.model import Backend, Training
from carryover.transfer.tasks.segmentation.model_config import FCNConfig
from carryover.transfer.tasks.segmentation.torchvision import inference as fcn_infer
from carryover.transfer.tasks.segmentation.torchvision.model import DilatedFCN, build_segmenter
from carryover.transfer.tasks.segmentation.torchvision.training import train_segmenter


@dataclass
class TorchvisionSegmenter:
    """An FCN of torchvision's components in a run; see `backend.Segmenter`."""

    run: Training
    model: DilatedFCN
    carried: int
    artifacts: dict[str, str] = field(default_factory=dict)

    @property
    def states(self) -> tuple[Path, ...]:
        path = self.run.out / STATE_NAME
        return path, previous(path)

    def train(self, stop: StopRequest) -> float:
        return train_segmenter(self.run, self.model, stop)

    def segment(self, source: SegmentationImage) -> np.ndarray:
        config = self.run.config
        return fcn_infer.segment(self.model, source, config.input, config.solver.precision)


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
    # pretrain's own SyncBN serves CPU processes too: nothing to refuse.
    assert isinstance(config.model, FCNConfig)


@contextmanager
def _segmenter(run: Training, source: Source) -> Iterator[TorchvisionSegmenter]:
    config, weights = run.config, source.backbone.state_dict()
    assert isinstance(config.model, FCNConfig)
    classes, about = len(run.dataset.classes), source.metadata.backbone
    model = build_segmenter(about, weights, config.model, classes, config.seed)
    carried = prove(model, weights)
    if config.model.norm == "SyncBN" and run.ranks.world > 1:
        with_sync_bn(model, run.ranks.device)
    yield TorchvisionSegmenter(run, model.to(run.ranks.device), carried)


TORCHVISION = Backend("torchvision", None, _require, _segmenter)
