"""Image files of the same content: in training and test images, twice in a split, under two classes."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from carryover.configs.files import sha256_file
from carryover.core.data.defects import Action, Defect
from carryover.core.data.pictures import in_parallel

_TAIL_BYTES = 4096

Same = Mapping[Path, str]
"""Digests of those files that have another one of the same content beside them."""


def identical(paths: Sequence[Path]) -> Same:
    """Return the digests of the files of which there are several of the same content.

    Files are read whole only where sizes and last bytes are the same.
    """
    suspects = list(dict.fromkeys(paths))
    found: dict[Path, Any] = {}
    for key in (_size, _tail, sha256_file):
        found = _keys(key, suspects)
        counts = Counter(found.values())
        suspects = [path for path in suspects if counts[found[path]] > 1]
    return {path: found[path] for path in suspects}


def test_in_train(
    train: Sequence[Path],
    test: Sequence[Path],
    action: Action,
    key: str = "data.defects.test_in_train",
    same: Same | None = None,
) -> list[Defect]:
    """Return a defect for every test image whose file is that of a training image, wherever either lies.

    `key` is where a recipe says what is done; `same` is what `identical` found among files that hold these.
    """
    if not train or not test:
        return []
    digests = identical((*train, *test)) if same is None else same
    both = set(train) & set(test)
    first = {digests[path]: path for path in reversed(train) if path in digests}
    return [
        Defect(
            path,
            "test_in_train",
            "is a training image too"
            if path in both
            else f"is the training image {first[digests[path]]} too",
            action,
            ("fatal", "keep"),
            key,
        )
        for path in test
        if path in both or digests.get(path) in first
    ]


def repeated_images(
    paths: Sequence[Path],
    classes: Sequence[str],
    same: Same | None = None,
    two_labels: Action = "keep",
    duplicate_image: Action = "keep",
) -> list[Defect]:
    """Return a defect for every file of a split that repeats an earlier one, by its class the same or not.

    `classes` names the class of every file. Of a picture under two classes at most one label is right.
    """
    digests = identical(paths) if same is None else same
    first: dict[str, tuple[Path, str]] = {}
    defects = []
    for path, name in zip(paths, classes, strict=True):
        if path not in digests:
            continue
        original, other = first.setdefault(digests[path], (path, name))
        if original == path:
            continue
        kind, action = ("duplicate_image", duplicate_image) if name == other else ("two_labels", two_labels)
        message = f"the same file as {original}"
        if name != other:
            message += f", whose class is another one ('{name}' here, '{other}' there)"
        defects.append(Defect(path, kind, message, action, ("fatal", "keep"), f"data.{kind}"))
    return defects


def _keys(of: Callable[[Path], Any], paths: Sequence[Path]) -> dict[Path, Any]:
    return dict(zip(paths, in_parallel(of, paths), strict=True))


def _size(path: Path) -> int:
    return path.stat().st_size


def _tail(path: Path) -> tuple[int, bytes]:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(-min(_TAIL_BYTES, size), os.SEEK_END)
        return size, hashlib.blake2b(file.read(), digest_size=16).digest()


test_in_train.__test__ = False  # type: ignore[attr-defined] # not a pytest function
