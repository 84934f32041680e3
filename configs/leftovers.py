"""Removal of what failed and killed commands leave: files of no use, empty folders, temporaries."""

import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

from carryover.configs.files import is_being_written, temporaries, writer_of

# A writer on another machine cannot be seen; none takes a day for one file.
_DEAD_FOR_CERTAIN_SECONDS = 86400.0


@contextmanager
def taken_back(
    directory: Path, of_no_use: Collection[str] = (), errors: type[BaseException] = BaseException
) -> Iterator[None]:
    """Remove what was made in `directory` inside, after one of `errors` that leaves nothing of use there.

    That is so if every new file fits one of the patterns `of_no_use`, of paths relative to `directory`; a
    pattern's ``*`` stands for slashes too. New folders without files go as well, `directory` and those above
    it among them. What was there before stays. All of `directory` is listed.
    """
    files, folders = _contents(directory)
    with no_empty_folder(directory):
        try:
            yield
        except errors:
            now_files, now_folders = _contents(directory)
            made = now_files - files
            if all(any(fnmatch(name, pattern) for pattern in of_no_use) for name in made):
                for name in made:
                    (directory / name).unlink(missing_ok=True)
                for name in sorted(now_folders - folders, reverse=True):
                    with suppress(OSError):
                        (directory / name).rmdir()
            raise


@contextmanager
def no_empty_folder(directory: Path) -> Iterator[None]:
    """Remove `directory` and those above it that were made inside, where an error leaves them empty."""
    missing = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise


def _contents(directory: Path) -> tuple[set[str], set[str]]:
    """Return the files and the folders below a directory, as paths relative to it."""
    files: set[str] = set()
    folders: set[str] = set()
    for where, below, names in os.walk(directory):
        here = Path(where).relative_to(directory)
        files.update((here / name).as_posix() for name in names)
        folders.update((here / name).as_posix() for name in below)
    return files, folders


def remove_abandoned(directory: Path, of: str = "*", *, below: bool = False) -> None:
    """Remove the temporaries (`configs.files.temporary_name`) in a directory whose writers were killed.

    `of` is the name, or a pattern of the names, of the files that they would have become; `below`: in the
    folders below it as well. A writer on another machine counts as killed after a day.
    """
    for path in temporaries(directory, of, below=below):
        if _is_abandoned(path):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            with suppress(OSError):
                path.unlink()


def _is_abandoned(path: Path) -> bool:
    writer = writer_of(path)
    if writer is None or is_being_written(path):
        return False
    pid, here = writer
    if here:
        return pid == os.getpid() or not _lives(pid)
    try:
        return time.time() - path.stat().st_mtime > _DEAD_FOR_CERTAIN_SECONDS
    except OSError:
        return False


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True
