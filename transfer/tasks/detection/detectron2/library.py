"""Availability of Detectron2 and its number of processes (imports neither it nor torch)."""

import importlib.util
import os

from carryover.configs import UserError


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


def own_processes(device: str) -> int:
    """Return how many processes to start: one a GPU, unless a launcher has started the processes already.

    `device` is the recipe's; one that names a single device is one process.
    """
    if "WORLD_SIZE" in os.environ or ":" in device:
        return 1
    import torch.distributed as dist

    from carryover.core.training.device import device_count

    return 1 if dist.is_initialized() else device_count(device)
