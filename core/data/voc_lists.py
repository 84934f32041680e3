"""Paths in Pascal VOC's layout, and parsing of its lists (torch-free)."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from carryover.core.data.names import is_hidden, read_text
from carryover.core.data.pictures import IMAGE_SUFFIXES

LISTINGS = Path("ImageSets", "Main")
_SPLITS = frozenset({"train", "val", "trainval", "test"})
_SUFFIXES = frozenset(IMAGE_SUFFIXES)


@dataclass(frozen=True)
class VocFiles:
    """The folders of a VOC data set's images and annotations; the same one where they lie side by side."""

    images: Path
    annotations: Path

    @classmethod
    def of(cls, folder: Path) -> "VocFiles":
        """Return those of one VOC folder (``VOC2007``), or of a folder with images and XML side by side."""
        if (folder / "JPEGImages").is_dir() or (folder / "Annotations").is_dir():
            return cls(folder / "JPEGImages", folder / "Annotations")
        return cls(folder, folder)


@dataclass(frozen=True)
class Listed:
    """Entry of a list: an image without suffix, its mask if the line has a second path, and the suffix."""

    id: str
    mask: str | None = None
    suffix: str = ""


def side_by_side(root: Path) -> list[Path]:
    """Return the folders directly inside `root` that hold XML beside images, as exporters write splits."""
    if not root.is_dir():
        return []
    folders = (p for p in sorted(root.iterdir()) if p.is_dir() and not is_hidden(p.name))
    return [folder for folder in folders if any(not is_hidden(p.name) for p in folder.glob("*.xml"))]


def ids_of_folder(folder: Path) -> list[str]:
    """Return the names without suffix of all images and annotations that lie in one folder."""
    annotated = {path.stem for path in folder.glob("*.xml") if not is_hidden(path.name)}
    return sorted(annotated | images_by_name(folder).keys())


def listed(listing: Path) -> list[Listed]:
    """Return what the lines of a list name, in its order; raises OSError where it cannot be read."""
    return [_listed(words) for words in _lines(listing)]


def is_of_one_class(listing: Path) -> bool:
    """Return whether a list is for a single class (``aeroplane_train.txt``)."""
    named, _, split = listing.stem.rpartition("_")
    return bool(named) and split in _SPLITS and any(_has_flag(words) for words in _lines(listing)[:1])


def images_by_name(folder: Path) -> dict[str, Path]:
    """Return the image files below a folder by path without suffix; a .jpg goes before its namesakes."""
    found: dict[str, Path] = {}
    for path in _files_below(folder):
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith("."):
            found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    return found


def _files_below(folder: Path) -> Iterator[Path]:
    for directory, below, names in os.walk(folder, followlinks=True):
        below[:] = sorted(name for name in below if not is_hidden(name))
        for name in sorted(names, key=lambda name: not name.lower().endswith(".jpg")):
            yield Path(directory, name)


def _lines(listing: Path) -> list[list[str]]:
    lines = (line.split() for line in read_text(listing).splitlines())
    return [words for words in lines if words]


def _listed(words: list[str]) -> Listed:
    """Read a line without a flag behind the name, a path in front of it, quotes or suffix.

    Folders below JPEGImages stay part of the name. Of two paths (DeepLab's lists) the first is the image's.
    """
    words = words[:-1] if _has_flag(words) else words
    mask = None
    if len(words) == 2 and all(Path(word).suffix.lower() in _SUFFIXES for word in words):
        words, mask = words[:1], words[1].replace("\\", "/").lstrip("/")
    name = " ".join(words).strip("'\"").replace("\\", "/").lstrip("/")
    name = name.split("JPEGImages/")[-1]
    suffix = Path(name).suffix if Path(name).suffix.lower() in _SUFFIXES else ""
    return Listed(name.removesuffix(suffix), mask, suffix)


def _has_flag(words: list[str]) -> bool:
    """Return whether a line carries the column of the lists of single classes: absent, difficult, present."""
    return len(words) > 1 and words[-1] in {"-1", "0", "1"}
