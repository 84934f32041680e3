"""Other people's pickles, read without a single class or function of theirs being imported."""

import argparse
import codecs
import collections
import pathlib
import pickle
import re
from collections.abc import Callable, Mapping
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from carryover.core.backbones.inert import Inert, stand_in

_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
# Whoever asks for one of these asks for code to be run; no checkpoint needs it.
_RUNS_CODE = re.compile(
    r"(os|posix|nt|sys|subprocess|shutil|importlib|runpy|ctypes|socket|pty|code|pdb|webbrowser|commands|signal|"
    r"multiprocessing|threading|urllib|http|ftplib|tempfile|marshal|pip)(\..*)?"
)
_RUNS_BUILTIN = frozenset(
    {"eval", "exec", "execfile", "compile", "__import__", "open", "input", "breakpoint"}
)
_REAL_BUILTINS: Mapping[str, Any] = {
    made.__name__: made
    for made in (
        dict,
        list,
        tuple,
        set,
        frozenset,
        int,
        float,
        str,
        bool,
        bytes,
        bytearray,
        complex,
        slice,
        range,
    )
}


class Storage(NamedTuple):
    """The values of one storage, as a flat tensor."""

    flat: Tensor


class StorageType(NamedTuple):
    """A class of storages that a pickle names: the type of its values."""

    dtype: torch.dtype


FindStorage = Callable[[Any], object]
Nested = Callable[[bytes], object]


class SafeUnpickler(pickle.Unpickler):
    """Rebuilds tensors, arrays and plain containers; everything else becomes an `Inert`.

    `find_storage` gives the `Storage` of a persistent identifier, as torch's files have them; `nested` reads
    what torch.save wrote into a byte string, as plain pickles of tensors have it.
    """

    def __init__(
        self, file: IO[bytes], find_storage: FindStorage | None = None, nested: Nested | None = None
    ) -> None:
        # Python 2's byte strings are still in Detectron2's model zoo.
        super().__init__(file, encoding="latin1")
        self._find_storage, self._nested = find_storage, nested

    def persistent_load(self, pid: Any) -> Any:
        """Return the storage that an identifier is of."""
        if self._find_storage is None:
            raise pickle.UnpicklingError("persistent identifiers outside torch's own files")
        return self._find_storage(pid)

    def find_class(self, module: str, name: str) -> Any:
        """Return the harmless thing that a class or function is read as.

        Raises pickle.UnpicklingError for what could only be meant to run code.
        """
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        named = f"{module}.{name}"
        if (real := _REAL.get(named)) is not None:
            return real
        if named == "torch.storage._load_from_bytes" and self._nested is not None:
            return self._nested
        if module == "builtins" and name in _REAL_BUILTINS:
            return _REAL_BUILTINS[name]
        if module in ("torch", "torch.cuda", "torch.storage") and name in _STORAGES:
            return StorageType(_STORAGES[name])
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if re.fullmatch(r"pathlib(\._local)?", module) and name.endswith(
            ("Path", "PosixPath", "WindowsPath")
        ):
            return _path
        if _RUNS_CODE.fullmatch(module) or (module == "builtins" and name in _RUNS_BUILTIN):
            raise pickle.UnpicklingError(f"RUNS {named}")
        return stand_in(named)


def _getattr(owner: Any, name: str, *_: Any) -> type[Inert]:
    return stand_in(f"{getattr(owner, 'named', type(owner).__name__)}.{name}")


def _path(*words: object) -> str:
    return str(pathlib.PurePosixPath(*map(str, words)))


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1", "utf-8", "utf8", "ascii"):
        raise pickle.UnpicklingError(f"an encoding called {encoding}")
    return codecs.encode(text, encoding)


def _reconstructor(cls: Any, base: Any, state: Any) -> Any:
    made = cls() if isinstance(cls, type) else Inert()
    if isinstance(made, Inert):
        if isinstance(state, Mapping):
            made.items.update(state)
        elif isinstance(state, list | tuple):
            made.members.extend(state)
    return made


def _newobj(cls: Any, *args: Any) -> Any:
    return cls(*args)


def _defaultdict(*_: object) -> collections.OrderedDict[object, object]:
    return collections.OrderedDict()


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    return _strided(storage.flat, offset, size, stride)


def _tensor_v3(
    storage: Any, offset: int, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> Any:
    return _strided(storage.flat.view(dtype), offset, size, stride)


def _strided(flat: Tensor, offset: int, size: Any, stride: Any) -> Tensor:
    # The oldest files have storages that are parts of others: offsets count from the part's beginning.
    return torch.as_strided(flat, tuple(size), tuple(stride), flat.storage_offset() + offset)


def _meta_tensor(dtype: torch.dtype, size: Any, stride: Any, *_: Any) -> Tensor:
    return torch.empty_strided(tuple(size), tuple(stride), dtype=dtype, device="meta")


def _device_tensor(array: Any, *_: Any) -> Tensor:
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else array


def _from_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
    made = function(*args)
    if isinstance(made, Inert):
        # A subclass that holds its values in attributes of its own (DTensor, ShardedTensor, torchao's).
        subclass = stand_in(getattr(kind, "named", "torch.Tensor"))(*args)
        subclass.__setstate__(state)
        return subclass
    return made


def _parameter(data: Any = None, *_: Any) -> Any:
    return data


def _size(*numbers: Any) -> tuple[Any, ...]:
    return tuple(numbers[0]) if numbers and not isinstance(numbers[0], int) else numbers


def _array(buffer: Any, dtype: Any, shape: Any, order: Any = "C") -> Any:
    return np.frombuffer(bytearray(buffer), dtype=dtype).reshape(shape, order=order)


_REAL: dict[str, Any] = {
    "collections.OrderedDict": collections.OrderedDict,
    "collections.defaultdict": _defaultdict,
    "argparse.Namespace": argparse.Namespace,
    "builtins.getattr": _getattr,
    "_codecs.encode": _encode,
    "copyreg._reconstructor": _reconstructor,
    "copyreg.__newobj__": _newobj,
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta_tensor,
    "torch._utils._rebuild_device_tensor_from_numpy": _device_tensor,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _device_tensor,
    "torch._utils._rebuild_xla_tensor": _device_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type": _from_type,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.nn.parameter.Parameter": _parameter,
    "torch.Size": _size,
}
for _core in ("numpy.core", "numpy._core"):
    _REAL |= {
        f"{_core}.multiarray.scalar": np._core.multiarray.scalar,  # type: ignore[attr-defined]
        f"{_core}.multiarray._reconstruct": np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
        f"{_core}.numeric._frombuffer": _array,
    }
