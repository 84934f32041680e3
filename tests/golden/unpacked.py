"""The golden files, unpacked: one of every file that a released version wrote."""

import tarfile
from pathlib import Path

HERE = Path(__file__).parent


def unpack(version: str, archive: str, to: Path, *below: str) -> Path:
    """Unpack an archive of a version into `to` and return its root; only what lies below the given paths."""
    with tarfile.open(HERE / version / f"{archive}.tar.xz") as packed:
        wanted = [m for m in packed.getmembers() if not below or any(_is_below(m.name, b) for b in below)]
        packed.extractall(to, members=wanted, filter="data")
    return to / archive


def _is_below(name: str, path: str) -> bool:
    inside = name.split("/", 1)[1] if "/" in name else ""
    return inside == path or inside.startswith(f"{path}/")
