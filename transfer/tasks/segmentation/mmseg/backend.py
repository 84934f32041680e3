"""The mmsegmentation side of a segmentation run: its model, its Runner, its inference."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from carryover.configs import UserError
from carryover.core.backbones.source import Source
from carryover.core.data.masks.dataset import SegmentationImage
from carryover.core.formats.receipt import Receipt, read_receipt, receipt_path
from carryover.core.formats.state import STATE_NAME, previous
from carryover.core.training.distributed import Ranks, barrier
from carryover.core.training.interrupt import StopRequest
from carryover.transfer.convert import convert
from carryover.transfer.tasks.segmentation.config import SegmentationConfig
from carryover.transfer.tasks.segmentation.mmseg.model import build_model, model_settings, prove
from carryover.transfer.tasks.segmentation.model import Backend, Training
from carryover.transfer.tasks.segmentation.model_config import UPerNetConfig

BACKBONE_NAME = "backbone.pth"


@dataclass
class MmsegSegmenter:
    """An mmseg model in a run; see `backend.Segmenter`."""

    run: Training
    model: Any
    receipt: Receipt
    carried: int
    artifacts: dict[str, str] = field(
        default_factory=lambda: {
            "backbone": BACKBONE_NAME,
            "receipt": receipt_path(Path(BACKBONE_NAME)).name,
        }
    )

    def __post_init__(self) -> None:
        from carryover.transfer.tasks.segmentation.mmseg.data import compose, pipeline_for_test

        self.pipeline = compose(pipeline_for_test(self.run.config.input))

    @property
    def states(self) -> tuple[Path, ...]:
        path = self.run.out / STATE_NAME
        return path, previous(path)

    def train(self, stop: StopRequest) -> float:
        from carryover.transfer.tasks.segmentation.mmseg.training import train_model

        return train_model(self.run, self.model, stop, lambda model: prove(model, self.receipt))

    @torch.inference_mode()
    def segment(self, source: SegmentationImage) -> np.ndarray:
        from carryover.transfer.tasks.segmentation.mmseg.data import as_mmseg

        self.model.eval()
        loaded = self.pipeline(as_mmseg(source))
        batch = {"inputs": [loaded["inputs"]], "data_samples": [loaded["data_samples"]]}
        found = self.model.test_step(batch)[0].pred_sem_seg.data[0]
        labels: np.ndarray = found.to(torch.uint8).cpu().numpy()
        return labels


def converted_backbone(run: Training, source: Source) -> Receipt:
    """Convert the checkpoint into `out`/backbone.pth, unless that is there from an earlier attempt."""
    path = run.out / BACKBONE_NAME
    if run.ranks.first and not _already(path, source):
        convert(source.path, "mmseg", path)
    barrier()
    return read_receipt(path)


def _already(path: Path, source: Source) -> bool:
    try:
        return read_receipt(path).source.sha256 == source.sha256
    except UserError:
        return False


def _require(config: SegmentationConfig, ranks: Ranks) -> None:
    if ranks.world > 1 and ranks.device.type == "cpu":
        raise UserError("mmseg trains in several processes on GPUs only; train in one, or on torchvision")
    model, size = config.model, config.solver.ims_per_batch
    together = size if model.norm == "SyncBN" else size // ranks.world
    if isinstance(model, UPerNetConfig) and 1 in model.pool_scales and together == 1:
        raise UserError(
            "solver.ims_per_batch: UPerNet pools each image to one pixel, and batch normalisation needs more"
            " than one of them; give it at least 2 images"
        )


@contextmanager
def _segmenter(run: Training, source: Source) -> Iterator[MmsegSegmenter]:
    receipt = converted_backbone(run, source)
    # mmseg's SyncBN runs on several GPUs only; in one process BN is the same.
    norm = run.config.model.norm if run.ranks.world > 1 else "BN"
    classes = len(run.dataset.classes)
    settings = model_settings(run.config, source.metadata.backbone, classes, run.out / BACKBONE_NAME, norm)
    model, carried = build_model(settings, receipt, run.config.seed)
    yield MmsegSegmenter(run, model.to(run.ranks.device), receipt, carried)


MMSEG = Backend("mmsegmentation", None, _require, _segmenter)
