"""Write files atomically, and identify them by their contents."""

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from carryover.configs.errors import DamagedFileError

_NUMBERS = count()
_TEMPORARIES: set[str] = set()
# `temporary_name`: the file's name and the host, which may have dots, then the process.
_TEMPORARY = re.compile(r"\..+\.(\d+)\.\d+-\d+\.tmp")


@contextmanager
def atomic_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which becomes `path` in one step when the block ends well.

    A reader on any machine finds the old file or the new one, never a part; after an error the old file is
    as it was. The file's mode follows the umask, whatever the library that fills it does.

    Parameters
    ----------
    durable
        Whether the file and its name outlive a loss of power (fsync of the file and of its directory).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    temporary.open("xb").close()
    mode = temporary.stat().st_mode & 0o7777
    try:
        yield temporary
        temporary.chmod(mode)
        if durable:
            _sync(temporary)
        temporary.replace(path)
        if durable:
            _sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
        _TEMPORARIES.discard(temporary.name)


def write_atomic(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Replace `path` by `content` (text as UTF-8) in one step; see `atomic_file`."""
    data = content.encode() if isinstance(content, str) else content
    with atomic_file(path, durable=durable) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Replace `path` by a value as indented JSON, in one step."""
    write_atomic(path, json_text(value), durable=durable)


def create_json(path: Path, value: Any) -> bool:
    """Write `path` only if it does not exist; return whether this call made it.

    A hard link is the one exclusive creation that NFS has always got right (open(2), O_EXCL), and the file
    appears with its whole text.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        temporary.write_text(json_text(value), encoding="utf-8")
        _sync(temporary)
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
        _TEMPORARIES.discard(temporary.name)
    _sync_directory(path.parent)
    return True


def read_json(path: Path) -> Any | None:
    """Return the value in `path`, or None when there is no such file, or an empty one.

    Raises DamagedFileError naming the file when it is not JSON, or no file.
    """
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DamagedFileError(f"{path}: damaged: not a file that can be read ({error.strerror})") from None
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path}: damaged: not whole JSON ({error})") from None


def json_text(value: Any) -> str:
    """Return a value as every JSON file of ours is laid out."""
    return json.dumps(value, indent=1) + "\n"


def temporary_name(path: Path) -> Path:
    """Return a hidden name beside `path` that no other process or thread, on any machine, uses.

    What a killed process leaves under it is removed by `configs.leftovers`.
    """
    own = f"{os.uname().nodename}.{os.getpid()}.{threading.get_ident() % 10**6}-{next(_NUMBERS)}"
    name = f".{path.name}.{own}.tmp"
    _TEMPORARIES.add(name)
    return path.with_name(name)


def temporaries(directory: Path, of: str = "*", *, below: bool = False) -> list[Path]:
    """Return the temporaries of the file `of` (or a pattern) in a directory, or everywhere below it."""
    find = directory.rglob if below else directory.glob
    return list(find(f".{of}.*.tmp"))


def writer_of(temporary: Path) -> tuple[int, bool] | None:
    """Return the number of the process that made a temporary, and whether on this machine; else None."""
    found = _TEMPORARY.fullmatch(temporary.name)
    if found is None:
        return None
    return int(found[1]), f".{os.uname().nodename}.{found[1]}." in temporary.name


def is_being_written(path: Path) -> bool:
    """Return whether a temporary is of this very process, and not of a former one of the same number."""
    return path.name in _TEMPORARIES


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`, under a name of `temporary_name`; it is removed at the end."""
    temporary = temporary_name(path)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _TEMPORARIES.discard(temporary.name)


def cache_folder(of: str) -> Path:
    """Return the user's folder for what can be found again; raises RuntimeError where there is no home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "carryover" / of


def stamp(path: Path) -> str:
    """Return a file's size and time of change: while they stay, what was found in it counts."""
    try:
        stat = path.stat()
    except OSError:
        return "missing"
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _sync_directory(path: Path) -> None:
    # Some file systems of users (FUSE, SMB) cannot; the file itself is on the disk.
    with suppress(OSError):
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """Return a file's SHA-256 (hex)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
