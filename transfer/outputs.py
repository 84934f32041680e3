"""What an evaluation finds in its output directory, and leaves there."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from configs import Recipe, UserError, dump, recipe_hash
from transfer.results import RECORD_NAME, ResultRecord

if TYPE_CHECKING:
    from torch import nn

RECIPE_NAME = "recipe.yaml"


def finished_record(out: Path, config: Recipe, seed: int, checkpoint_sha256: str) -> ResultRecord | None:
    """Return the record in `out` if this evaluation is finished there, None if nothing is.

    Raises UserError for the record of another recipe, seed or checkpoint, and for a file that is no record.
    """
    path = out / RECORD_NAME
    if not path.exists():
        return None
    try:
        record = ResultRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a result record ({error})") from None
    for what, there, here in (
        ("recipe", record.recipe_hash, recipe_hash(config)),
        ("seed", record.seed, seed),
        ("checkpoint", record.checkpoint_sha256, checkpoint_sha256),
    ):
        if there != here:
            raise UserError(f"{out}: holds the result of another {what}; choose another directory")
    return record


def write_recipe(out: Path, config: Recipe) -> None:
    """Write the fully resolved recipe beside the results."""
    write_text(out / RECIPE_NAME, dump(config))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def save_weights(path: Path, model: "nn.Module") -> None:
    """Write a model's weights as safetensors, atomically and under the model's own names."""
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file(tensors, str(temporary), metadata={"format": "pt"})
    temporary.replace(path)


def spread(counts: Mapping[str, int]) -> str:
    """Say how many images a class has, for example ``12 to 13``."""
    fewest, most = min(counts.values()), max(counts.values())
    return str(fewest) if fewest == most else f"{fewest} to {most}"
