"""The canonical checkpoint: one backbone under torchvision's names in a safetensors file.

Written here, where checkpoints come from; read and verified by `core.backbones`. No pickle is involved.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import Field
from safetensors import SafetensorError, safe_open

from carryover.configs import Section, UserError
from carryover.configs.errors import DamagedFileError
from carryover.configs.files import atomic_file
from carryover.configs.formats import VERSION_KEY, Format
from carryover.core.formats.backbone import BackboneConfig

if TYPE_CHECKING:
    from torch import Tensor


def _from_v1(plain: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in plain.items() if key != "format"}


FORMAT: Final = Format("canonical checkpoint", 3, {1: _from_v1})
METADATA_KEY: Final = "carryover"
IMPORTED: Final = "imported"
"""The recipe of what was taken out of another maker's file."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class CanonicalMetadata(Section):
    """Metadata of a canonical checkpoint.

    `pixel_mean` and `pixel_std` are in units of [0, 1] images, in `channel_order`; `input_size` is the side
    of the training crop in pixels; `maker` names the code that trained it ("carryover", "moco", ...);
    `peak_gpu_memory_gib` is the most that tensors took on the first GPU, since it last began or resumed.
    `assumed` says, a sentence each, what another maker's file did not say, by what it is about ("pixels",
    "network", ...); `label` is what tables call the checkpoint, if one was given; `stated` names the
    fields that the user said of another maker's file.
    """

    backbone: BackboneConfig
    norm: Literal["bn", "own"] = "bn"
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
    assumed: dict[str, str] = Field(default_factory=dict)
    label: str | None = None
    stated: tuple[str, ...] = ()

    def knows(self, field: str) -> bool:
        """Return whether a field is a fact, rather than what is assumed of another maker's file."""
        return self.recipe != IMPORTED or field in self.stated


def save_canonical(path: Path, state: "Mapping[str, Tensor]", metadata: CanonicalMetadata) -> None:
    """Write a backbone's state dict, atomically; `num_batches_tracked` counters are kept as they are.

    The file's bytes are a function of its content.
    """
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    with atomic_file(path) as temporary:
        save_file(tensors, str(temporary), metadata={METADATA_KEY: metadata_text(metadata), "format": "pt"})
        _sort_header(temporary)


def metadata_text(metadata: CanonicalMetadata) -> str:
    """Return metadata as JSON, as canonical checkpoints and the files converted from them hold it."""
    # Without the release that writes it: one import has one digest, whichever release made it.
    plain = {VERSION_KEY: FORMAT.version, **metadata.model_dump(mode="json")}
    return json.dumps(plain, separators=(",", ":"))


def parse_metadata(text: str, where: str) -> CanonicalMetadata:
    """Read what `metadata_text` wrote, in this release or another.

    Raises DamagedFileError naming `where` for what is no metadata, NewerFormatError for a newer major's.
    """
    try:
        plain = json.loads(text)
    except ValueError as error:
        raise DamagedFileError(f"{where}: its metadata is not JSON ({error})") from None
    content = FORMAT.current(plain, where)
    return FORMAT.parse(CanonicalMetadata, {k: v for k, v in content.items() if k != VERSION_KEY}, where)


def backbone_digest(state: "Mapping[str, Tensor]", metadata: CanonicalMetadata) -> str:
    """Return the SHA-256 (hex) of what a backbone computes: tensors, network, encoder, pixel statistics.

    Two files that differ only in what they say of their making (seconds, revision, label) have one digest.
    """
    about = metadata.model_dump(
        mode="json",
        include={"norm", "channel_order", "pixel_mean", "pixel_std", "input_size", "encoder"},
    )
    about["backbone"] = metadata.backbone.stated()
    return tensors_digest(state, json.dumps(about, sort_keys=True))


def tensors_digest(state: "Mapping[str, Tensor]", about: str) -> str:
    """Return the SHA-256 (hex) of named tensors and of the statements `about` their network."""
    import torch

    digest = hashlib.sha256(about.encode())
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_canonical(path: Path) -> "tuple[dict[str, Tensor], CanonicalMetadata]":
    """Read a canonical checkpoint; raises UserError naming the file when it is not one, or is damaged."""
    import torch

    metadata = read_metadata(path)
    with _opened(path, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{path}: tensor '{name}' has values that are not finite")
    return state, metadata


def read_metadata(path: Path) -> CanonicalMetadata:
    """Read only what the checkpoint says of itself (its header, whatever its size)."""
    with _opened(path) as file:
        recorded = (file.metadata() or {}).get(METADATA_KEY)
    if recorded is None:
        raise UserError(
            f"{path}: a safetensors file without carryover's metadata; import it with `carryover convert`"
        )
    return parse_metadata(recorded, str(path))


def _sort_header(path: Path) -> None:
    """Give a safetensors header one order of keys: the library writes its metadata in a random one."""
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > length:
            raise ValueError(f"{path}: its header grew from {length} to {len(text)} bytes when it was sorted")
        file.seek(8)
        file.write(text.ljust(length))


def _opened(path: Path, framework: str = "numpy") -> safe_open:
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint")
    if not path.is_file():
        raise UserError(f"{path}: expected a .safetensors file, found a directory")
    try:
        return safe_open(str(path), framework=framework, device="cpu")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from None
