"""What the processor is called and can compute, as the operating system states it (torch-free)."""

import os
import platform
import sys
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_BF16 = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 bf16", "bf16": "Arm bf16"}


def processor_name() -> str:
    """Return the processor's name, or its kind where the system gives no name."""
    return _stated("model name") or platform.processor() or platform.machine()


def bf16_instructions() -> str | None:
    """Return the instructions for bfloat16 that convolutions use, "" for none, None where nothing tells.

    Without them bfloat16 is emulated, and far slower than float32. oneDNN's own limit,
    ``ONEDNN_MAX_CPU_ISA``, counts too.
    """
    if sys.platform != "linux":
        return None
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    if not any(word in limit for word in ("DEFAULT", "BF16", "FP16", "AMX", "AVX10")):
        return ""
    flags = (_stated("flags") or _stated("Features")).split()
    return next((words for flag, words in _BF16.items() if flag in flags), "")


@cache
def _stated(key: str) -> str:
    if not _CPUINFO.exists():
        return ""
    for line in _CPUINFO.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""
