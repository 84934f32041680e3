"""The reading of a data set's pictures as a part of what a number is of: today's version, and version 1's.

carryover 0.1 did not say how it read pictures. It ignored orientations, and clipped or shifted what has more
than 8 bits a channel, by a rule of each task's own; all other pictures it read as they are read now. So its
results are today's work unless their data hold a picture of these kinds, which the files themselves tell.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

from carryover.core.data.pictures import READING, Orientation, in_parallel, unlike_v1
from carryover.core.training.progress import progress

# Looked at between two looks at whether one was found.
_CHUNK = 2048


def reading_of_v1(recipe: Any) -> int | str:
    """Return the part `reading` of the identity of what carryover 0.1 made of a recipe's data.

    `READING` where no picture is read differently now, also where the data set is not there; else version 1,
    with the first picture that is. Headers are read, no pixel is decoded; a data set is looked at once.
    """
    data = recipe.data
    if data.root is None or not data.root.expanduser().is_dir():
        return READING
    paths = tuple(path for _, path in data.contents().images)
    changed = tuple(in_parallel(_time_of_change, paths))
    return _first_unlike(paths, changed, getattr(data, "orientation", "exif"))


# A run directory has many results on one data set.
@lru_cache(maxsize=8)
def _first_unlike(paths: tuple[Path, ...], changed: tuple[int, ...], orientation: Orientation) -> int | str:
    with progress("headers of pictures that carryover 0.1 has read", len(paths)) as bar:
        for start in range(0, len(paths), _CHUNK):
            some = paths[start : start + _CHUNK]
            found = in_parallel(lambda path: unlike_v1(path, orientation), some)
            for path, why in zip(some, found, strict=True):
                if why is not None:
                    return f"1 ({_short(path)} {why})"
            bar.advance(len(some))
    return READING


def _time_of_change(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _short(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
