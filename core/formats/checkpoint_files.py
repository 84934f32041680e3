"""Find the files of a checkpoint: one, a folder's, or shards with an index (without torch)."""

import hashlib
import json
import re
from pathlib import Path
from typing import Final

from carryover.configs import UserError
from carryover.configs.files import sha256_file

DISTRIBUTED: Final = ".metadata"
"""The file that describes a folder of torch.distributed.checkpoint."""
INDEX: Final = ".index.json"
# transformers', diffusers', open_clip's and timm's names, the first that is there.
_USUAL = (
    DISTRIBUTED,
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "exported_models/exported_last.pt",
    "checkpoints/last.ckpt",
)
FOLDERS: Final = _USUAL[:5]
"""Files by which a folder is known to be a checkpoint."""
ORBAX: Final = (
    "a checkpoint of JAX's Orbax ({}); its weights need a port of the network to torch: read them with"
    " orbax.checkpoint.StandardCheckpointer().restore(FOLDER), and save them under the port's names"
)
_ORBAX = ("manifest.ocdbt", "_METADATA")
_OF_RANK = re.compile(r"((bf16_)?zero_pp_rank_\d+_)?mp_rank_\d+_(model|optim)_states\.pt")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pkl", ".tar")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.[a-z]+)")
_SHOWN = 5


def checkpoint_file(path: Path) -> Path:
    """Return the file that a checkpoint is read from: `path`, or the one that stands for a folder or shards.

    Raises UserError for a path that is not there, a folder without a checkpoint, and one of several shards.
    """
    if path.is_dir():
        return _of_folder(path)
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint")
    if not path.is_file():
        raise UserError(f"{path}: expected a checkpoint file or folder")
    if path.suffix == ".distcp" and path.with_name(DISTRIBUTED).is_file():
        return path.with_name(DISTRIBUTED)
    if (match := _SHARD.fullmatch(path.name)) and int(match[3]) > 1:
        index = path.with_name(f"{match[1]}{match[4]}{INDEX}")
        if index.is_file():
            return index
        raise UserError(
            f"{path}: shard {int(match[2])} of {int(match[3])}; expected '{index.name}' beside it, which says"
            " what lies in which shard"
        )
    return path


def by_deepspeed(folder: Path) -> str:
    """Return the command that makes one file of a training of DeepSpeed, whose `folder` has its script."""
    return f"`python {folder}/zero_to_fp32.py {folder} OUT`"


def parts_of(path: Path) -> tuple[Path, ...]:
    """Return every file of a checkpoint, in order of name; raises UserError for shards that are not there."""
    file = checkpoint_file(path)
    if file.name == DISTRIBUTED:
        return (file, *sorted(file.parent.glob("*.distcp")))
    if file.name.endswith(INDEX):
        return (file, *(file.with_name(name) for name in sorted(set(shards(file).values()))))
    return (file,)


def shards(index: Path) -> dict[str, str]:
    """Return which file of its folder holds which tensor, as an index of shards says.

    Raises UserError for a file that is no such index, and for shards that are not there, by name.
    """
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        placed = {str(name): str(file) for name, file in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index}: not an index of shards (expected JSON with a 'weight_map')") from None
    wanted = sorted(set(placed.values()))
    if away := [name for name in wanted if Path(name).name != name]:
        raise UserError(f"{index}: shard '{away[0]}' lies outside the folder")
    if missing := [name for name in wanted if not index.with_name(name).is_file()]:
        held = sum(name in missing for name in placed.values())
        shown = ", ".join(f"'{name}'" for name in missing[:_SHOWN])
        raise UserError(
            f"{index}: {len(missing)} of {len(wanted)} shards are not there: {shown}"
            f"{', ...' if len(missing) > _SHOWN else ''} ({held} of {len(placed)} tensors); download them"
            " into the folder"
        )
    return placed


def sha256_checkpoint(path: Path) -> str:
    """Return the SHA-256 (hex) of a checkpoint's file; of several, that of their names and digests."""
    parts = parts_of(path)
    if len(parts) == 1:
        return sha256_file(parts[0])
    text = "".join(f"{part.name} {sha256_file(part)}\n" for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()


def _of_folder(folder: Path) -> Path:
    for name in _USUAL:
        if (folder / name).is_file():
            return folder / name
    held = sorted(path.name for path in folder.iterdir())
    if "zero_to_fp32.py" in held:
        raise UserError(
            f"{folder}: a folder of DeepSpeed, whose ranks hold parts; make one file of it with"
            f" {by_deepspeed(folder)}"
        )
    if any(_OF_RANK.fullmatch(name) for name in held):
        whole = "mp_rank_00_model_states.pt"
        more = f", or name {folder / whole} (in the precision of the training)" if whole in held else ""
        raise UserError(
            f"{folder}: one step's folder of DeepSpeed, whose ranks hold parts; make one file of it with"
            f" {by_deepspeed(folder.parent)}{more}"
        )
    if orbax := [
        place
        for place in (".", "default", *held, *(f"{name}/default" for name in held))
        if any((folder / place / name).is_file() for name in _ORBAX)
    ]:
        raise UserError(f"{folder}: {ORBAX.format(folder / orbax[0])}")
    if "saved_model.pb" in held or any(name.endswith(".ckpt.index") or name == "checkpoint" for name in held):
        raise UserError(
            f"{folder}: a folder of TensorFlow; carryover reads torch's, safetensors' and timm's files"
        )
    files = [name for name in held if name.endswith(_SUFFIXES) and (folder / name).is_file()]
    if len(files) == 1:
        return folder / files[0]
    shown = ", ".join(f"'{name}'" for name in (files or held)[:_SHOWN]) or "nothing"
    wanted = "name one of them" if files else f"expected {', '.join(_USUAL[:4])}, or the path of a file"
    raise UserError(
        f"{folder}: a folder with {shown}{', ...' if len(files or held) > _SHOWN else ''}; {wanted}"
    )
