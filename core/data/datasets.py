"""Data sets: images by index, from files or from memory, with labels where there are any.

Torch is imported when an image is read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from carryover.configs import UserError
from carryover.core.data.config import SubsetConfig
from carryover.core.data.draws import permutation
from carryover.core.data.pictures import Orientation, UnreadableImage

if TYPE_CHECKING:
    from torch import Tensor


class Dataset(Protocol):
    """N images.

    Attributes
    ----------
    labels
        One class index an image; None: the data set has no labels.
    classes
        Class names by index; empty without labels.
    paths
        The images' files; None: they are no files.
    max_unreadable
        How many of the images may turn out to be unreadable.
    """

    @property
    def labels(self) -> list[int] | None: ...
    @property
    def classes(self) -> list[str]: ...
    @property
    def paths(self) -> "Paths | None": ...
    @property
    def max_unreadable(self) -> int: ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> "Tensor":
        """Return image `index`, uint8 (3, H, W); raises UnreadableImage."""

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> "Dataset":
        """Return the data set of these images, in this order."""


class Paths(Sequence[Path]):
    """Many files under one root, kept as one array of bytes.

    A list of a million Path objects takes hundreds of megabytes, and again in every loading process, which
    copies the pages as soon as it touches a reference count.
    """

    def __init__(self, root: Path, names: NDArray[np.bytes_]) -> None:
        self.root, self._names = root, names

    @classmethod
    def of(cls, root: Path, names: Sequence[str]) -> "Paths":
        """Keep `names`, relative to root (or absolute)."""
        return cls(root, np.array([n.encode("utf-8", "surrogateescape") for n in names], dtype=np.bytes_))

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, at: int) -> Path: ...
    @overload
    def __getitem__(self, at: slice) -> "Paths": ...
    def __getitem__(self, at: int | slice) -> "Path | Paths":
        if isinstance(at, slice):
            return Paths(self.root, self._names[at])
        return self.root / bytes(self._names[at]).decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[Path]:
        return (self[i] for i in range(len(self)))

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> "Paths":
        """Return these paths, in this order."""
        return Paths(self.root, self._names[np.asarray(indices, dtype=np.int64)])


@dataclass(frozen=True)
class FileImages:
    """Images that are read from files when asked for.

    `resize` and `orientation` as in `core.data.images.read_image`; `max_unreadable` images may turn out to be
    unreadable.
    """

    paths: Paths
    labels: list[int] | None
    classes: list[str]
    resize: int | None = None
    max_unreadable: int = 0
    orientation: Orientation = "exif"

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> "Tensor":
        """Return image `index`, uint8 (3, H, W); raises UnreadableImage."""
        from carryover.core.data.images import read_image

        return read_image(self.paths[index], self.resize, self.orientation)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> "FileImages":
        """Return the data set of these images, in this order."""
        return replace(self, paths=self.paths.take(indices), labels=_taken(self.labels, indices))


@dataclass(frozen=True)
class MemoryImages:
    """Images of one size held decoded: `pixels` uint8 (N, 3, H, W)."""

    pixels: "Tensor"
    labels: list[int] | None
    classes: list[str]
    paths: Paths | None = None
    max_unreadable: int = 0

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, index: int) -> "Tensor":
        """Return image `index`, uint8 (3, H, W)."""
        return self.pixels[index]

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> "MemoryImages":
        """Return the data set of these images, in this order."""
        import torch

        at = np.asarray(indices, dtype=np.int64)
        paths = None if self.paths is None else self.paths.take(at)
        pixels, labels = self.pixels[torch.from_numpy(at)], _taken(self.labels, at)
        return replace(self, pixels=pixels, labels=labels, paths=paths)


def names_of(dataset: Dataset) -> tuple[str, ...]:
    """Return what the images are called: their paths below the data set's root, or their numbers."""
    if dataset.paths is None:
        return tuple(str(i) for i in range(len(dataset)))
    root = dataset.paths.root
    return tuple(str(p.relative_to(root)) if p.is_relative_to(root) else str(p) for p in dataset.paths)


def read_or_next(dataset: Dataset, index: int) -> "tuple[Tensor, int, list[str]]":
    """Read image `index`, or, where it cannot be read, the next one that can (the first follows the last).

    Returns
    -------
    tuple
        The image, uint8 (3, H, W); its index; and what was wrong with each image passed over.

    Raises
    ------
    UserError
        When more images in a row cannot be read than the data set tolerates.
    """
    limit = dataset.max_unreadable
    failures: list[str] = []
    while len(failures) <= min(limit, len(dataset) - 1):
        at = (index + len(failures)) % len(dataset)
        try:
            return dataset.read(at), at, failures
        except UnreadableImage as error:
            failures.append(str(error))
    raise UserError(too_many_unreadable(failures, limit))


def too_many_unreadable(reasons: Sequence[str], allowed: int, of: int | None = None) -> str:
    """Word the error for more unreadable images than are tolerated, naming the first ones."""
    total = "" if of is None else f" of {of}"
    return (
        f"{len(reasons)}{total} images cannot be read, {allowed} are tolerated (data.max_unreadable):"
        f"\n  {named(reasons)}"
    )


def named(reasons: Sequence[str], most: int = 10) -> str:
    """List the first reasons, one a line, and say how many more there are."""
    more = [f"and {len(reasons) - most} more"] if len(reasons) > most else []
    return "\n  ".join([*reasons[:most], *more])


def subset(dataset: Dataset, config: SubsetConfig) -> Dataset:
    """Draw `config.count` images, kept in their order; of one seed the smaller draw lies in the larger.

    Raises UserError when there are fewer images, or when a stratified draw has no labels to go by.
    """
    if config.count > len(dataset):
        raise UserError(f"data.subset.count: {config.count} images requested, but there are {len(dataset)}")
    order = permutation(len(dataset), config.seed)
    if config.stratified:
        if dataset.labels is None:
            raise UserError("data.subset.stratified: the data set has no labels; draw without stratification")
        order = _classes_in_turns(order, np.asarray(dataset.labels))
    return dataset.take(np.sort(order[: config.count]))


def _classes_in_turns(order: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Reorder so that every class appears once before any appears twice; otherwise as before."""
    ordered = labels[order]
    by_class = np.argsort(ordered, kind="stable")
    _, first = np.unique(ordered[by_class], return_index=True)
    sizes = np.diff([*first, len(order)])
    turn = np.empty(len(order), np.int64)
    turn[by_class] = np.arange(len(order)) - np.repeat(first, sizes)
    return order[np.argsort(turn, kind="stable")]


def _taken(labels: list[int] | None, indices: Sequence[int] | NDArray[np.int64]) -> list[int] | None:
    return None if labels is None else [labels[int(i)] for i in indices]
