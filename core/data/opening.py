"""Open a data set, and say which of its images cannot be read; none is kept in memory (torch-free)."""

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from carryover.configs import UserError
from carryover.core.data.config import DataConfig
from carryover.core.data.datasets import Dataset, FileImages, Paths, named, subset, too_many_unreadable
from carryover.core.data.pictures import header_error, picture_error
from carryover.core.data.readers import READERS, Files

log = logging.getLogger(__name__)

_THREADS = min(16, (os.cpu_count() or 1) * 2)
_BLOCK = 64


def open_dataset(config: DataConfig) -> Dataset:
    """Open a data set and draw its subset; no image is looked at yet.

    Raises UserError naming the path and the layout expected there.
    """
    dataset = _open(config)
    return dataset if config.subset is None else subset(dataset, config.subset)


def _open(config: DataConfig) -> Dataset:
    reader, root = READERS.get(config.kind), config.root
    if root is None:
        raise UserError(
            f"data.root is not set: set it to the directory of the {config.title} data set (data.root=/path)"
        )
    root = root.expanduser()
    if not root.is_dir() and not config.download:
        raise UserError(f"data.root: {root}: no such folder; expected {reader.expected}")
    found = reader.read(config, root)
    if not isinstance(found, Files):
        dataset: Dataset = found
        return dataset
    if not found.names:
        raise UserError(f"{root}: no images; expected {reader.expected}")
    paths = Paths.of(found.root, found.names)
    return FileImages(
        paths,
        found.labels or None,
        found.classes,
        config.resize,
        config.max_unreadable,
        config.orientation,
    )


def look_at(config: DataConfig) -> Dataset:
    """Open a data set as `core.data.prepared.build_dataset` does, and check its files; keep nothing decoded.

    Raises UserError naming the path and the layout expected there, or the images that cannot be read.
    """
    dataset = open_dataset(config)
    if isinstance(dataset, FileImages) and config.check != "none":
        report_unreadable(reasons_unreadable(dataset.paths, config), len(dataset.paths), config)
    return dataset


def reasons_unreadable(paths: Sequence[Path], config: DataConfig) -> list[str]:
    """Return what is wrong with each file that is no image: by its header, or all of it (`check: full`)."""
    error_of: Callable[[Path], object | None] = header_error if config.check == "header" else picture_error

    def check_block(start: int) -> list[str]:
        block = paths[start : start + _BLOCK]
        return [f"{path}: {error}" for path in block if (error := error_of(path)) is not None]

    with ThreadPoolExecutor(_THREADS) as pool:
        return [reason for block in pool.map(check_block, range(0, len(paths), _BLOCK)) for reason in block]


def report_unreadable(reasons: Sequence[str], images: int, config: DataConfig) -> None:
    """Log which of `images` files cannot be read; raise UserError where more cannot than are tolerated."""
    if len(reasons) > config.max_unreadable or (reasons and len(reasons) == images):
        raise UserError(too_many_unreadable(reasons, config.max_unreadable, of=images))
    if reasons:
        log.warning("%d of %d images cannot be read:\n  %s", len(reasons), images, named(reasons))
