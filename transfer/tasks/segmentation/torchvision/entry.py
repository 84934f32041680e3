"""Semantic segmentation with torchvision: a recipe and a checkpoint in, a result record out."""

from pathlib import Path

from carryover.configs import UserError
from carryover.core.data.masks.splits import read_splits
from carryover.transfer.results.record import ResultRecord
from carryover.transfer.tasks.segmentation.config import SegmentationConfig


def evaluate(config: SegmentationConfig, checkpoint: Path, out: Path) -> ResultRecord:
    """Train an FCN on a pretrained backbone and test it.

    Resumes from a half-finished `out`: from the last saved state, on a CPU bit for bit as if it had never
    stopped. Under torchrun every rank calls this with the same arguments and `out` on a shared file system.

    `out` then holds metrics.jsonl (losses), confusion.json, segmenter.safetensors (the tested weights) and
    samples/*.png; the training state checkpoint.pt is removed at the end.

    Raises
    ------
    UserError
        Data, checkpoint or recipe that cannot work together. Files and data are checked before torch is
        imported.
    WorkError
        A backbone tensor that was not carried over, or a loss that is not finite.
    """
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: no such checkpoint")
    splits = read_splits(config.data)

    from carryover.transfer.tasks.segmentation.task import run_protocol
    from carryover.transfer.tasks.segmentation.torchvision.backend import TORCHVISION

    return run_protocol(TORCHVISION, config, splits, checkpoint, out)
