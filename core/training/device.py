"""Select the device of a process, and call torch's backend of that device.

Nothing elsewhere asks for CUDA: any backend that torch knows (cuda, which ROCm is too, xpu, mps, or one that
a package registers) is reached through its module, `torch.get_device_module`, and a thing that a backend does
not have (statistics of memory, say) is left out.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from carryover.configs import UserError
from carryover.configs.nearest import nearest
from carryover.core.processor import bf16_instructions

log = logging.getLogger(__name__)

CPU = torch.device("cpu")
AUTO = "auto"
_COMMON = ("cpu", "cuda", "xpu", "mps")


def choose_device(wanted: str = AUTO, local_rank: int = 0) -> torch.device:
    """Return the device that a recipe's `device` names, and make it the current one.

    auto is the accelerator that torch finds, and the CPU where there is none. MPS is taken only by name: it
    has no float64, which several evaluations compute in. Without an index the processes of a machine take
    turns over its devices by their `local_rank`.

    Raises UserError for a device that torch does not know or that is not there.
    """
    name, _, index = wanted.partition(":")
    if name == AUTO:
        found = torch.accelerator.current_accelerator(check_available=True)
        if found is None or found.type == "mps":
            return CPU
        name = found.type
    if name == "cpu":
        return CPU
    count = device_count(name)
    if count == 0:
        raise UserError(_unavailable(wanted, name))
    if index and int(index) >= count:
        raise UserError(f"device: '{wanted}': there are {count}, counted from 0")
    device = torch.device(name, int(index) if index else local_rank % count)
    if (set_device := _offered(device, "set_device")) is not None:
        set_device(device)
    return device


def device_count(kind: str = AUTO) -> int:
    """Return how many devices of a kind are there: 0 for what torch does not know, and for the CPU."""
    if kind == AUTO:
        found = torch.accelerator.current_accelerator(check_available=True)
        return 0 if found is None or found.type == "mps" else device_count(found.type)
    try:
        module: Any = torch.get_device_module(kind)
    except (RuntimeError, AttributeError):
        return 0
    if kind in ("cpu", "meta") or not module.is_available():
        return 0
    return int(module.device_count())


def name_of(device: torch.device) -> str:
    """Return how a device calls itself ("NVIDIA H200"), or its backend's name where it does not."""
    name = _offered(device, "get_device_name")
    return device.type if name is None else str(name(device))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if (wait := _offered(device, "synchronize")) is not None and device.type != "cpu":
        wait()


def copied_to(x: Tensor, device: torch.device) -> Tensor:
    """Return `x` on the device, without making the host wait for it.

    A copy from ordinary memory waits for all that the device still has to do: on its way to an accelerator
    the tensor goes through page-locked memory.
    """
    if x.device.type == "cpu" and pins_memory(device):
        x = x.pin_memory()  # itself where it is page-locked already
    return x.to(device, non_blocking=True)


def pins_memory(device: torch.device) -> bool:
    """Return whether copies to the device are faster from page-locked memory, and need not wait there."""
    return device.type not in ("cpu", "mps", "meta")


def bf16_autocast(device: torch.device, enabled: bool) -> torch.autocast:
    """Return the context in which networks run in bfloat16 on the device; warn once where it is emulated."""
    if enabled and device.type == "cpu" and not torch.compiler.is_compiling():
        _warn_of_emulation()
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


@cache
def _warn_of_emulation() -> None:
    if bf16_instructions() == "":
        log.warning(
            "precision bf16: this CPU has no instructions for it, so it is emulated, several times slower"
            " than float32; precision=fp32 (solver.precision for detectors and segmenters) avoids that"
        )


def reset_peak_memory(device: torch.device) -> None:
    """Forget the most memory held on the device so far: the process may have done other work before."""
    if device.type != "cpu" and (reset := _offered(device, "reset_peak_memory_stats")) is not None:
        reset(device)


def peak_memory_gib(device: torch.device) -> float | None:
    """Return the most memory held since `reset_peak_memory`; None on the CPU, and where no one counts it."""
    peak = None if device.type == "cpu" else _offered(device, "max_memory_allocated")
    return None if peak is None else float(peak(device)) / 2**30


def seeded_generator(device: torch.device, seed: int) -> torch.Generator:
    """Return a generator of its own that draws on the device."""
    return torch.Generator(device).manual_seed(seed)


RandomState = tuple[Tensor, dict[torch.device, Tensor]]


def random_state(devices: Iterable[torch.device] = ()) -> RandomState:
    """Return the states of torch's own generators: the CPU's, and those of `devices`."""
    states = {}
    for device in devices:
        if device.type != "cpu" and (get := _offered(device, "get_rng_state")) is not None:
            states[device] = get() if device.type == "mps" else get(device)
    return torch.get_rng_state(), states


def restore_random_state(state: RandomState) -> None:
    """Give torch's generators the states back that `random_state` returned."""
    torch.set_rng_state(state[0])
    for device, value in state[1].items():
        put: Any = _offered(device, "set_rng_state")
        if device.type == "mps":
            put(value)
        else:
            put(value, device)


@contextmanager
def random_states_kept(devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Give torch's generators their states back at the end: the CPU's, and those of `devices`.

    `torch.manual_seed` inside seeds the accelerator's generator too: where that is in use, it is kept as
    well.
    """
    current = torch.accelerator.current_accelerator(check_available=True)
    if current is not None and current.type != "mps" and torch.get_device_module(current).is_initialized():
        devices = {*devices, torch.device(current.type, torch.accelerator.current_device_index())}
    state = random_state(devices)
    try:
        yield
    finally:
        restore_random_state(state)


def process_group_backend(device: torch.device) -> str:
    """Return the library through which processes on such devices talk: NCCL on CUDA, gloo on CPUs.

    Raises UserError where torch knows none.
    """
    try:
        return dist.get_default_backend_for_device(device)
    except ValueError as error:
        raise UserError(f"device: {device.type}: torch has no process group for it ({error})") from None


def has_own_sync_bn(device: torch.device) -> bool:
    """Return whether torch.nn.SyncBatchNorm has kernels for the device."""
    return device.type in ("cuda", "xpu")


def device_ids(device: torch.device) -> list[torch.device] | None:
    """Return what DistributedDataParallel is told of a module that lies on one device; on the CPU nothing."""
    return None if device.type in ("cpu", "mps") else [device]


def _offered(device: torch.device, name: str) -> Any:
    """Return a function of the backend's module, or None where it has no such function."""
    return getattr(torch.get_device_module(device.type), name, None)


def _unavailable(wanted: str, name: str) -> str:
    try:
        torch.device(name)
    except RuntimeError:
        close = nearest(name, (AUTO, *_COMMON))
        hint = f"; did you mean '{close}'?" if close else ""
        return f"device: '{wanted}' is no device that torch knows{hint}"
    there = [kind for kind in _COMMON if kind == "cpu" or device_count(kind)]
    return f"device: '{wanted}': there is none here; there is {', '.join(there)}"
