"""Semantic segmentation with mmsegmentation, the reference: FCN and UPerNet on a plain ResNet."""

import importlib.util
from pathlib import Path

from carryover.configs import UserError
from carryover.core.data.masks.splits import read_splits
from carryover.transfer.results.record import ResultRecord
from carryover.transfer.tasks.segmentation.config import SegmentationConfig


def evaluate(config: SegmentationConfig, checkpoint: Path, out: Path) -> ResultRecord:
    """Train an mmseg segmenter on a pretrained backbone and test it.

    The same recipes, draws, metrics and record as `torchvision_fcn.evaluate`; model, augmentation, losses,
    schedule and inference are mmseg's own, trained by mmengine's Runner. Resumes from a half-finished `out`.
    `out` also holds backbone.pth, the converted checkpoint, and its receipt.

    Raises
    ------
    UserError
        mmseg is not installed; or data, checkpoint or recipe that cannot work together.
    WorkError
        A backbone tensor that was not carried over, or a loss that is not finite.
    """
    if importlib.util.find_spec("mmseg") is None:
        raise UserError("backend: mmseg needs mmsegmentation: pip install 'carryover-eval[mmseg]'")
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: no such checkpoint")
    splits = read_splits(config.data)

    from carryover.transfer.convert.mmcv_stub import install

    install()
    from carryover.transfer.tasks.segmentation.mmseg.backend import MMSEG
    from carryover.transfer.tasks.segmentation.task import run_protocol

    return run_protocol(MMSEG, config, splits, checkpoint, out)
