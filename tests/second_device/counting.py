"""What work costs on a device: operators, synchronizations, bytes from the host, bytes held at the most."""

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch._ops import OpOverload

_HERE = Path(__file__).parent
_TORCH = Path(torch.__file__).parent
_ROOT = _HERE.parents[1]

# Memory is taken and views are made without a kernel.
_WITHOUT_KERNEL = ("detach", "empty", "new_empty", "lift", "alias", "_local_scalar_dense", "record_stream")


def is_kernel(func: OpOverload) -> bool:
    """Whether an operator costs a GPU at least one kernel."""
    name = func._schema.name.rpartition("::")[2]
    return not func.is_view and not name.startswith(_WITHOUT_KERNEL)


@dataclass
class Costs:
    """What was counted; `waits` says who made the host wait, by file and function, and `copies` likewise."""

    operators: int = 0
    synchronizations: int = 0
    bytes_to_device: int = 0
    peak_bytes: int = 0
    waits: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    names: Counter[str] = field(default_factory=Counter)

    def __sub__(self, before: "Costs") -> "Costs":
        """Return what came since `before`; the peak is this one's."""
        return Costs(
            self.operators - before.operators,
            self.synchronizations - before.synchronizations,
            self.bytes_to_device - before.bytes_to_device,
            self.peak_bytes,
            self.waits - before.waits,
            self.copies - before.copies,
            self.names - before.names,
        )


class _Meter:
    """The one meter of this process: what is counted for good, and the memory that is held now."""

    def __init__(self) -> None:
        self.costs = Costs()
        self.held = 0
        self.blocks: dict[int, tuple[int, int]] = {}
        self.lock = threading.RLock()

    def operator(self, func: OpOverload) -> None:
        if is_kernel(func):
            with self.lock:
                self.costs.operators += 1
                self.costs.names[str(func)] += 1

    def wait(self, why: str) -> None:
        with self.lock:
            self.costs.synchronizations += 1
            self.costs.waits[f"{caller()}: {why}"] += 1

    def copy_to_device(self, source: Tensor, waits: bool) -> None:
        count = source.numel() * source.element_size()
        with self.lock:
            self.costs.bytes_to_device += count
            self.costs.copies[caller()] += count
        if waits:
            self.wait("a copy from memory that is not page-locked")


METER = _Meter()


class Block:
    """Memory of one storage, held for as long as any tensor on the device looks at it."""

    def __init__(self, tensor: Tensor) -> None:
        self.key = tensor.untyped_storage()._cdata
        with METER.lock:
            size, users = METER.blocks.get(self.key, (0, 0))
            if users == 0:
                size = tensor.untyped_storage().nbytes()
                METER.held += size
                METER.costs.peak_bytes = max(METER.costs.peak_bytes, METER.held)
            METER.blocks[self.key] = size, users + 1

    def __del__(self) -> None:
        with METER.lock:
            size, users = METER.blocks.pop(self.key)
            if users > 1:
                METER.blocks[self.key] = size, users - 1
            else:
                METER.held -= size


def snapshot() -> Costs:
    """Return all that was counted so far in this process."""
    with METER.lock:
        now = METER.costs
        copied = (Counter(now.waits), Counter(now.copies), Counter(now.names))
        return Costs(now.operators, now.synchronizations, now.bytes_to_device, now.peak_bytes, *copied)


def forget_peak() -> None:
    """Begin anew with the most bytes held: those that are held now."""
    with METER.lock:
        METER.costs.peak_bytes = METER.held


@contextmanager
def counted() -> Iterator[Costs]:
    """Yield what is counted inside the block; it is complete at the block's end."""
    before, found = snapshot(), Costs()
    forget_peak()
    try:
        yield found
    finally:
        found.__dict__.update((snapshot() - before).__dict__)


def caller() -> str:
    """Return the innermost function on the stack that is neither torch's own nor of this folder."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_absolute() and _HERE not in path.parents and _TORCH not in path.parents:
            return f"{_shown(path)}:{frame.f_code.co_qualname}"
        frame = frame.f_back  # type: ignore[assignment]
    return "the backward pass"


def _shown(path: Path) -> str:
    resolved = path.resolve()
    if _ROOT in resolved.parents and ".venv" not in resolved.parts:
        return str(resolved.relative_to(_ROOT))
    parts = resolved.parts
    return "/".join(parts[parts.index("site-packages") + 1 :] if "site-packages" in parts else parts[-3:])
