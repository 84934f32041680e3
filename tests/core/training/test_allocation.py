"""Freed memory that is kept: the same block costs page faults once, and the system has it back afterwards."""

import os
import platform
import subprocess
import sys

import pytest

_PROGRAM = """
import resource, torch
from carryover.core.training.allocation import freed_memory_kept

def faults(turns, mib):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(turns):
        torch.empty(mib * 2**20, dtype=torch.uint8)[: 48 * 2**20].fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

torch.set_num_threads(1)
outside, before = faults(4, 48), faults(4, 1024)
with freed_memory_kept(torch.device("cpu")):
    # Small blocks settle in the first ones' place, which then no longer hold a large one.
    faults(20, 48)
    inside, kept = faults(4, 48), resident()
returned = kept - resident()
# Below a small block that lives on there is a gap, its pages given back, for the next 48 MiB: not for 1,024.
faults(20, 1024)
print(outside, inside, before, faults(4, 1024), returned)
"""


def _measured(**environment: str) -> list[int]:
    tuned = {name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"}
    plain = {name: value for name, value in os.environ.items() if name not in tuned}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], env=plain | environment, capture_output=True, text=True, check=True
    )
    return [int(word) for word in done.stdout.split()]


glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


@glibc
def test_a_freed_block_is_used_again_without_page_faults_and_returned_at_the_end() -> None:
    outside, inside, before, after, returned = _measured()
    # 48 MiB are 12,288 pages of 4 KiB; of huge ones there are fewer.
    assert inside < outside / 10
    assert after > before / 2
    assert returned > 40 * 2**20


@glibc
def test_an_allocator_that_the_environment_tunes_is_left_as_it_is() -> None:
    # A threshold of glibc's own: it frees as it would by default, but somebody has asked for it.
    outside, inside, *_ = _measured(MALLOC_TRIM_THRESHOLD_="131072")
    assert inside > outside / 2
