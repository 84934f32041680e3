"""Output directory of an evaluation: earlier results, and what is left in it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from carryover.configs import UserError
from carryover.configs.files import atomic_file
from carryover.core.formats.claims import RECIPE_NAME, Work, read_identity, require_same_work
from carryover.transfer.results.record import RECORD_NAME, ResultRecord, load_record
from carryover.transfer.tasks.identity import of_v1, processes_of_v1

if TYPE_CHECKING:
    from torch import nn

__all__ = ["RECIPE_NAME", "finished_record", "save_weights", "spread"]


def finished_record(work: Work, checkpoint_sha256: str) -> ResultRecord | None:
    """Return the record in the work's directory if it is finished there, None if nothing is.

    Raises UserError naming every key in which the record's work differs from this one, and for a file that is
    no record.
    """
    path = work.out / RECORD_NAME
    if not path.exists() or path.stat().st_size == 0:
        return None
    record = load_record(path)
    there = record.identity()
    if there is None:
        raise UserError(
            f"{path}: a result of carryover 0.1 whose recipe is not beside it, so that it cannot be compared"
            " with what is asked; choose another directory, or remove it"
        )
    if read_identity(work.out) is None:
        # Version 1 left none.
        there |= of_v1(work.recipe, processes_of_v1(record.facts))
    require_same_work(path, work.identity, there, "result")
    if record.backbone_digest is None and record.checkpoint_sha256 != checkpoint_sha256:
        raise UserError(
            f"{path}: holds the result of another checkpoint ({record.checkpoint_sha256[:8]}, asked for"
            f" {checkpoint_sha256[:8]}); choose another directory, or remove it"
        )
    return record


def save_weights(path: Path, model: "nn.Module") -> None:
    """Write a model's weights as safetensors, atomically and under the model's own names."""
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with atomic_file(path) as temporary:
        save_file(tensors, str(temporary), metadata={"format": "pt"})


def spread(counts: Mapping[str, int]) -> str:
    """Return how many images a class has, for example ``12 to 13``."""
    fewest, most = min(counts.values()), max(counts.values())
    return str(fewest) if fewest == most else f"{fewest} to {most}"
