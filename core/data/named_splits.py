"""Images of a split that a recipe names: by list, folder, column or draw (torch-free)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Protocol

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field

from carryover.configs import UserError
from carryover.configs.counted import counted
from carryover.core.data.csv_table import read_table
from carryover.core.data.pictures import IMAGE_SUFFIXES
from carryover.core.data.voc_lists import LISTINGS, listed

_IMAGE_TITLES = ("filename", "file", "image", "imageid", "path", "imagepath", "filepath", "imagename", "name")


def _nothing_is_empty(splits: object) -> object:
    return {} if splits is None else splits


def _leave_something(splits: dict[str, float | str]) -> dict[str, float | str]:
    shares = [share for share in splits.values() if isinstance(share, float)]
    if sum(shares) >= 1:
        raise ValueError(f"the shares {shares} leave no image to the other splits")
    return splits


Splits = Annotated[
    dict[str, Annotated[float, Field(gt=0, lt=1)] | str],
    Field(default_factory=dict),
    BeforeValidator(_nothing_is_empty),
    AfterValidator(_leave_something),
]
"""Splits of a recipe by name: a list, a folder or a value of a column; or a fraction.

``splits: null`` says nothing of them, where a base does.
"""


class NamedFiles(Protocol):
    """The keys of a recipe's section that say where images, annotations and splits are."""

    @property
    def images(self) -> Path | None: ...

    @property
    def annotations(self) -> Path | None: ...

    @property
    def splits(self) -> Splits: ...

    @property
    def splits_seed(self) -> int: ...

    @property
    def columns(self) -> Mapping[str, str]: ...


def require_one_rest(splits: Mapping[str, float | str], used: Sequence[str]) -> None:
    """Raise ValueError where shares are drawn and several splits would be what is left of them."""
    rest = [name for name in used if name not in splits]
    shares = [name for name, share in splits.items() if isinstance(share, float)]
    if shares and len(rest) > 1:
        raise ValueError(
            f"splits draws {', '.join(shares)}, and {' and '.join(rest)} would both be all that is left:"
            f" give one of them a share, or use a drawn split instead (data.test_split={shares[0]})"
        )


class Names:
    """The images of a data set by their ids: their paths below the images' folder, without suffix.

    Of images that differ in their suffix alone, the ids may keep it.
    """

    def __init__(self, images: Mapping[str, Path]) -> None:
        self.images = images
        self._by_stem: dict[str, list[str]] = {}
        for image_id in images:
            self._by_stem.setdefault(image_id.rpartition("/")[2], []).append(image_id)

    def id_of(self, name: str) -> str:
        """Return the id of the image that a list or table calls `name`.

        That is the longest tail of the name that is an id, else the one image of that file name, whatever
        folder it lies in. A name of no image comes back without its suffix.
        """
        name = name.strip("'\"").replace("\\", "/").removeprefix("./")
        if (exact := self.images.get(name)) is not None and exact.name == name.rpartition("/")[2]:
            return name
        head, dot, suffix = name.rpartition(".")
        for candidate in (head, name) if dot and f".{suffix.lower()}" in IMAGE_SUFFIXES else (name, head):
            parts = [part for part in candidate.split("/") if part]
            for start in range(len(parts)):
                if (tail := "/".join(parts[start:])) in self.images:
                    return tail
            if parts and len(same := self._by_stem.get(parts[-1], [])) == 1:
                return same[0]
        return head if dot and f".{suffix.lower()}" in IMAGE_SUFFIXES else name


@dataclass(frozen=True)
class Found:
    """Contents of a data set.

    Attributes
    ----------
    root, folder
        Of the data set, and of its images.
    annotated
        The ids that a draw draws from, and that folders and columns divide.
    columns
        Ids by the value of a table's column for splits.
    groups
        The class of each image: the same share of every one is drawn. None: of all images together.
    """

    root: Path
    folder: Path
    names: Names
    annotated: Sequence[str]
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    groups: Mapping[str, str] | None = None

    def members(
        self, split: str, splits: Mapping[str, float | str], seed: int
    ) -> tuple[list[str], list[Path]]:
        """Return the ids of a split in order, and the lists that were read for it.

        Raises UserError, with what there is, where nothing says which images it has.
        """
        shares = {name: share for name, share in splits.items() if isinstance(share, float)}
        if split in shares or (shares and split not in splits):
            return self._drawn(split, shares, seed), []
        told = str(splits.get(split, split))
        for file in list_files(self.root, told):
            return list(dict.fromkeys(self.names.id_of(name) for name in _names_in(file))), [file]
        if told in self.columns:
            return list(dict.fromkeys(self.columns[told])), []
        for prefix in (told.strip("/"), _relative(self.root / told, self.folder)):
            if inside := [i for i in self.annotated if prefix and i.startswith(f"{prefix}/")]:
                return inside, []
        raise UserError(self._unknown(split, told))

    def _drawn(self, split: str, shares: Mapping[str, float], seed: int) -> list[str]:
        rng = np.random.default_rng(seed)
        groups: dict[str, list[str]] = {}
        for image_id in sorted(set(self.annotated)):
            groups.setdefault(self.groups[image_id] if self.groups else "", []).append(image_id)
        drawn: list[str] = []
        for _, ids in sorted(groups.items()):
            shuffled = [ids[i] for i in rng.permutation(len(ids))]
            start = 0
            for name, share in sorted(shares.items()):
                stop = start + max(1, round(share * len(ids)))
                drawn += shuffled[start:stop] if name == split else []
                start = stop
            drawn += shuffled[start:] if split not in shares else []
        return sorted(drawn)

    def _unknown(self, split: str, told: str) -> str:
        folders = sorted({i.split("/")[0] for i in self.annotated if "/" in i})
        there = [f"{name} (folder)" for name in folders[:5]]
        there += [f"{name} (column)" for name in list(self.columns)[:5]]
        there += [f"{path.name} (list)" for path in sorted((self.root / LISTINGS).glob("*.txt"))[:5]]
        holds = f"there are {', '.join(there)}" if there else "there is no list, folder or column of splits"
        return (
            f"{self.root}: nothing says which of its {counted(self.annotated, 'image is', 'images are')} the"
            f" split '{split}' ({told}); {holds}. `data: {{splits: {{test: 0.2}}}}` draws a fifth of"
            " them to test on, and `splits: {train: train.txt, test: test.txt}` names lists"
        )


def list_files(root: Path, told: str) -> list[Path]:
    """Return the file that lists a split's images, if there is one."""
    places = [root / told, *(root / f"{told}{s}" for s in (".txt", ".csv")), root / LISTINGS / f"{told}.txt"]
    return [path for path in places if path.is_file()][:1]


def _names_in(file: Path) -> list[str]:
    if file.suffix.lower() != ".csv":
        try:
            return [line.id + line.suffix for line in listed(file)]
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror}); expected a name a line") from None
    table = read_table(file)
    column = table.column(_IMAGE_TITLES)
    rows = table.rows if column is None else table.body
    return [cells[column or 0] for _, cells in rows if len(cells) > (column or 0)]


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) and path != folder else ""
