"""A digest of a data set as it lies on disk: mended data are other data, wherever they lie."""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from carryover.configs.files import sha256_file
from carryover.core.data.names import is_hidden, located, read_text
from carryover.core.data.pictures import in_parallel

_READ_WHOLE_BYTES = 256 * 2**20
"""Images that take no more than this together count with their contents, more of them with their sizes."""
# Of these a mended picture usually has the size of the old one.
_UNCOMPRESSED = frozenset({".bmp", ".npy", ".pbm", ".pgm", ".pnm", ".ppm", ".tif", ".tiff"})
_IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif"}) | _UNCOMPRESSED

# Annotation files of half a gigabyte are searched, not parsed.
_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')

_READ: dict[tuple[int, ...], str] = {}
"""SHA-256 (hex) by device, inode, size and times: stages of a pipeline in one process read the same files."""
_SETTLED_NS = 2_000_000_000

Named = tuple[str, Path]
"""A file, and the name by which the data set knows it: no part of where the data set lies."""


@dataclass(frozen=True)
class Contents:
    """Contents of a data set that are read.

    Attributes
    ----------
    texts
        Annotations, lists and masks, which count with their contents.
    images
        Pictures.
    """

    texts: tuple[Named, ...] = ()
    images: tuple[Named, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.texts or self.images)

    def __add__(self, other: "Contents") -> "Contents":
        return Contents(self.texts + other.texts, self.images + other.images)

    def digest(self) -> str:
        """Return the SHA-256 (hex) of names and contents; of images their sizes where they are many.

        A file that is missing counts as missing: the reader reports what is wrong with the data set.
        """
        sizes = dict(zip(self.images, in_parallel(_size, (path for _, path in self.images)), strict=True))
        whole = sum(sizes.values()) <= _READ_WHOLE_BYTES
        read = [*self.texts, *(i for i in self.images if whole or i[1].suffix.lower() in _UNCOMPRESSED)]
        paths = list(dict.fromkeys(path for _, path in read))
        found = dict(zip(paths, in_parallel(_sha256, paths), strict=True))
        contents = {(name, path): found[path] for name, path in read}
        files = (*self.texts, *self.images)
        rows = [(name, contents.get((name, path)) or sizes[name, path]) for name, path in files]
        return hashlib.sha256(json.dumps(sorted(set(rows), key=repr)).encode()).hexdigest()


class ReadData(Protocol):
    """A recipe's section on data: where the data set lies, and which of its files are read."""

    @property
    def root(self) -> Path | None: ...

    def contents(self) -> Contents: ...


def recipe_digest(recipe: Any) -> str | None:
    """Return the digest of what a recipe reads: its data, and the list of labels if it has one.

    None where the data set is not there (its reader will say so).
    """
    data: ReadData = recipe.data
    if data.root is None or not data.root.expanduser().is_dir():
        return None
    listed = getattr(getattr(recipe, "labels", None), "contents", Contents)
    contents = data.contents() + listed()
    return contents.digest() if contents else None


def listed(root: Path, list_file: Path) -> Contents:
    """List what a file of ``path[ label]`` lines names, relative to `root`."""
    file = list_file.expanduser()
    file = file if file.is_file() else root / file
    names = []
    for line in lines_of(file):
        before, _, last = line.strip().rpartition("\t" if "\t" in line else " ")
        names.append(before.strip() if before.strip() and last.strip().isdecimal() else line.strip())
    return Contents((("list", file),), tuple((name, root / name) for name in names if name))


def images_below(folder: Path, prefix: str = "") -> Iterator[Named]:
    """Yield the pictures below a folder by their names relative to it; hidden files are none."""
    for directory, below, files in os.walk(folder, followlinks=True):
        below[:] = sorted(name for name in below if not is_hidden(name))
        at = os.path.relpath(directory, folder)
        for name in sorted(files):
            if Path(name).suffix.lower() in _IMAGES and not name.startswith("."):
                yield prefix + (name if at == "." else f"{at}/{name}"), Path(directory, name)


def named_in(file: Path, folder: Path) -> list[Named]:
    """List the images in `folder` that a COCO annotation file names."""
    try:
        raw = file.read_bytes()
    except OSError:
        return []
    names = []
    for found in _FILE_NAME.findall(raw):
        try:
            names.append(json.loads(found))
        except ValueError:
            names.append(found.decode(errors="replace"))
    return [(name, located(folder, name)) for name in dict.fromkeys(names)]


def lines_of(file: Path) -> list[str]:
    """Return the lines of a text file; none where it cannot be read."""
    try:
        return read_text(file).splitlines()
    except OSError:
        return []


def prefixed(contents: Contents, prefix: str) -> Contents:
    """Return the same files with `prefix` before each name."""
    return Contents(
        tuple((f"{prefix}/{name}", path) for name, path in contents.texts),
        tuple((f"{prefix}/{name}", path) for name, path in contents.images),
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _sha256(path: Path) -> str:
    """Return the digest of a file; of one that has not changed since this process read it, from memory."""
    try:
        at = path.stat()
        key = at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns
        if (found := _READ.get(key)) is None:
            found = sha256_file(path)
            # A file that is still being written may change again within one tick of the file system's clock.
            if time.time_ns() - at.st_ctime_ns > _SETTLED_NS:
                _READ[key] = found
        return found
    except OSError:
        return "missing"
