"""Lists, names and flags as people write them: any encoding, separator and spelling (torch-free)."""

import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path, PureWindowsPath
from urllib.parse import unquote

from carryover.core.data.pictures import IMAGE_SUFFIXES

log = logging.getLogger(__name__)

HIDDEN = frozenset({"__MACOSX"})
"""Folders that archives and notebooks leave, besides those whose name begins with a dot."""

_TRUE = frozenset({"1", "true", "yes", "y", "t", "on"})
_FALSE = frozenset({"0", "false", "no", "n", "f", "off", "none", "null", ""})


def read_text(path: Path) -> str:
    """Return a text file's content: UTF-8 or UTF-16 by their byte order marks, else UTF-8, else Latin-1.

    Raises OSError where it cannot be read.
    """
    raw = path.read_bytes()
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw.decode("utf-16", errors="replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def flag(value: object) -> bool | None:
    """Return a yes or no in any spelling that people write; None for what is neither.

    Missing (None) is no.
    """
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, int | float):
        return bool(value) if value in (0, 1) else None
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
        try:
            return flag(float(word))
        except ValueError:
            return None
    return None


def as_number(value: object) -> float | None:
    """Return a finite number, given as one or as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def as_size(width: object, height: object) -> tuple[int, int] | None:
    """Return a stated (width, height) in whole pixels; None where it is none that a picture could have."""
    numbers = as_number(width), as_number(height)
    if numbers[0] is None or numbers[1] is None or min(numbers[0], numbers[1]) < 1:
        return None
    return round(numbers[0]), round(numbers[1])


def located(folder: Path, name: str) -> Path:
    """Return the file that a list or annotation calls `name`, below `folder`.

    A plain name as it is written, if that is there; another (absolute, of another system, climbing out of the
    folder) by its longest tail inside the folder; else without its URL encoding, else the image of this name
    with another suffix. Where there is none of these, as it is written.
    """
    written = folder / name
    plain = "\\" not in name and not name.startswith(("/", "..")) and "/.." not in name
    if plain and written.exists():
        return written
    parts = [
        part for part in PureWindowsPath(name).parts if part not in ("..", ".") and part[-1:] not in "\\/:"
    ]
    for start in range(len(parts)):
        tail = folder.joinpath(*parts[start:])
        if tail.is_file():
            return tail
    if (decoded := unquote(name)) != name:
        return located(folder, decoded)
    return next((other for other in _with_other_suffix(written) if other.is_file()), written)


def _with_other_suffix(path: Path) -> Iterator[Path]:
    """Yield the names that an image file would have with another suffix, or in other letters."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        for suffix in IMAGE_SUFFIXES:
            yield path.with_suffix(suffix)
            yield path.with_suffix(suffix.upper())


def is_hidden(name: str) -> bool:
    """Return whether a folder is one that no data set means to hold."""
    return name.startswith(".") or name in HIDDEN


def say_once(what: str, names: Iterable[str]) -> None:
    """Log one line for all `names` that something happened to, with the first of them as an example."""
    several = list(names)
    if several:
        log.info("%s (%d of them; for example %s)", what, len(several), several[0])
