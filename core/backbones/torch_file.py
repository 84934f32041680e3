"""Read files of torch.save, zip archives and the older layout, with mapped tensors and without imports."""

import io
import re
import struct
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from carryover.configs import UserError
from carryover.core.backbones.inert import Inert
from carryover.core.backbones.mapped import Mapped, flat_tensor
from carryover.core.backbones.unpickling import SafeUnpickler, Storage, StorageType

LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")


@dataclass(frozen=True)
class Archive:
    """Content of a zip archive of torch.save.

    Attributes
    ----------
    tree
        The object that was saved; its tensors are views of the mapped file.
    script
        Whether it is a TorchScript module, of which only the attributes were read.
    """

    tree: object
    script: bool


def read_zip(view: memoryview) -> Archive:
    """Read an archive of torch.save or torch.jit.save from its bytes.

    Raises zipfile.BadZipFile, pickle.UnpicklingError and ValueError for one that is damaged, and KeyError for
    a zip file without ``data.pkl``.
    """
    with zipfile.ZipFile(_Reader(view)) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        data = next((name for name in entries if re.fullmatch(r"([^/]+/)*data\.pkl", name)), None)
        if data is None:
            raise KeyError("data.pkl")
        root = data.removesuffix("data.pkl")
        order = archive.read(f"{root}byteorder") if f"{root}byteorder" in entries else b"little"
        swapped = order.decode() != sys.byteorder
        storages: dict[str, Storage] = {}

        def find(pid: Any) -> object:
            kind, key = pid[1], str(pid[2])
            if key not in storages:
                storages[key] = Storage(_values(archive, view, entries[f"{root}data/{key}"], kind, swapped))
            return storages[key]

        script = f"{root}constants.pkl" in entries
        tree = SafeUnpickler(io.BytesIO(archive.read(data)), _storages(find)).load()
    return Archive(tree, script)


def read_legacy(path: Path) -> object:
    """Read a file of torch.save before 1.6 (or with `_use_new_zipfile_serialization=False`)."""
    mapped = Mapped(path)
    with path.open("rb") as file:
        return _legacy(file, mapped.view)


def read_pickle(path: Path) -> object:
    """Read a plain pickle: Detectron2's arrays, or tensors that were not saved by torch.save."""
    with path.open("rb") as file:
        return SafeUnpickler(file, nested=read_bytes).load()


def read_bytes(content: bytes) -> object:
    """Read what torch.save wrote into a byte string."""
    if content.startswith(b"PK\x03\x04"):
        return read_zip(memoryview(bytearray(content))).tree
    return _legacy(io.BytesIO(content), memoryview(bytearray(content)))


def _legacy(file: IO[bytes], view: memoryview) -> object:
    for _ in range(3):
        # Magic number, protocol, sizes of C's types on the machine that wrote it.
        head = SafeUnpickler(file).load()
    if isinstance(head, dict) and head.get("little_endian") is False:
        raise ValueError("written on a big-endian machine")
    start = file.tell()
    kinds: dict[str, StorageType] = {}

    def note(pid: Any) -> object:
        kinds[str(pid[2])] = pid[1]
        return Storage(torch.empty(0))

    # The values stand behind the tree, so it is read twice: once for what lies where.
    _Structure(file, _storages(note)).load()
    keys = SafeUnpickler(file).load()
    place, storages = file.tell(), dict[str, Storage]()
    for key in keys:
        dtype = kinds[str(key)].dtype
        if place + 8 > len(view):
            raise ValueError("its values end before their time")
        (count,) = struct.unpack_from("<q", view, place)
        storages[str(key)] = Storage(flat_tensor(view, dtype, place + 8, count))
        place += 8 + count * dtype.itemsize

    def find(pid: Any) -> object:
        found = storages[str(pid[2])]
        if len(pid) > 5 and pid[5] is not None:
            _, offset, count = pid[5]
            return Storage(found.flat[offset : offset + count])
        return found

    file.seek(start)
    return SafeUnpickler(file, _storages(find)).load()


class _Structure(SafeUnpickler):
    """Reads past a tree whose values are not known yet."""

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        return Inert if module == "torch._utils" else found


def _storages(find: Callable[[Any], object]) -> Callable[[Any], object]:
    def load(pid: Any) -> object:
        # The oldest files name the source of modules so.
        if isinstance(pid, tuple) and pid and pid[0] == "module":
            return pid[1]
        if not isinstance(pid, tuple) or len(pid) < 3 or not isinstance(pid[1], StorageType):
            raise UserError(f"a storage of an unknown kind ({str(pid)[:60]})")
        return find(pid)

    return load


def _values(
    archive: zipfile.ZipFile, view: memoryview, info: zipfile.ZipInfo, kind: StorageType, swapped: bool
) -> torch.Tensor:
    dtype = kind.dtype
    if info.compress_type == zipfile.ZIP_STORED and not swapped:
        fields = _LOCAL_HEADER.unpack_from(view, info.header_offset)
        begins = info.header_offset + _LOCAL_HEADER.size + fields[-2] + fields[-1]
        return flat_tensor(view, dtype, begins, info.file_size // dtype.itemsize)
    content = bytearray(archive.read(info))
    if swapped and dtype.itemsize > 1:
        raise UserError("written on a machine of the other byte order")
    return flat_tensor(memoryview(content), dtype, 0, len(content) // dtype.itemsize)


class _Reader(io.RawIOBase):
    """Bytes in memory as a file, without copying all of them."""

    def __init__(self, view: memoryview) -> None:
        self._view, self._at = view, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max((0, self._at, len(self._view))[whence] + offset, 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        end = len(self._view) if size is None or size < 0 else self._at + size
        found = bytes(self._view[self._at : end])
        self._at += len(found)
        return found
