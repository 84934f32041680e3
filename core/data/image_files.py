"""Image headers, read many at a time: the size on disk is what boxes are checked against."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from PIL import Image

from carryover.core.training.progress import progress

In = TypeVar("In")
Out = TypeVar("Out")

# Opening small files waits for the (often networked) disk, not for the processor.
THREADS = 16


def read_size(path: Path) -> tuple[int, int]:
    """Return an image file's (width, height) as stored, without applying its EXIF orientation.

    Raises OSError where PIL cannot read the header (FileNotFoundError where there is no such file).
    """
    try:
        with Image.open(path) as image:
            return image.size
    except Image.DecompressionBombError as error:
        raise OSError(str(error)) from error


def decoding_error(path: Path) -> str | None:
    """Return why an image cannot be decoded to its last pixel, or None."""
    try:
        with Image.open(path) as image:
            image.load()
    # PIL passes on whatever its decoders meet in a broken file: struct.error, IndexError, SyntaxError, ...
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def in_parallel(function: Callable[[In], Out], items: Iterable[In]) -> list[Out]:
    """Return ``[function(item) for item in items]``, computed in threads."""
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(function, items))


def decoding_errors(paths: Sequence[Path], what: str) -> dict[Path, str]:
    """Return the images that cannot be decoded, and why; decodes in threads, with a progress bar."""
    errors: dict[Path, str] = {}
    with ThreadPoolExecutor(os.cpu_count()) as threads, progress(f"decoding {what}", len(paths)) as bar:
        for path, error in zip(paths, threads.map(decoding_error, paths), strict=True):
            bar.advance(1)
            if error is not None:
                errors[path] = error
    return errors
