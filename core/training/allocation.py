"""Memory that a training on the CPU frees stays with the process, to be used again at the next step.

glibc maps every block of more than 32 MiB, and smaller ones under conditions, from the system and gives it
back when it is freed. A training asks for the same activations again at every step, and the system clears
each of their pages anew: 5 to 9 % of a ResNet-18's step (benchmarks/results/convolution-2026-11-28.md).
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# From malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_DEFAULT_TRIM_THRESHOLD, _DEFAULT_MMAP_MAX = 128 * 1024, 65536


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Keep freed memory inside the `with` block, and give it back to the system at its end.

    Does nothing for work on a GPU, where the C library is not glibc, or where the environment tunes its
    allocator already (GLIBC_TUNABLES, MALLOC_TRIM_THRESHOLD_ and the like).
    """
    tuned = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    library = ctypes.CDLL(None)
    is_glibc = hasattr(library, "mallopt") and hasattr(library, "malloc_trim")
    if device.type != "cpu" or tuned or not is_glibc:
        yield
        return
    library.mallopt(_M_MMAP_MAX, 0)
    library.mallopt(_M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        library.mallopt(_M_MMAP_MAX, _DEFAULT_MMAP_MAX)
        library.mallopt(_M_TRIM_THRESHOLD, _DEFAULT_TRIM_THRESHOLD)
        library.malloc_trim(0)
