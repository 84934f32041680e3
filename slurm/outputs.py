"""Outputs of a finished stage, and whether they are unchanged."""

from collections.abc import Collection, Mapping
from pathlib import Path

from carryover.configs.files import sha256_file
from carryover.configs.formats import FileModel


class OutputFile(FileModel):
    """A file, or a directory with all it holds.

    Attributes
    ----------
    size
        Bytes in all.
    files
        How many files a directory holds; None for a file.
    sha256, mtime_ns
        Of a file. While the time is the recorded one its contents are not read again.
    """

    size: int
    files: int | None = None
    sha256: str = ""
    mtime_ns: int = 0


def is_inside(name: str) -> bool:
    """Return whether an output's name is a path below the output directory, and not out of it."""
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts


def describe_outputs(out: Path, declared: Collection[str]) -> dict[str, OutputFile]:
    """Describe the declared outputs, or everything in `out` where none is declared.

    A declared output that is not there, or lies outside `out`, is left out.
    """
    names = declared or sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    inside = [name for name in names if is_inside(name)]
    return {name: _describe(out / name) for name in inside if (out / name).exists()}


def unfit_outputs(out: Path, declared: Collection[str], left: Mapping[str, OutputFile]) -> dict[str, str]:
    """Return what is no longer as it was left, by name, and in what; nothing where all of it is.

    `left` is what `describe_outputs` returned; without it (a run of version 1) declared outputs must be there
    and not empty.
    """
    unfit = {}
    for name in dict.fromkeys((*declared, *filter(is_inside, left))):
        reason = _unfit(out / name, left.get(name))
        if reason:
            unfit[name] = reason
    return unfit


def _unfit(path: Path, left: OutputFile | None) -> str:
    if not path.exists():
        return "is gone"
    if path.is_dir():
        now = _describe(path)
        if left is None or (now.files, now.size) == (left.files, left.size):
            return ""
        return f"held {left.files} files of {left.size} bytes, now {now.files} of {now.size}"
    stat = path.stat()
    if left is None:
        return "" if stat.st_size else "is empty"
    if stat.st_size != left.size:
        return f"had {left.size} bytes, now {stat.st_size}" if stat.st_size else "is empty"
    if stat.st_mtime_ns != left.mtime_ns and sha256_file(path) != left.sha256:
        return "has other contents"
    return ""


def _describe(path: Path) -> OutputFile:
    if path.is_dir():
        sizes = [p.stat().st_size for p in path.rglob("*") if p.is_file()]
        return OutputFile(size=sum(sizes), files=len(sizes))
    stat = path.stat()
    return OutputFile(size=stat.st_size, sha256=sha256_file(path), mtime_ns=stat.st_mtime_ns)
