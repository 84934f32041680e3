"""The device: its tensors, its operators, its module, and its registration with torch.

Importing this registers the device, once and for good: torch cannot forget one. Only `second_device` makes it
be found, so that the other tests of the process do not notice.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from tests.second_device import rules
from tests.second_device.autocast import register_autocast
from tests.second_device.counting import METER, Block, forget_peak

NAME = "second"
HOST = torch.device("cpu")


class SecondTensor(Tensor):
    """A tensor on the device; `inner` is the CPU tensor with its values."""

    inner: Tensor
    block: Block

    @staticmethod
    def __new__(cls, inner: Tensor) -> "SecondTensor":
        tensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=SECOND,
        )
        tensor.inner, tensor.block = inner, Block(inner)
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def __repr__(self, *args: Any, **kwargs: Any) -> str:
        return f"{self.inner!r} on {self.device}"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to"
            " host memory first."
        )

    __array__ = numpy

    def new_tensor(self, data: Any, *, dtype: Any = None, device: Any = None, **kwargs: Any) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or self.device, **kwargs)

    # An index that is a list becomes a tensor on the device, as it does on a GPU.
    def __getitem__(self, index: Any) -> Tensor:
        return Tensor.__getitem__(self, _lists_on_device(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        Tensor.__setitem__(self, _lists_on_device(index), value)

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, new: Tensor) -> None:
        if not isinstance(new, SecondTensor):
            raise RuntimeError("incompatible tensor type: .data takes a tensor of the same device")
        Tensor.data.__set__(self, new)  # type: ignore[attr-defined]
        self.inner, self.block = new.inner, new.block

    def __deepcopy__(self, memo: dict[int, Any]) -> "SecondTensor":
        if id(self) in memo:
            return memo[id(self)]
        if not self.is_leaf:
            raise RuntimeError("only leaves of the graph can be deep-copied")
        with torch.no_grad():
            copied = self.clone().requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            copied._is_param = True
        if self.grad is not None:
            copied.grad = self.grad.__deepcopy__(memo)
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        # As torch does for devices whose storage it cannot write.
        arguments = (self.detach().cpu(), self.dtype, str(self.device), self.requires_grad)
        return torch._utils._rebuild_device_tensor_from_cpu_tensor, arguments


def _lists_on_device(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(_lists_on_device(part) for part in index)
    return torch.tensor(index, device=SECOND) if isinstance(index, list) and index else index


class SecondGenerator(torch.Generator):
    """A generator of the device; it draws as the CPU's does."""

    # Operators are given another Python object around the same generator.
    known: ClassVar[set[int]] = set()

    def __init__(self) -> None:
        self.known.add(self._cdata)

    def __del__(self) -> None:
        self.known.discard(self._cdata)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return SECOND


def _is_of_device(generator: torch.Generator) -> bool:
    return generator._cdata in SecondGenerator.known


class _Module:
    """What torch.second offers, as torch.cuda does; `there` says whether the device is to be found."""

    there = False
    generator_state = torch.Generator().manual_seed(0).get_state()
    lock = threading.RLock()

    def is_available(self) -> bool:
        return self.there

    def is_initialized(self) -> bool:
        return self.there

    def device_count(self) -> int:
        return int(self.there)

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any) -> None:
        if torch.device(NAME, device if isinstance(device, int) else device.index or 0) != SECOND:
            raise RuntimeError(f"{device}: there is one device, {SECOND}")

    def get_device_name(self, device: Any = None) -> str:
        return "second device"

    def synchronize(self, device: Any = None) -> None:
        METER.wait("asked to")

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def memory_allocated(self, device: Any = None) -> int:
        return METER.held

    def max_memory_allocated(self, device: Any = None) -> int:
        return METER.costs.peak_bytes

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        forget_peak()

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        self.generator_state = torch.Generator().manual_seed(seed).get_state()

    def get_rng_state(self, device: Any = NAME) -> Tensor:
        return self.generator_state.clone()

    def set_rng_state(self, state: Tensor, device: Any = NAME) -> None:
        self.generator_state = state.clone()

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Let what draws without a generator draw from the device's own, not from the CPU's."""
        with self.lock:
            before = torch.get_rng_state()
            torch.set_rng_state(self.generator_state)
            try:
                yield
            finally:
                self.generator_state = torch.get_rng_state()
                torch.set_rng_state(before)


MODULE = _Module()
_setup_privateuseone_for_python_backend(NAME, backend_module=MODULE)
SECOND = torch.device(NAME, 0)


def run(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run an operator on the CPU tensors inside; refuse and count as CUDA would."""
    flat, spec = pytree.tree_flatten((args, kwargs))
    if (copied := _copy_between(func, args, kwargs)) is not None:
        return copied
    _refuse_mixed(func, args, kwargs, flat)
    inside = [_inside(value) for value in flat]
    own_args, own_kwargs = pytree.tree_unflatten(inside, spec)
    METER.operator(func)
    if (reason := rules.waits(func, own_args, own_kwargs)) is not None:
        METER.wait(reason)
    if torch.Tag.nondeterministic_seeded in func.tags:
        generator = own_kwargs.get("generator")
        if generator is not None and not _is_of_device(generator):
            raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")
        if generator is None:
            with MODULE.drawing():
                return _outside(func, func(*own_args, **own_kwargs), flat, inside, kwargs)
    return _outside(func, func(*own_args, **own_kwargs), flat, inside, kwargs)


def _copy_between(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Copy between the host and the device; None for any other operator."""
    name = func._schema.name
    if name == "aten::copy_":
        into, source, *rest = args
        waiting = not (rest[0] if rest else kwargs.get("non_blocking", False))
        if isinstance(into, SecondTensor) and not isinstance(source, SecondTensor):
            METER.copy_to_device(source, waiting or not source.is_pinned())
            into.inner.copy_(source)
            return into
        if isinstance(source, SecondTensor) and not isinstance(into, SecondTensor):
            if waiting or not into.is_pinned():
                METER.wait("a copy to the host")
            return into.copy_(source.inner)
    elif name == "aten::_to_copy":
        device = kwargs.get("device")
        if isinstance(args[0], SecondTensor) and device is not None and device.type == HOST.type:
            METER.wait("a copy to the host")
            return func(args[0].inner, **{k: v for k, v in kwargs.items() if k != "non_blocking"})
    elif name in ("aten::_pin_memory", "aten::pin_memory"):
        raise RuntimeError(f"cannot pin '{NAME}': only dense CPU tensors can be pinned")
    return None


def _refuse_mixed(
    func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], flat: Sequence[Any]
) -> None:
    hosts = [v for v in flat if isinstance(v, Tensor) and not isinstance(v, SecondTensor)]
    if not hosts or not any(isinstance(v, SecondTensor) for v in flat):
        # Operators that make a tensor on the device from none there.
        return
    indices = list(args[1]) if func._schema.name in rules.INDEXING else []
    for host in hosts:
        if any(host is index for index in indices):
            METER.copy_to_device(host, waits=True)
        elif host.dim() or not rules.takes_number(func):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {SECOND} and"
                f" {host.device}! (in {func}, a tensor {tuple(host.shape)})"
            )


def _inside(value: Any) -> Any:
    if isinstance(value, SecondTensor):
        return value.inner
    return HOST if isinstance(value, torch.device) else value


def _outside(
    func: OpOverload, result: Any, flat: Sequence[Any], inside: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    wanted = kwargs.get("device")
    on_host = wanted is not None and wanted.type != NAME

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor) or on_host:
            return value
        for given, own in zip(flat, inside, strict=True):
            if own is value and given is not value:
                _require_size(func, given)
                return given
        return SecondTensor(value)

    return pytree.tree_map(wrapped, result)


def _require_size(func: OpOverload, given: SecondTensor) -> None:
    if given.shape != given.inner.shape or given.stride() != given.inner.stride():
        given.data = SecondTensor(given.inner)


class _Host(TorchDispatchMode):
    """Refuses what the CPU refuses of the device: to draw from its generator."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        generator, device = kwargs.get("generator"), kwargs.get("device")
        on_device = (device is not None and device.type == NAME) or any(
            isinstance(value, SecondTensor) for value in args
        )
        if generator is not None and _is_of_device(generator) and not on_device:
            raise RuntimeError(f"Expected a 'cpu' device type for generator but found '{NAME}'")
        return func(*args, **kwargs)


class _GeneratorOfDevice(type(torch.Generator)):  # type: ignore[misc]
    """Makes torch.Generator(device) know the device: torch asks a C++ hook that Python cannot give."""

    def __call__(cls, device: Any = "cpu") -> torch.Generator:
        kind = torch.device(device).type
        return SecondGenerator() if kind == NAME else _Generator(device)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _Generator)


_Generator = torch.Generator


def _made_on_host(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let torch.tensor and the like make a tensor on the host and copy it, as they do for a GPU.

    They do so themselves, but in a mode of torch's dispatcher in which Python is not called.
    """

    def making(data: Any, *args: Any, device: Any = None, requires_grad: bool = False, **kwargs: Any) -> Any:
        if device is None or torch.device(device).type != NAME:
            grads = {"requires_grad": True} if requires_grad else {}
            return make(data, *args, device=device, **kwargs, **grads)
        if isinstance(data, SecondTensor):
            return make(data, *args, **kwargs).requires_grad_(requires_grad)
        return make(data, *args, **kwargs).to(device).requires_grad_(requires_grad)

    return making


class _PinnedMemory:
    """Which host memory is page-locked: torch's own needs the driver of a GPU."""

    def __init__(self) -> None:
        self._kept: dict[int, Any] = {}

    def pin(self, tensor: Tensor, device: Any = None) -> Tensor:
        if isinstance(tensor, SecondTensor):
            raise RuntimeError(f"cannot pin '{NAME}': only dense CPU tensors can be pinned")
        if self.is_pinned(tensor):
            return tensor
        copied = tensor.clone(memory_format=torch.preserve_format)
        storage = copied.untyped_storage()
        # Held, so that its address is nobody else's while the device is there.
        self._kept[storage._cdata] = storage
        return copied

    def is_pinned(self, tensor: Tensor, device: Any = None) -> bool:
        return not isinstance(tensor, SecondTensor) and tensor.untyped_storage()._cdata in self._kept


@contextmanager
def second_device() -> Iterator[torch.device]:
    """Have the device there while the block lasts; "auto" then means it."""
    memory = _PinnedMemory()
    before = torch.Generator, torch.tensor, torch.as_tensor, Tensor.pin_memory, Tensor.is_pinned
    torch.Generator = _GeneratorOfDevice("Generator", (), {})  # type: ignore[misc, assignment]
    torch.tensor, torch.as_tensor = _made_on_host(torch.tensor), _made_on_host(torch.as_tensor)
    Tensor.pin_memory = lambda self, device=None: memory.pin(self, device)  # type: ignore[method-assign, assignment]
    Tensor.is_pinned = lambda self, device=None: memory.is_pinned(self, device)  # type: ignore[method-assign, assignment]
    # A module's parameters stay the same objects when it is moved, as they do between the CPU and a GPU.
    torch.__future__.set_swap_module_params_on_conversion(True)
    MODULE.there = True
    MODULE.manual_seed_all(0)
    try:
        with _Host():
            yield SECOND
    finally:
        MODULE.there = False
        torch.__future__.set_swap_module_params_on_conversion(False)
        torch.Generator, torch.tensor, torch.as_tensor, Tensor.pin_memory, Tensor.is_pinned = before  # type: ignore[misc, method-assign]


_EVERYTHING = torch.library.Library("_", "IMPL")
_EVERYTHING.fallback(lambda op, *args, **kwargs: run(op, args, kwargs), "PrivateUse1")
register_autocast(_EVERYTHING)
