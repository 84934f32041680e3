"""Semantic segmentation with mmsegmentation, the reference: FCN and UPerNet on a plain ResNet."""

import importlib.util
from pathlib import Path

from carryover.configs import UserError
from carryover.transfer.results import ResultRecord
from carryover.transfer.segment.config import SegmentationConfig
from carryover.transfer.segment.splits import read_splits


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

    from carryover.transfer.segment.mmcv_stub import install

    install()
    from carryover.transfer.segment.mmseg_backend import MMSEG
    from carryover.transfer.segment.protocol import run_protocol

    return run_protocol(MMSEG, config, splits, checkpoint, out)
