"""Detection and instance segmentation with Detectron2: same recipe, checkpoint and record as torchvision."""

import importlib.util
import os
from pathlib import Path

from carryover.configs import UserError
from carryover.core.data.objects.splits import read_splits
from carryover.transfer.results.record import ResultRecord
from carryover.transfer.tasks.detection.config import DetectionConfig


def evaluate(config: DetectionConfig, checkpoint: Path, out: Path) -> ResultRecord:
    """Train one of Detectron2's detectors on a pretrained backbone and test it.

    As `torchvision_rcnn.evaluate` in what it takes, writes and raises, and in how it resumes. Besides, `out`
    holds the receipt of the conversion that the model was proven against (backbone.pkl.receipt.json) and the
    recipe in Detectron2's own terms (detectron2.yaml). detector.safetensors has Detectron2's names.

    Under torchrun or a scheduler every rank calls this. Started by itself where several GPUs are visible, it
    starts one process for each with Detectron2's `launch`.

    Raises
    ------
    UserError
        Besides the torchvision backend's: Detectron2 cannot be imported.
    """
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: no such checkpoint")
    require_detectron2()
    splits = read_splits(config.data, needs_masks=config.model.masks)
    import_detectron2()
    if (processes := _own_processes()) > 1:
        from carryover.transfer.tasks.detection.detectron2.launch import evaluate_in_processes

        return evaluate_in_processes(processes, config, checkpoint, out)

    from carryover.transfer.tasks.detection.detectron2.backend import DETECTRON2
    from carryover.transfer.tasks.detection.task import run_protocol

    return run_protocol(DETECTRON2, config, splits, checkpoint, out)


def require_detectron2() -> None:
    """Raise UserError unless there is a Detectron2 to import; nothing is imported."""
    if importlib.util.find_spec("detectron2") is None:
        raise UserError(
            "backend: detectron2: Detectron2 is not importable here. `carryover doctor` says how to get it;"
            " backend=torchvision runs the same recipe without it"
        )


def import_detectron2() -> None:
    """Import what the backend uses of Detectron2; raises UserError, saying what it lacks."""
    from carryover.transfer.convert.detectron2 import TARGET

    version, reason = TARGET.version()
    if version is None:
        raise UserError(
            f"backend: detectron2: Detectron2 is there, but importing it fails: {reason}."
            " `carryover doctor` says what is missing"
        )


def _own_processes() -> int:
    """How many processes to start: one a GPU, unless a launcher has started the processes already."""
    if "WORLD_SIZE" in os.environ:
        return 1
    import torch
    import torch.distributed as dist

    return 1 if dist.is_initialized() else torch.cuda.device_count()
