"""JSON files that many processes read and write over NFS, without locks."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Replace `path` in one step: a reader on any machine sees the old text or the new, never a part.

    Unless it is `durable`, a machine that loses power may leave the file empty, which reads as missing.
    """
    write_bytes(path, _text(value), durable=durable)


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Replace `path` in one step, as `write_json` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    _write(temporary, content, durable)
    temporary.replace(path)


def create_json(path: Path, value: Any) -> bool:
    """Write `path` only if it does not exist; return whether this call made it.

    A hard link is the one exclusive creation that NFS has always got right (open(2), O_EXCL), and the file
    appears with its whole text.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    _write(temporary, _text(value), durable=True)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True


def read_json(path: Path) -> Any | None:
    """Return the value in `path`, or None when there is no such file, or an empty one."""
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return json.loads(text) if text else None


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")


def _text(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _write(path: Path, content: bytes, durable: bool) -> None:
    with path.open("wb") as file:
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
