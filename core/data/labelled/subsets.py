"""Selection of labeled training images: fractions, n per class, file lists, held-out parts.

Nothing here needs torch: a recipe's labeled subset is known, or an error, before a network is built.
"""

import gzip
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from carryover.configs import UserError
from carryover.configs.counted import counted, counted_of

Indices = NDArray[np.int64]

_SHOWN = 10


@dataclass(frozen=True)
class OfficialList:
    """A published list of file names, shipped compressed under configs/transfer/subsets.

    `sha256` is that of the uncompressed text, so that it can be compared with the publishers' file.
    """

    file: str
    images: int
    sha256: str


OFFICIAL: Mapping[str, OfficialList] = {
    # imagenet_subsets/ of the SimCLR authors (Chen et al. 2020); every 1 % image is among the 10 %.
    "simclr_1percent": OfficialList(
        "1percent.txt.gz", 12_811, "71e82a48ba78252683ae334c4d019ebd5c6e855b9599c1389fbe83eb9549cf17"
    ),
    "simclr_10percent": OfficialList(
        "10percent.txt.gz", 128_116, "6d09de11e7bdaf5b1f3b1f249b6183695f97310cdd20f0c03e7235b6b9392091"
    ),
}


def take_fraction(labels: Sequence[int], classes: Sequence[str], fraction: float, seed: int) -> Indices:
    """Draw `fraction` of every class's images, at random by `seed`.

    Subsets are nested: of one seed, a smaller fraction's images are among a larger one's. A class's share is
    rounded to the nearest whole image.

    Raises
    ------
    UserError
        A class without images, or one that the fraction leaves without any.
    """
    by_class = _by_class(labels, classes)
    empty = [
        f"'{name}' ({counted(members, 'image')})"
        for name, members in zip(classes, by_class)
        if _share(len(members), fraction) == 0
    ]
    if empty:
        raise UserError(
            f"a fraction of {fraction:g} leaves no image of {counted(empty, 'class')}: {_some(empty)};"
            " take a larger fraction, or n per class"
        )
    return _prefixes(by_class, [_share(len(m), fraction) for m in by_class], seed)


def take_per_class(labels: Sequence[int], classes: Sequence[str], images: int, seed: int) -> Indices:
    """Draw `images` of every class at random by `seed`, nested as `take_fraction` is.

    Raises UserError when a class has fewer.
    """
    by_class = _by_class(labels, classes)
    short = [f"'{n}' has {len(m)}" for n, m in zip(classes, by_class) if len(m) < images]
    if short:
        raise UserError(f"{images} images of each class were requested, but {_some(short)}")
    return _prefixes(by_class, [images] * len(classes), seed)


def take_all(labels: Sequence[int], classes: Sequence[str]) -> Indices:
    """Take every image; raises UserError for a class without any."""
    _by_class(labels, classes)
    return np.arange(len(labels), dtype=np.int64)


def take_listed(
    paths: Sequence[Path], labels: Sequence[int], classes: Sequence[str], names: Sequence[str], source: str
) -> Indices:
    """Take the images that a list names, in the list's order.

    A line is the end of an image's path: a bare file name (SimCLR's lists), or one with folders before it.

    Raises
    ------
    UserError
        Images that the list names and the data lacks, a name that fits several images, a name given twice,
        or a class that the list leaves without images; each is named.
    """
    position: dict[str, list[int]] = {}
    for index, path in enumerate(paths):
        position.setdefault(path.name, []).append(index)
    found: list[int] = []
    absent: list[str] = []
    for name in names:
        wanted = PurePath(name).parts
        fits = [i for i in position.get(wanted[-1], ()) if paths[i].parts[-len(wanted) :] == wanted]
        if len(fits) > 1:
            raise UserError(
                f"{source}: '{name}' fits {len(fits)} images ({paths[fits[0]]}, {paths[fits[1]]}, ...);"
                " write the folders too"
            )
        if fits:
            found.append(fits[0])
        else:
            absent.append(name)
    if absent:
        raise UserError(
            f"{source}: {counted_of(absent, names, 'listed image', 'is', 'are')} not among the"
            f" {len(paths):,} training images: {_some(absent)}"
        )
    twice = [str(paths[i]) for i, n in Counter(found).items() if n > 1]
    if twice:
        raise UserError(
            f"{source}: {counted(twice, 'image is', 'images are')} listed more than once: {_some(twice)}"
        )
    chosen = np.asarray(found, dtype=np.int64)
    counts = per_class(labels, classes, chosen)
    missing = [f"'{name}'" for name, n in counts.items() if n == 0]
    if missing:
        raise UserError(f"{source}: no image of {counted(missing, 'class')} is listed: {_some(missing)}")
    return chosen


def hold_out(
    labels: Sequence[int], classes: Sequence[str], chosen: Indices, fraction: float, seed: int
) -> tuple[Indices, Indices]:
    """Split a labeled subset into a part to fit on and a held-out part to select on, class by class.

    At least one image of every class goes to either part.

    Returns
    -------
    (fit, held out), both in the order of `chosen`.

    Raises
    ------
    UserError
        A class with fewer than two labeled images: nothing of it can be held out.
    """
    subset = np.asarray(labels, dtype=np.int64)[chosen]
    rows = [np.flatnonzero(subset == c) for c in range(len(classes))]
    single = [f"'{name}' has {len(r)}" for name, r in zip(classes, rows) if len(r) < 2]
    if single:
        raise UserError(f"holding out a part needs two labeled images of every class, but {_some(single)}")
    counts = [min(max(_share(len(r), fraction), 1), len(r) - 1) for r in rows]
    held = np.zeros(len(chosen), dtype=bool)
    held[_prefixes(rows, counts, seed)] = True
    return chosen[~held], chosen[held]


def read_list(name_or_path: str) -> tuple[list[str], str]:
    """Read a list of image names: a shipped one by name, or a text file (also .gz), one image a line.

    Returns
    -------
    The names, and what to call the list in messages.

    Raises
    ------
    UserError
        An unknown name, a missing, unreadable or empty file.
    """
    official = OFFICIAL.get(name_or_path)
    if official is not None:
        return _read_official(official), name_or_path
    path = Path(name_or_path)
    if not path.is_file():
        known = ", ".join(sorted(OFFICIAL))
        raise UserError(f"labels.list: '{name_or_path}' is neither a file nor a shipped list ({known})")
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as a list of image names ({error})") from None
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise UserError(f"{path}: lists no image")
    return names, str(path)


def per_class(labels: Sequence[int], classes: Sequence[str], chosen: Indices) -> dict[str, int]:
    """Count the chosen images of every class, absent classes included."""
    counts = np.bincount(np.asarray(labels, dtype=np.int64)[chosen], minlength=len(classes))
    return {name: int(n) for name, n in zip(classes, counts)}


def describe(counts: Mapping[str, int]) -> str:
    """Return the number of images, in all and of each class, in one line."""
    total, numbers = sum(counts.values()), sorted(counts.values())
    each = f"{numbers[0]}" if numbers[0] == numbers[-1] else f"{numbers[0]} to {numbers[-1]}"
    return f"{counted(total, 'image')} of {counted(counts, 'class')}, {each} of each"


def _read_official(official: OfficialList) -> list[str]:
    packed = resources.files("carryover.configs").joinpath("transfer", "subsets", official.file).read_bytes()
    raw = gzip.decompress(packed)
    names = raw.decode().split()
    if hashlib.sha256(raw).hexdigest() != official.sha256 or len(names) != official.images:
        raise UserError(f"{official.file}: the installed list is not the published one; reinstall carryover")
    return names


def _by_class(labels: Sequence[int], classes: Sequence[str]) -> list[Indices]:
    array = np.asarray(labels, dtype=np.int64)
    members = [np.flatnonzero(array == c).astype(np.int64) for c in range(len(classes))]
    empty = [f"'{name}'" for name, rows in zip(classes, members) if len(rows) == 0]
    if empty:
        raise UserError(f"{counted(empty, 'class has', 'classes have')} no training image: {_some(empty)}")
    return members


def _share(images: int, fraction: float) -> int:
    # round() would send halves to the even neighbor; half an image counts as one here.
    return int(np.floor(images * fraction + 0.5 + 1e-9))


def _prefixes(by_class: Sequence[Indices], counts: Sequence[int], seed: int) -> Indices:
    # One generator a class: adding a class, or taking more images, leaves the other draws as they are.
    drawn = [
        np.random.default_rng((seed, c)).permutation(members)[:n]
        for c, (members, n) in enumerate(zip(by_class, counts))
    ]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
