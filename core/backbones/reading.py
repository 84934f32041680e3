"""Reading other people's files: every tensor in them by its dotted name, and nothing of theirs executed."""

import argparse
import itertools
import json
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from carryover.configs import UserError
from carryover.core.backbones.distributed import WHOLE, part_of_rank, read_distributed, whole_of_rank
from carryover.core.backbones.distributed import Wanted as WantedValues
from carryover.core.backbones.foreign import (
    foreign,
    in_folder_of_tensorflow,
    not_torch_archive,
    refused_pickle,
)
from carryover.core.backbones.inert import Inert, is_module, parts, plain
from carryover.core.backbones.mapped import Mapped, flat_tensor
from carryover.core.backbones.torch_file import LEGACY, read_legacy, read_pickle, read_zip
from carryover.core.formats.checkpoint_files import (
    DISTRIBUTED,
    INDEX,
    by_deepspeed,
    checkpoint_file,
    shards,
)

_HEAD_BYTES = 512
_PLAIN_DEPTH, _PLAIN_LIMIT, _DEPTH = 6, 10_000, 40
_SAFETENSORS_HEADER_LIMIT = 100_000_000
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
# Networks among the settings of a training are those that it began with, not those that it made.
_SETTINGS = frozenset({"hyper_parameters", "hparams", "args", "config", "cfg", "opt", "callbacks"})
_DAMAGED = (
    pickle.UnpicklingError,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
)


@dataclass(frozen=True)
class Contents:
    """A file, read: its layout, its tensors by dotted name, its plain top-level entries.

    `entries` holds the file's other top-level keys with their values where those are text or numbers,
    `configuration` all its text and numbers by dotted name, `notes` what is to be said of the reading,
    `mapped` the files that the tensors are views of.
    """

    layout: str
    tensors: Mapping[str, Tensor]
    entries: Mapping[str, object]
    configuration: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    mapped: tuple[Mapped, ...] = ()

    def forget(self) -> None:
        """Give back the memory of the values that were looked at."""
        for mapped in self.mapped:
            mapped.forget()


def read_contents(path: Path) -> Contents:
    """Read a checkpoint of any maker, recognizing its layout from its first bytes.

    Takes files, folders (Hugging Face's, torch.distributed.checkpoint's) and indices of shards. Pickles are
    read by `unpickling.SafeUnpickler`: tensors, arrays and containers are rebuilt, every other class becomes
    a stand-in that does nothing. Nothing but headers is read from the disk until values are looked at.

    Raises
    ------
    UserError
        For a missing, empty, truncated or foreign file, for a pickle that asks for code to be run, and for
        one rank's file of a sharded model (the message names the tensor and the way to the whole one).
    """
    path = checkpoint_file(path)
    if path.name == DISTRIBUTED:
        return _read_folder(path)
    if path.name.endswith(INDEX):
        return _read_shards(path)
    head = _head(path)
    if (found := _read_stated(path, head)) is not None:
        return found
    if head[:1] == b"\x80":
        return _contents(path, "pickle", _guarded(path, lambda: read_pickle(path)))
    in_folder_of_tensorflow(path)
    raise UserError(
        f"{path}: {foreign(head, path)}; expected a safetensors file, a torch.save file, Detectron2's .pkl,"
        " or a folder of Hugging Face or torch.distributed.checkpoint"
    )


def _read_stated(path: Path, head: bytes) -> Contents | None:
    """Read a file of safetensors or torch.save, as its first bytes say; None for any other."""
    if _begins_safetensors(head):
        return _read_safetensors(path)
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(path)
    if head.startswith(LEGACY):
        return _contents(path, "torch (legacy)", _guarded(path, lambda: read_legacy(path)))
    return None


def _begins_safetensors(head: bytes) -> bool:
    # Eight bytes of header length (limited by the format itself), then JSON. Asked before any other layout: a
    # length can begin with the very byte that pickles begin with.
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _SAFETENSORS_HEADER_LIMIT


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise UserError(f"{path}: the file is empty")
    return head


def _read_safetensors(path: Path) -> Contents:
    mapped = Mapped(path)
    try:
        length = int.from_bytes(mapped.view[:8], "little")
        header: dict[str, Any] = json.loads(bytes(mapped.view[8 : 8 + length]))
        metadata = header.pop("__metadata__", {})
        tensors = {name: _view(mapped, 8 + length, about) for name, about in header.items()}
        ends = 8 + length + max((about["data_offsets"][1] for about in header.values()), default=0)
        if len(mapped.view) < ends:
            raise ValueError(f"{len(mapped.view)} bytes, expected {ends}")
    except (*_DAMAGED, RecursionError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({_reason(error)})") from None
    return Contents("safetensors", tensors, dict(metadata), mapped=(mapped,))


def _view(mapped: Mapped, begins: int, about: Mapping[str, Any]) -> Tensor:
    dtype, shape = _DTYPES[about["dtype"]], tuple(about["shape"])
    first, last = about["data_offsets"]
    count = torch.Size(shape).numel()
    if last - first != count * dtype.itemsize:
        raise ValueError(f"{last - first} bytes for {shape} of {about['dtype']}")
    return flat_tensor(mapped.view, dtype, begins + first, count).view(shape)


def _read_shards(index: Path) -> Contents:
    """Read all shards of an index: transformers' safetensors or .bin files."""
    placed = shards(index)
    read = {name: read_shard(index.with_name(name)) for name in sorted(set(placed.values()))}
    tensors = {}
    for name, file in placed.items():
        if name not in read[file].tensors:
            raise UserError(
                f"{index}: '{name}' should be in '{file}', which does not hold it; download it anew"
            )
        tensors[name] = read[file].tensors[name]
    layout = next(iter(read.values())).layout if read else "safetensors"
    entries = {k: v for contents in read.values() for k, v in contents.entries.items()}
    return Contents(
        f"{layout} ({len(read)} shards)",
        tensors,
        entries,
        notes=tuple(dict.fromkeys(note for contents in read.values() for note in contents.notes)),
        mapped=tuple(m for contents in read.values() for m in contents.mapped),
    )


def read_shard(path: Path) -> Contents:
    """Read one file of several."""
    head = _head(path)
    if (found := _read_stated(path, head)) is not None:
        return found
    raise UserError(
        f"{path}: {foreign(head, path)}; expected a shard of safetensors or torch.save; download it anew"
    )


def _read_zip(path: Path) -> Contents:
    mapped = Mapped(path)
    try:
        archive = _guarded(path, lambda: read_zip(mapped.view))
    except KeyError:
        raise UserError(f"{path}: {not_torch_archive(path)}") from None
    contents = _contents(path, "TorchScript" if archive.script else "torch", archive.tree, (mapped,))
    if archive.script and not contents.tensors:
        raise UserError(
            f"{path}: a TorchScript archive without parameters (a frozen one folds them into its code); save"
            " the model's state_dict() instead"
        )
    return contents


def _read_folder(described: Path) -> Contents:
    tensors, others, mapped = read_distributed(described, WantedValues())
    entries: dict[str, object] = {name.partition(".")[0]: None for name in (*tensors, *others)}
    entries |= {name: plain(value) for name, value in others.items()}
    settings = {
        name: value for name, value in ((n, plain(o)) for n, o in others.items()) if value is not None
    }
    return Contents("torch.distributed.checkpoint", tensors, entries, settings, mapped=mapped)


def _guarded(path: Path, read: Any) -> Any:
    try:
        return read()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: {refused_pickle(str(error))}") from None
    except KeyError as error:
        if error.args == ("data.pkl",):
            raise
        raise UserError(f"{path}: truncated or damaged (no {error})") from None
    except _DAMAGED as error:
        raise UserError(f"{path}: truncated or damaged ({_reason(error)})") from None


def _reason(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _contents(path: Path, layout: str, tree: object, mapped: tuple[Mapped, ...] = ()) -> Contents:
    if isinstance(tree, Tensor | np.ndarray) or not isinstance(tree, Mapping | Inert | list | tuple):
        raise UserError(f"{path}: holds a {type(tree).__name__}, expected a dictionary of tensors")
    tensors: dict[str, Tensor] = {}
    sharded: dict[str, str] = {}
    for name, value in _leaves(tree, "", frozenset()):
        if name in tensors:
            raise UserError(f"{path}: two tensors are called '{name}'")
        if isinstance(value, Tensor):
            tensors[name] = value
        else:
            sharded[name] = value
    _refuse_parts(path, tensors, sharded)
    notes = tuple(_saved_whole(tree, ""))
    top = dict(parts(tree)) if isinstance(tree, Mapping | list | tuple) else {}
    if "ds_version" in top:
        _refuse_parts_of_deepspeed(path, top, tensors)
    entries = {key: plain(value) for key, value in top.items() if not isinstance(value, Tensor | np.ndarray)}
    settings = dict(itertools.islice(_settings(tree, "", 0), _PLAIN_LIMIT))
    return Contents(layout, tensors, entries, settings, notes, mapped)


def _refuse_parts(path: Path, tensors: Mapping[str, Tensor], sharded: Mapping[str, str]) -> None:
    wanted = WantedValues()
    if held := [name for name in sharded if wanted(name)]:
        raise UserError(
            f"{path}: one rank's file of a sharded model: '{held[0]}' is {sharded[held[0]]}"
            f" ({len(held)} such tensors); {WHOLE}"
        )
    flat = [n for n in tensors if re.search(r"(^|\.)_?flat_param(_\d+)?$", n) and wanted(n)]
    if flat:
        raise UserError(
            f"{path}: one rank's file of FSDP: '{flat[0]}' is a flat parameter, the part of one rank"
            f" ({len(flat)} such tensors); save under FSDP.state_dict_type(model,"
            " StateDictType.FULL_STATE_DICT)"
        )


def _refuse_parts_of_deepspeed(path: Path, top: Mapping[str, object], tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError for a file of DeepSpeed's that is one rank's part; the whole module is none."""
    held = [value.numel() for name, value in tensors.items() if name.startswith("module.")]
    world = plain(top.get("mp_world_size"))
    if "module" not in top:
        what = "the optimizer states of one rank (ZeRO)"
    elif held and not any(held):
        what = "the model file of one rank of ZeRO stage 3, whose tensors are empty"
    elif isinstance(world, int) and world > 1:
        what = f"one of {world} parts of a model that is split among its ranks"
    else:
        return
    raise UserError(
        f"{path}: DeepSpeed's: {what}; make one file of all of them with {by_deepspeed(path.parent.parent)}"
    )


def _saved_whole(node: object, name: str, depth: int = 0) -> Iterator[str]:
    """Return which modules were saved whole, whose tensors were read."""
    if isinstance(node, Inert) and is_module(node):
        where = f" at '{name}'" if name else ""
        yield f"a whole module was saved{where} ({node.named}): its class was not imported, its tensors read"
    elif depth < 2 and isinstance(node, Mapping | list | tuple):
        for key, value in parts(node):
            if key not in _SETTINGS:
                yield from _saved_whole(value, f"{name}.{key}" if name else key, depth + 1)


def _settings(node: object, name: str, depth: int) -> Iterator[tuple[str, str | int | float | bool]]:
    """Yield text and numbers of nested settings; what histories of training hold is deeper."""
    if (value := plain(node)) is not None:
        yield name, value
    elif isinstance(node, argparse.Namespace):
        yield from _settings(vars(node), name, depth)
    elif isinstance(node, list | tuple) and len(node) == 3 and all(type(v) in (int, float) for v in node):
        # What there is for each of the three colors.
        yield from ((f"{name}.{at}", value) for at, value in enumerate(node))
    elif isinstance(node, Mapping | Inert) and depth < _PLAIN_DEPTH and not is_module(node):
        for key, inner in parts(node):
            yield from _settings(inner, f"{name}.{key}" if name else key, depth + 1)


def _leaves(node: object, name: str, above: frozenset[int]) -> Iterator[tuple[str, Tensor | str]]:
    """Yield every tensor by its name, and of a tensor that is one rank's part which part it is."""
    if isinstance(node, Tensor):
        yield name, node.detach()
    elif isinstance(node, np.ndarray) and node.dtype.kind in "biuf":
        yield name, torch.from_numpy(node.astype(node.dtype.newbyteorder("="), copy=False))
    elif isinstance(node, Inert) and (part := part_of_rank(node)) is not None:
        yield name, part
    elif isinstance(node, Inert) and node.named.endswith(".DTensor"):
        if (whole := whole_of_rank(node)) is not None:
            yield name, whole
    elif isinstance(node, Mapping | Inert | list | tuple) and id(node) not in above and len(above) < _DEPTH:
        for key, value in parts(node):
            if key in _SETTINGS and not name and not isinstance(value, Tensor | np.ndarray):
                continue
            yield from _leaves(value, f"{name}.{key}" if name else key, above | {id(node)})
