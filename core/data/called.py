"""What a data set is called: its title, or its folder where the recipe states no title (torch-free)."""

from pathlib import Path
from typing import Final, Protocol

PLACEHOLDER: Final = "my data"
"""The title in the recipes for data of one's own."""

_KINDS: Final = frozenset({"imagefolder", "list", "csv"})
_LAYOUTS: Final = frozenset({"boxes", "VOC", "COCO"})
"""Default titles that name a layout, which any number of data sets have; a recipe may state them too."""


class TitledData(Protocol):
    """The data section of a recipe."""

    @property
    def root(self) -> Path | None: ...

    @property
    def title(self) -> str: ...

    @property
    def model_fields_set(self) -> set[str]: ...


def called(data: TitledData) -> str:
    """Return the data set's title; the name of its folder where the recipe states none."""
    title, root = data.title, data.root
    no_title = title in {PLACEHOLDER, *_KINDS} or (title in _LAYOUTS and "title" not in data.model_fields_set)
    if root is None or not no_title:
        return title
    folder = root.expanduser()
    # As it is written: a link's own name says more than that of what it leads to.
    name = folder.absolute().name
    return (folder.resolve().name if name in ("", "..") else name) or title
