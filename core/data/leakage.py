"""Test images that are training images too, by their content."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from carryover.configs.files import sha256_file
from carryover.core.data.defects import Action, Defect
from carryover.core.data.pictures import in_parallel

_TAIL_BYTES = 4096


def test_in_train(
    train: Sequence[Path], test: Sequence[Path], action: Action, key: str = "data.defects.test_in_train"
) -> list[Defect]:
    """Return a defect for every test image whose file is that of a training image, wherever either lies.

    Files are read whole only where sizes and last bytes are the same. `key` is where a recipe says what is
    done.
    """
    for quick in (_size, _tail):
        keys = _keys(quick, train, test)
        shared = {keys[path] for path in train} & {keys[path] for path in test}
        train, test = ([path for path in side if keys[path] in shared] for side in (train, test))
    digests = _keys(sha256_file, train, test)
    first = {digests[path]: path for path in reversed(train)}
    return [
        Defect(
            path,
            "test_in_train",
            "is a training image too"
            if first[digests[path]] == path
            else f"is the training image {first[digests[path]]} too",
            action,
            ("fatal", "keep"),
            key,
        )
        for path in test
        if digests[path] in first
    ]


def _keys(of: Callable[[Path], Any], train: Sequence[Path], test: Sequence[Path]) -> dict[Path, Any]:
    paths = list(dict.fromkeys((*train, *test)))
    return dict(zip(paths, in_parallel(of, paths), strict=True))


def _size(path: Path) -> int:
    return path.stat().st_size


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-min(_TAIL_BYTES, os.fstat(file.fileno()).st_size), os.SEEK_END)
        return file.read()


test_in_train.__test__ = False  # type: ignore[attr-defined] # not a pytest function
