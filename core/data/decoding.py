"""Check that every image of a data set can be decoded: done once, and cached.

What was found is kept in the user's cache directory by data set, and counts for a file while its size and
time of change are what they were. Processes that start together wait for the one that looks.
"""

import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from carryover.configs.errors import UserError
from carryover.configs.files import cache_folder, stamp
from carryover.configs.formats import Format
from carryover.core.data.defects import Defect, Policy
from carryover.core.data.pictures import AmbiguousRange, UnreadableImage, in_parallel, read_picture
from carryover.core.training.progress import progress

log = logging.getLogger(__name__)

FORMAT: Final = Format("what was decoded of a data set", 1)
RULE: Final = 1
"""Raised when `core.data.pictures` reads anything differently: all is then tried again."""


@dataclass(frozen=True)
class Undecodable:
    """Reason why an image cannot be used; `kind` is unreadable_image or ambiguous_range."""

    kind: str
    reason: str


def undecodable(paths: Sequence[Path], root: Path, what: str) -> dict[Path, Undecodable]:
    """Return those of a data set's pictures that cannot be read, and why.

    Parameters
    ----------
    paths
        Files that exist.
    root
        The data set's, by which what was found is remembered.
    what
        What the progress bar calls the data set.
    """
    stamps = dict(zip(paths, in_parallel(stamp, paths), strict=True))
    with _memory(root) as memory:
        known = memory.pictures
        fresh = [path for path in paths if known.get(str(path), [None])[0] != stamps[path]]
        if fresh:
            with (
                ThreadPoolExecutor(os.cpu_count()) as threads,
                progress(f"decoding {what}", len(fresh)) as bar,
            ):
                for path, found in zip(fresh, threads.map(_try, fresh), strict=True):
                    bar.advance(1)
                    known[str(path)] = [stamps[path], *found]
            memory.write()
    verdicts = {path: known[str(path)][1:] for path in paths}
    return {path: Undecodable(*verdict) for path, verdict in verdicts.items() if verdict}


def decoding_defects(paths: Sequence[Path], root: Path, what: str, policy: Policy) -> list[Defect]:
    """Return a defect for each of a data set's pictures that `undecodable` finds; its arguments."""
    return [
        policy.defect(path, found.kind, f"cannot be decoded ({found.reason})")
        for path, found in undecodable(paths, root, what).items()
    ]


@dataclass
class _Memory:
    file: Path | None
    pictures: dict[str, list[Any]]

    def write(self) -> None:
        if self.file is None:
            return
        try:
            FORMAT.write(self.file, {"rule": RULE, "pictures": self.pictures}, durable=False)
        except OSError as error:
            log.debug("%s: not written (%s)", self.file, error)


@contextmanager
def _memory(root: Path) -> Iterator[_Memory]:
    """Open what is remembered of a data set, for this process alone; empty where nothing can be kept."""
    name = hashlib.sha256(str(root.expanduser().absolute()).encode()).hexdigest()[:24]
    try:
        folder = cache_folder("decoded")
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / f"{name}.lock").open("w")
    except (OSError, RuntimeError):
        yield _Memory(None, {})
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield _Memory(folder / f"{name}.json", _read(folder / f"{name}.json"))


def _read(file: Path) -> dict[str, list[Any]]:
    try:
        plain = FORMAT.read(file)
    except (UserError, OSError):
        # It only spares work: what cannot be read is tried again.
        return {}
    if plain is None or plain.get("rule") != RULE or not isinstance(plain.get("pictures"), dict):
        return {}
    return {path: found for path, found in plain["pictures"].items() if isinstance(found, list) and found}


def _try(path: Path) -> list[str]:
    try:
        read_picture(path)
    except AmbiguousRange as error:
        return ["ambiguous_range", str(error)]
    except UnreadableImage as error:
        return ["unreadable_image", str(error)]
    return []
