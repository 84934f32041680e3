"""A file's bytes as tensors: mapped, so that only what is looked at is read, and can be let go of again."""

import mmap
from pathlib import Path

import torch
from torch import Tensor

# Pages that are never written need no memory set aside: files larger than the memory can be mapped.
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)


class Mapped:
    """A file that is mapped into memory.

    `view` is all of its bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self._map = mmap.mmap(
                file.fileno(),
                0,
                flags=mmap.MAP_PRIVATE | _NORESERVE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
            )
        self.view = memoryview(self._map)

    def forget(self) -> None:
        """Give back the memory of what was read; it is read again when it is looked at again.

        Only until its tensors are written to, which changes the memory alone.
        """
        self._map.madvise(mmap.MADV_DONTNEED)


def flat_tensor(buffer: memoryview, dtype: torch.dtype, offset: int, count: int) -> Tensor:
    """Return `count` values that begin at byte `offset`, without copying them.

    Raises ValueError where the bytes end before.
    """
    if count == 0:
        return torch.empty(0, dtype=dtype)
    if offset < 0 or offset + count * dtype.itemsize > len(buffer):
        raise ValueError("its values end before their time")
    return torch.frombuffer(buffer, dtype=dtype, offset=offset, count=count)
