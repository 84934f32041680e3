"""Labels of a split whose images lie in one flat folder, from the list that comes with it (torch-free).

ImageNet's validation images have this layout: their classes are in a file beside them.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from carryover.configs import UserError
from carryover.configs.counted import counted
from carryover.core.data.names import read_text

_DEVKIT_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_DEVKIT_CLASSES = "meta.mat"
_DEVKIT = ("", "data", "ILSVRC2012_devkit_t12/data", "devkit/data")

EXPECTED = (
    "for a flat folder, the list that comes with it, beside it or in the root: NAME.txt (a file name and a"
    " class a line), LOC_NAME_solution.csv (Kaggle), or the development kit's ground truth with its meta.mat"
)


def truth_files(root: Path, split: str) -> list[Path]:
    """Return the files that say the classes of a flat split; [] where there are none."""
    folder = root / split
    listings = [f"LOC_{split}_solution.csv", f"{split}.txt", f"{split}_annotations.txt", f"{split}.csv"]
    places = (folder, root, root.parent)
    for place in places:
        for name in listings:
            if (place / name).is_file():
                return [place / name]
    for place in (place / below for place in places for below in _DEVKIT):
        if (place / _DEVKIT_TRUTH).is_file():
            return [place / name for name in (_DEVKIT_TRUTH, _DEVKIT_CLASSES)]
    return []


def labels_of_flat_split(files: Sequence[Path], names: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Return the label of each image.

    Parameters
    ----------
    files
        What `truth_files` found.
    names
        File names of the images, sorted.
    classes
        The class folders of the training split, sorted; a list says one of these names, or its index in them.

    Raises UserError naming the file, and the line or image that does not fit.
    """
    index = {name: label for label, name in enumerate(classes)}
    if files[0].name == _DEVKIT_TRUTH:
        return _by_number(files, names, index)
    stated: dict[str, int] = {}
    for number, name, class_name in _rows(files[0]):
        label = index.get(class_name)
        if label is None and class_name.isdecimal() and int(class_name) < len(classes):
            label = int(class_name)
        if label is None:
            raise UserError(
                f"{files[0]}, line {number}: class {class_name!r} is no folder of the training images, nor an"
                f" index below {len(classes)}"
            )
        stated[Path(name).stem] = label
    unknown = [name for name in names if Path(name).stem not in stated]
    if unknown:
        raise UserError(
            f"{files[0]}: lists no class for {counted(unknown, 'image')}: {', '.join(unknown[:5])}"
        )
    return [stated[Path(name).stem] for name in names]


def _rows(file: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line number, image and class; a first line of column titles is passed over."""
    text = read_text(file)
    if file.suffix != ".csv":
        for number, line in enumerate(text.splitlines(), start=1):
            image, class_name, *_ = [*line.split(), ""] if line.strip() else ["", ""]
            if image:
                yield number, image, class_name
        return
    for number, row in enumerate(csv.reader(text.splitlines()), start=1):
        if len(row) < 2 or (number == 1 and not _is_image_row(row)):
            continue
        # Kaggle's second column: a class and its box, several of them for several objects of one class.
        yield number, row[0], (row[1].split() or [""])[0]


def _is_image_row(row: Sequence[str]) -> bool:
    titles = {"imageid", "image", "image_id", "filename", "file_name", "file", "name", "path", "id"}
    return row[0].strip().lower() not in titles


def _by_number(files: Sequence[Path], names: Sequence[str], index: Mapping[str, int]) -> list[int]:
    """Read the development kit: line n is the class of the n-th image, by an id that meta.mat translates."""
    truth, meta = files
    numbers = read_text(truth).split()
    if len(numbers) != len(names):
        raise UserError(f"{truth}: {counted(numbers, 'class')} for {counted(names, 'image')}")
    try:
        wnids = _wnids(meta)
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"{meta}: cannot be read ({error}); it says which class an id of {truth.name} is"
        ) from None
    labels = []
    for line, number in enumerate(numbers, start=1):
        label = index.get(wnids.get(number, ""))
        if label is None:
            raise UserError(f"{truth}, line {line}: class {number} has no folder among the training images")
        labels.append(label)
    return labels


def _wnids(meta: Path) -> dict[str, str]:
    """Return the WordNet id of each ILSVRC id, of the synsets without children."""
    from scipy.io import loadmat

    synsets: Any = loadmat(str(meta), squeeze_me=True)["synsets"]
    return {str(int(s["ILSVRC2012_ID"])): str(s["WNID"]) for s in synsets if int(s["num_children"]) == 0}
