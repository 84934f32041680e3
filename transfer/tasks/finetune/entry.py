"""Fine-tuning on few labels: a recipe and a checkpoint in, a result record out."""

from pathlib import Path

from carryover.configs import UserError
from carryover.core.data.labelled.config import check_data
from carryover.transfer.results.record import ResultRecord
from carryover.transfer.tasks.finetune.config import FinetuneConfig


def evaluate(config: FinetuneConfig, checkpoint: Path, out: Path) -> ResultRecord:
    """Fine-tune a pretrained backbone and a new linear head on the labelled subset, and test it.

    Resumes from a half-finished `out`: from the last saved state, on a CPU bit for bit as if it had never
    stopped. Under torchrun every rank calls this with the same arguments and `out` on a shared file system.

    `out` then holds result.json, metrics.jsonl, recipe.yaml and, where the recipe keeps the weights,
    classifier.safetensors.

    Raises
    ------
    UserError
        Data, checkpoint or recipe that cannot work together. Paths are checked before torch is imported.
    WorkError
        A loss that is not finite, or a frozen backbone that has changed.
    """
    check_data(config.data)
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: no such checkpoint")

    from carryover.transfer.tasks.finetune.task import run_protocol

    return run_protocol(config, checkpoint, out)
