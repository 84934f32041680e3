"""Reading other people's files: every tensor in them by its dotted name, and nothing of theirs executed."""

import argparse
import codecs
import collections
import itertools
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from carryover.configs import UserError

_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_HEAD_BYTES = 64
_PLAIN_DEPTH, _PLAIN_LIMIT = 5, 10_000
_SAFETENSORS_HEADER_LIMIT = 100_000_000


class _Inert:
    """Stands in for a library's bookkeeping object: keeps whatever state it is given and does nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _empty(*_: object) -> collections.OrderedDict[object, object]:
    return collections.OrderedDict()


def _nothing(*_: object) -> None:
    return None


# What checkpoints are known to hold beside tensors. Each name is read as the harmless thing on its right: no
# class of another library is imported, and so no code of theirs (or of whoever made the file) ever runs.
_STAND_INS: dict[str, Any] = {
    "argparse.Namespace": argparse.Namespace,
    "collections.defaultdict": _empty,
    "pathlib.PosixPath": _Inert,
    "typing.Any": _Inert,
    "torch.torch_version.TorchVersion": str,
    "builtins.dict": dict,
    "builtins.list": list,
    "builtins.int": int,
    "builtins.float": float,
    "builtins.str": str,
    "builtins.bool": bool,
    "builtins.tuple": tuple,
    "builtins.getattr": _nothing,
    # MoCo v3, DINO, VISSL, Detectron2, Lightning and mmengine keep their settings and loggers in the file.
    "easydict.EasyDict": collections.OrderedDict,
    "addict.addict.Dict": collections.OrderedDict,
    "mmengine.config.config.ConfigDict": collections.OrderedDict,
    "mmcv.utils.config.ConfigDict": collections.OrderedDict,
    "yacs.config.CfgNode": collections.OrderedDict,
    "fvcore.common.config.CfgNode": collections.OrderedDict,
    "detectron2.config.config.CfgNode": collections.OrderedDict,
    "vissl.config.attr_dict.AttrDict": collections.OrderedDict,
    "vissl.utils.hydra_config.AttrDict": collections.OrderedDict,
    "pytorch_lightning.utilities.parsing.AttributeDict": collections.OrderedDict,
    "lightning_fabric.utilities.data.AttributeDict": collections.OrderedDict,
    "lightning.fabric.utilities.data.AttributeDict": collections.OrderedDict,
    "mmengine.logging.history_buffer.HistoryBuffer": _Inert,
    "omegaconf.dictconfig.DictConfig": _Inert,
    "omegaconf.listconfig.ListConfig": _Inert,
    "omegaconf.base.ContainerMetadata": _Inert,
    "omegaconf.base.Metadata": _Inert,
    "omegaconf.nodes.AnyNode": _Inert,
    "omegaconf.nodes.StringNode": _Inert,
    "omegaconf.nodes.IntegerNode": _Inert,
    "omegaconf.nodes.FloatNode": _Inert,
    "omegaconf.nodes.BooleanNode": _Inert,
}
_NUMPY: dict[str, Any] = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "numpy.core.multiarray.scalar": np._core.multiarray.scalar,  # type: ignore[attr-defined]
    "numpy._core.multiarray.scalar": np._core.multiarray.scalar,  # type: ignore[attr-defined]
    "numpy.core.multiarray._reconstruct": np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    "numpy._core.multiarray._reconstruct": np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
}
_PLAIN_PICKLE: dict[str, Any] = {
    **_NUMPY,
    "collections.OrderedDict": collections.OrderedDict,
    "_codecs.encode": codecs.encode,
}


@dataclass(frozen=True)
class Contents:
    """A file, read: its layout, its tensors by dotted name, its plain top-level entries.

    `entries` holds the file's other top-level keys with their values where those are text or numbers,
    `configuration` all its text and numbers by dotted name.
    """

    layout: str
    tensors: Mapping[str, Tensor]
    entries: Mapping[str, object]
    configuration: Mapping[str, str | int | float | bool] = field(default_factory=dict)


def read_contents(path: Path) -> Contents:
    """Read a checkpoint of any maker, recognising its layout from its first bytes.

    torch files (zip and legacy) are read with `weights_only=True`, first without and then with an explicit
    list of stand-ins; plain pickles (Detectron2's) through an unpickler that knows numpy arrays only.

    Raises
    ------
    UserError
        For a missing, empty, truncated or foreign file, and for a pickle that asks for any other class (the
        message names it).
    """
    head = _head(path)
    if _begins_safetensors(head):
        return _read_safetensors(path)
    if head.startswith(b"PK\x03\x04"):
        return _read_torch(path, "torch")
    if head.startswith(_LEGACY_TORCH):
        return _read_torch(path, "torch (legacy)")
    if head[:1] == b"\x80":
        return _read_pickle(path)
    raise UserError(
        f"{path}: {_foreign(head)}; expected a safetensors file, a torch.save file or Detectron2's .pkl"
    )


def _begins_safetensors(head: bytes) -> bool:
    # Eight bytes of header length (limited by the format itself), then JSON. Asked before any other layout: a
    # length can begin with the very byte that pickles begin with.
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _SAFETENSORS_HEADER_LIMIT


def _head(path: Path) -> bytes:
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint")
    if not path.is_file():
        raise UserError(f"{path}: expected a checkpoint file, found a directory")
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise UserError(f"{path}: the file is empty")
    return head


def _foreign(head: bytes) -> str:
    text = head.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself (run `git lfs pull`)"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not a checkpoint (a download that failed?)"
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")):
        return "a compressed file (unpack it first)"
    if head.startswith(b"\x89HDF"):
        return "an HDF5 file (Keras)"
    if set(head) == {0}:
        return "a file of zeros (an interrupted copy?)"
    return f"not a checkpoint (it begins with {head[:8]!r})"


def _read_safetensors(path: Path) -> Contents:
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return Contents("safetensors", tensors, dict(file.metadata() or {}))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from None


def _read_torch(path: Path, layout: str) -> Contents:
    allowed = [(value, name) for name, value in (_STAND_INS | _NUMPY).items()]
    dtypes = [type(np.dtype(code)) for code in "?bBhHiIlLqQefdSU"]
    try:
        if layout == "torch" and _is_torchscript(path):
            raise UserError(
                f"{path}: a TorchScript archive holds code; save the model's state_dict() instead"
            )
        try:
            tree = _torch_load(path, layout)
        except pickle.UnpicklingError:
            with _allowing([*allowed, *dtypes]):
                tree = _torch_load(path, layout)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: {_refusal(str(error))}") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: truncated or damaged ({reason})") from None
    return _contents(path, layout, tree)


@contextmanager
def _allowing(classes: list[Any]) -> Iterator[None]:
    # torch's context manager takes away what it was given even where somebody else had allowed it before.
    before = torch.serialization.get_safe_globals()
    try:
        with torch.serialization.safe_globals(classes):
            yield
    finally:
        torch.serialization.add_safe_globals(before)


def _is_torchscript(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _torch_load(path: Path, layout: str) -> object:
    # A memory map reads only the tensors that are asked for, but the legacy layout has none.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True if layout == "torch" else None)


def _refusal(message: str) -> str:
    if match := re.search(r"GLOBAL (\S+)", message):
        name = match[1]
        hint = (
            "; the whole model was saved: save its state_dict() instead"
            if re.search(r"(^|\.)(models?|nn|modeling|backbones?)\.", name)
            else ""
        )
        return f"its pickle asks for the class '{name}', which is not on the list of safe ones{hint}"
    if "Unsupported operand" in message:
        return "its pickle uses instructions that the safe reader does not know (use torch.save's defaults)"
    return f"its pickle is not safe to read, or is damaged ({message.partition('.')[0]})"


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds numpy arrays and plain containers, and refuses every other class by name."""

    def find_class(self, module: str, name: str) -> Any:
        found = _PLAIN_PICKLE.get(f"{module}.{name}")
        if found is None:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return found


def _read_pickle(path: Path) -> Contents:
    try:
        with path.open("rb") as file:
            # Detectron2 reads its .pkl files so; Python 2's byte strings are still in its model zoo.
            tree = _ArrayUnpickler(file, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: {_refusal(str(error))}") from None
    except (EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: truncated or damaged ({error or type(error).__name__})") from None
    return _contents(path, "pickle", tree)


def _contents(path: Path, layout: str, tree: object) -> Contents:
    if isinstance(tree, Tensor | np.ndarray) or not isinstance(tree, Mapping):
        raise UserError(f"{path}: holds a {type(tree).__name__}, expected a dictionary of tensors")
    tensors: dict[str, Tensor] = {}
    for name, value in _leaves(tree, ""):
        if name in tensors:
            raise UserError(f"{path}: two tensors are called '{name}'")
        tensors[name] = value
    entries = {
        str(key): value if isinstance(value, str | int | float | bool) else None
        for key, value in tree.items()
        if not isinstance(value, Tensor | np.ndarray)
    }
    return Contents(layout, tensors, entries, dict(itertools.islice(_plain(tree, "", 0), _PLAIN_LIMIT)))


def _plain(node: object, name: str, depth: int) -> Iterator[tuple[str, str | int | float | bool]]:
    """Yield text and numbers of nested settings; what histories of training hold is deeper."""
    if isinstance(node, str | int | float | bool):
        yield name, node
    elif isinstance(node, argparse.Namespace):
        yield from _plain(vars(node), name, depth)
    elif isinstance(node, Mapping) and depth < _PLAIN_DEPTH:
        for key, value in node.items():
            yield from _plain(value, f"{name}.{key}" if name else str(key), depth + 1)


def _leaves(node: object, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(node, Tensor):
        yield name, node.detach()
    elif isinstance(node, np.ndarray) and node.dtype.kind in "biuf":
        yield name, torch.from_numpy(node.astype(node.dtype.newbyteorder("="), copy=False))
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _leaves(value, f"{name}.{index}")
