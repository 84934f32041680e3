"""The data of a pretraining: `build_dataset` opens, checks and caches it, `Loader` makes its batches."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor

import torch

from carryover.configs import UserError
from carryover.core.data.config import DataConfig
from carryover.core.data.datasets import (
    Dataset,
    FileImages,
    MemoryImages,
    named,
    read_or_next,
    too_many_unreadable,
)
from carryover.core.data.loader import Batch, EvaluationLoader, Loader
from carryover.core.data.opening import open_dataset, reasons_unreadable, report_unreadable
from carryover.core.data.pictures import read_header
from carryover.core.training.distributed import rank, world_size

__all__ = ["Batch", "Dataset", "EvaluationLoader", "Loader", "build_dataset", "open_dataset", "prepare"]

log = logging.getLogger(__name__)

_THREADS = min(16, (os.cpu_count() or 1) * 2)
_PROBED = 64


def build_dataset(config: DataConfig) -> Dataset:
    """Open a data set, draw its subset, report unreadable images by path, and keep it decoded if it is small.

    N is the number of images found, readable or not: an unreadable image's place shows the next readable one.
    Several ranks share the check; each keeps its own decoded copy.

    Raises UserError naming the path and the layout expected there, or the images that cannot be read.
    """
    return prepare(open_dataset(config), config)


def prepare(dataset: Dataset, config: DataConfig) -> Dataset:
    """Report unreadable images by path, and keep the data set decoded if it is small.

    Raises UserError naming the images that cannot be read.
    """
    if isinstance(dataset, FileImages):
        if config.check != "none":
            _report_unreadable(dataset, config)
        dataset = _decoded(dataset, config) or dataset
    return dataset


def _report_unreadable(dataset: FileImages, config: DataConfig) -> None:
    unreadable = reasons_unreadable(dataset.paths[rank() :: world_size()], config)
    report_unreadable(unreadable, len(dataset.paths), config)


def _decoded(dataset: FileImages, config: DataConfig) -> MemoryImages | None:
    """Decode the data set into memory; None when it is too large, or its images differ in size."""
    n = len(dataset)
    probes = {_size(dataset, i) for i in range(0, n, max(1, n // _PROBED))} - {None}
    if len(probes) != 1:
        return None
    (size,) = probes
    assert size is not None
    if n * 3 * size[0] * size[1] > config.cache_gib * 2**30:
        return None
    pixels = torch.empty((n, 3, *size), dtype=torch.uint8)
    shown = list(range(n))
    failures: set[str] = set()

    def decode(index: int) -> bool:
        image, shown[index], passed_over = read_or_next(dataset, index)
        failures.update(passed_over)
        if image.shape[1:] != size:
            return False
        pixels[index] = image
        return True

    with ThreadPoolExecutor(_THREADS) as pool:
        if not all(pool.map(decode, range(n))):
            pool.shutdown(cancel_futures=True)
            return None
    if len(failures) > config.max_unreadable:
        raise UserError(too_many_unreadable(sorted(failures), config.max_unreadable, of=n))
    if failures:
        log.warning("%d of %d images cannot be read:\n  %s", len(failures), n, named(sorted(failures)))
    # An unreadable image's place shows the next readable one: its pixels, its label and its path.
    kept = dataset.take(shown) if failures else dataset
    return MemoryImages(pixels, kept.labels, kept.classes, kept.paths)


def _size(dataset: FileImages, index: int) -> tuple[int, int] | None:
    """Return (height, width) of image `index` by its header, after resizing; None when unreadable."""
    if dataset.resize is not None:
        return dataset.resize, dataset.resize
    try:
        header = read_header(dataset.paths[index], dataset.orientation)
    except OSError:  # Reported elsewhere.
        return None
    return header.height, header.width
