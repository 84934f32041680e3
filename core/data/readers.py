"""Readers of image data sets: each knows how one kind of data set lies on disk (torch-free).

A user's package adds one by an entry point of the group ``carryover.readers``; its name is then a
`data.kind`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from carryover.configs.registry import Registry
from carryover.core.data.digest import Contents, images_below
from carryover.core.data.named_splits import NamedFiles


class ImageSection(NamedFiles, Protocol):
    """Section of a recipe on a data set of images: a `core.data.config.DataConfig`."""

    @property
    def kind(self) -> str: ...

    @property
    def split(self) -> str: ...

    @property
    def download(self) -> bool: ...

    @property
    def list_file(self) -> Path | None: ...

    @property
    def resize(self) -> int | None: ...


@dataclass(frozen=True)
class Files:
    """The images of a split.

    Attributes
    ----------
    root
        The folder that `names` are relative to.
    labels
        A class index for each image, or none at all.
    classes
        Class names by label.
    """

    root: Path
    names: list[str]
    labels: list[int]
    classes: list[str]


def images_of_split(config: ImageSection, root: Path) -> Contents:
    """Return the pictures below root/<split>, or below the root where there is no such folder."""
    below = root / config.split
    return Contents(images=tuple(images_below(below if below.is_dir() else root)))


@dataclass(frozen=True)
class Reader:
    """One kind of data set.

    Attributes
    ----------
    expected
        What must lie under the root, for messages.
    read
        Lists a split's files, given the section and the root; no image is opened. Raises UserError naming the
        path that is not as expected. A kind whose images are no files returns a `core.data.datasets.Dataset`.
    contents
        Lists what `read` would read, for the data's digest; never raises.
    splits
        The names that `data.split` may have; None: any.
    """

    expected: str
    read: Callable[[ImageSection, Path], Files | Any]
    contents: Callable[[ImageSection, Path], Contents] = images_of_split
    splits: tuple[str, ...] | None = None


READERS: Registry[Reader] = Registry("kind of data set", "carryover.readers")

for _name in ("imagefolder", "cifar10", "cifar100", "tiny_imagenet", "list", "csv", "inaturalist"):
    READERS.register(_name, f"carryover.core.data.layouts:{_name.upper()}")
