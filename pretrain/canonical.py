"""The canonical checkpoint: one backbone under torchvision's names in a safetensors file.

Written here, where checkpoints come from; read and proven by `transfer.checkpoints`. No pickle is involved.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from configs import Section, UserError
from pretrain.backbone_config import BackboneConfig

FORMAT: Final = "carryover-1"
_KEY = "carryover"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class CanonicalMetadata(Section):
    """What a canonical checkpoint says of itself.

    `pixel_mean` and `pixel_std` are in units of [0, 1] images, in `channel_order`; `input_size` is the side
    of the training crop in pixels; `maker` names the code that trained it ("carryover", "moco", ...);
    `peak_gpu_memory_gib` is the most that tensors took on the first GPU, since it last began or resumed.
    """

    format: Literal["carryover-1"] = FORMAT
    backbone: BackboneConfig
    norm: Literal["bn"] = "bn"
    channel_order: Literal["RGB"] = "RGB"
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = IMAGENET_STD
    input_size: int
    method: str
    epochs: float | None
    dataset: str
    seed: int | None
    recipe: str
    recipe_hash: str | None
    git_revision: str
    library_versions: dict[str, str]
    maker: str = "carryover"
    encoder: str = "online"
    gpu_hours: float | None = None
    wall_seconds: float | None = None
    peak_gpu_memory_gib: float | None = None


def save_canonical(path: Path, state: Mapping[str, Tensor], metadata: CanonicalMetadata) -> None:
    """Write a backbone's state dict, atomically; `num_batches_tracked` counters are kept as they are."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, str(temporary), metadata={_KEY: metadata.model_dump_json(), "format": "pt"})
        # safetensors creates files for their owner alone; on a cluster, colleagues read checkpoints too.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_canonical(path: Path) -> tuple[dict[str, Tensor], CanonicalMetadata]:
    """Read a canonical checkpoint; raises UserError naming the file when it is not one, or is damaged."""
    metadata = read_metadata(path)
    with _opened(path) as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{path}: tensor '{name}' has values that are not finite")
    return state, metadata


def read_metadata(path: Path) -> CanonicalMetadata:
    """Read only what the checkpoint says of itself (its header, whatever its size)."""
    with _opened(path) as file:
        recorded = (file.metadata() or {}).get(_KEY)
    if recorded is None:
        raise UserError(
            f"{path}: a safetensors file without carryover's metadata; import it with `carryover convert`"
        )
    try:
        return CanonicalMetadata.model_validate(json.loads(recorded))
    except (ValidationError, ValueError) as error:
        raise UserError(f"{path}: metadata is not that of a {FORMAT} checkpoint: {error}") from None


def sha256_file(path: Path) -> str:
    """Return a file's SHA-256 (hex)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _opened(path: Path) -> safe_open:
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint")
    if not path.is_file():
        raise UserError(f"{path}: expected a .safetensors file, found a directory")
    try:
        return safe_open(str(path), framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from None
