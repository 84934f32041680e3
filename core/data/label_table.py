"""Classes of images from a csv file: one row an image, its columns known by their titles (torch-free)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Final

from carryover.configs import UserError
from carryover.configs.counted import counted
from carryover.core.data.csv_table import Table, read_table
from carryover.core.data.digest import Contents
from carryover.core.data.named_splits import Found, Names
from carryover.core.data.pictures import IMAGE_SUFFIXES
from carryover.core.data.readers import Files, ImageSection
from carryover.core.data.voc_lists import images_by_name

TITLES: Final[dict[str, tuple[str, ...]]] = {
    "image": (
        "filename",
        "imagename",
        "imageid",
        "imagepath",
        "filepath",
        "image",
        "img",
        "path",
        "file",
        "id",
    ),
    "label": (
        "label",
        "class",
        "classname",
        "labelname",
        "category",
        "categoryname",
        "target",
        "labels",
        "y",
    ),
    "split": ("split", "set", "subset", "mlusage"),
}
"""The titles by which a column is known."""

EXPECTED = "images and a csv file with a row an image: filename,label"


@dataclass(frozen=True)
class LabelRow:
    """One row: an image as the file calls it, its class, and its split where a column says it."""

    file: Path
    line: int
    image: str
    label: str
    split: str


def read_label_table(file: Path, columns: Mapping[str, str]) -> list[LabelRow]:
    """Read a csv file of labels; `columns` are titles that a recipe states for the keys of `TITLES`.

    The label is in a column of a usual title, in the only other column, or in one column a class, of which
    one says 1 (Roboflow's ``_classes.csv``). A file without titles has the image and its label.

    Raises UserError for a file whose columns are not known, or that cannot be read.
    """
    table = read_table(file)
    found = {what: table.stated_column(what, columns, names) for what, names in TITLES.items()}
    is_picture = PurePosixPath(table.titles[0]).suffix.lower() in IMAGE_SUFFIXES
    if is_picture and len(table.titles) == 2 and not columns:
        return [LabelRow(file, line, cells[0], cells[-1], "") for line, cells in table.rows]
    image, label, split = found["image"], found["label"], found["split"]
    if image is None:
        raise UserError(
            f"{file}: no column for the image among its titles ({', '.join(table.titles)}); expected"
            " filename,label in any order, or `data: {columns: {image: TITLE, label: TITLE}}`"
        )
    others = [i for i in range(len(table.titles)) if i not in (image, split)]
    if label is None and len(others) == 1:
        label = others[0]
    rows = []
    for line, cells in table.body:
        padded = (*cells, *[""] * (len(table.titles) - len(cells)))
        name = padded[label] if label is not None else _one_of(table, line, padded, others)
        if not padded[image] or not name:
            missing = "image" if not padded[image] else "label"
            raise UserError(f"{file}, line {line}: no {missing}")
        rows.append(LabelRow(file, line, padded[image], name, "" if split is None else padded[split]))
    return rows


def _one_of(table: Table, line: int, cells: Sequence[str], columns: Sequence[int]) -> str:
    """Return the title of the one column that says 1."""
    values = [cells[i] for i in columns]
    if not values or not set(values) <= {"0", "1", "0.0", "1.0"}:
        raise UserError(
            f"{table.file}: no column for the label among its titles ({', '.join(table.titles)}); expected"
            " filename,label in any order, or `data: {columns: {label: TITLE}}`"
        )
    said = [table.titles[i] for i, value in zip(columns, values, strict=True) if float(value)]
    if len(said) != 1:
        raise UserError(
            f"{table.file}, line {line}: {len(said)} classes ({', '.join(said)}); expected one class an image"
        )
    return said[0]


@dataclass(frozen=True)
class LabelFiles:
    """The images and tables of a data set."""

    data: ImageSection
    root: Path

    @cached_property
    def folder(self) -> Path:
        """The folder of the images; UserError where the recipe names one that is not there."""
        folder = self.root / (self.data.images or "")
        if not folder.is_dir():
            raise UserError(f"data.images: {folder}: no such folder; it is looked for below data.root")
        return folder

    @cached_property
    def names(self) -> Names:
        """The images by their ids."""
        return Names(images_by_name(self.folder))

    @cached_property
    def files(self) -> list[Path]:
        """The tables; UserError where there are none."""
        stated = self.data.annotations
        if stated is not None:
            named = self.root / stated
            # One table, or one in the folder of every split.
            found = [named] if named.is_file() else sorted(self.folder.rglob(stated.name))
        else:
            found = sorted(self.root.glob("*.csv"))
        if not found:
            what = (
                f"data.annotations: {self.root / stated}: no such file"
                if stated
                else f"{self.root}: no csv file"
            )
            raise UserError(f"{what}; expected {EXPECTED}")
        return found

    @cached_property
    def labels(self) -> dict[str, LabelRow]:
        """The row of every image, by its id; UserError for one of two classes, and for absent ones."""
        found: dict[str, LabelRow] = {}
        for row in self._rows():
            image_id = self._id_of(row)
            other = found.setdefault(image_id, row)
            if other.label != row.label:
                raise UserError(
                    f"{row.file}, line {row.line}: image {row.image} is of class {row.label!r}, and of"
                    f" {other.label!r} in line {other.line} of {other.file.name}"
                )
        absent = [row.image for image_id, row in found.items() if image_id not in self.names.images]
        if absent:
            raise UserError(
                f"{self.folder}: {counted(absent, 'image is', 'images are')} not there:"
                f" {', '.join(absent[:5])}"
            )
        return found

    def _rows(self) -> Iterator[LabelRow]:
        for file in self.files:
            yield from read_label_table(file, self.data.columns)

    def _id_of(self, row: LabelRow) -> str:
        if row.file.parent != self.folder and row.file.parent.is_relative_to(self.folder):
            # A table in a folder of its own names the images beside it.
            beside = self.names.id_of(f"{row.file.parent.relative_to(self.folder).as_posix()}/{row.image}")
            if beside in self.names.images:
                return beside
        return self.names.id_of(row.image)

    def members(self) -> tuple[list[str], list[Path]]:
        """Return the ids of the recipe's split, and the lists that were read for it."""
        columns: dict[str, list[str]] = {}
        for image_id, row in self.labels.items():
            if row.split:
                columns.setdefault(row.split, []).append(image_id)
        groups = {image_id: row.label for image_id, row in self.labels.items()}
        found = Found(self.root, self.folder, self.names, list(self.labels), columns, groups)
        return found.members(self.data.split, self.data.splits, self.data.splits_seed)


def labeled_files(data: ImageSection, root: Path) -> Files:
    """List the images of a split with their labels; classes are the names in all tables, sorted.

    Raises UserError naming the file, the line or the image that is not as expected.
    """
    files = LabelFiles(data, root)
    ids, _ = files.members()
    unlabeled = [image_id for image_id in ids if image_id not in files.labels]
    if unlabeled:
        few = ", ".join(unlabeled[:5])
        raise UserError(f"{files.files[0]}: lists no class for {counted(unlabeled, 'image')}: {few}")
    classes = sorted({row.label for row in files.labels.values()}, key=_by_number)
    index = {name: label for label, name in enumerate(classes)}
    names = [files.names.images[i].relative_to(files.folder).as_posix() for i in ids]
    return Files(files.folder, names, [index[files.labels[i].label] for i in ids], classes)


def contents_of_labels(data: ImageSection, root: Path) -> Contents:
    """List what `labeled_files` reads, for the data's digest; nothing where that raises."""
    files = LabelFiles(data, root)
    try:
        ids, lists = files.members()
        tables = files.files
    except UserError:
        return Contents()
    texts = [(f"table {n}", file) for n, file in enumerate(tables)] + [("list", file) for file in lists]
    images = files.names.images
    return Contents(tuple(texts), tuple((i, images.get(i, files.folder / i)) for i in ids))


def _by_number(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdecimal() else (1 << 60, name)
