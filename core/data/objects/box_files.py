"""Find the images and annotations of boxes in XML (LabelImg), YOLO's text or a csv (torch-free)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

from carryover.configs.errors import UserError
from carryover.core.data.defects import DefectPolicy
from carryover.core.data.digest import Contents
from carryover.core.data.named_splits import Found, NamedFiles, Names, list_files
from carryover.core.data.names import is_hidden
from carryover.core.data.objects.box_table import BoxRow, BoxTable, read_box_table
from carryover.core.data.objects.settle import FirstPixel
from carryover.core.data.objects.voc_xml import VocObject, VocRecord, read_record
from carryover.core.data.objects.yolo import NAME_FILES, class_names, read_yolo
from carryover.core.data.pictures import Orientation, in_parallel, read_header
from carryover.core.data.voc_lists import VocFiles, images_by_name

Form = Literal["xml", "yolo", "csv"]
_USUAL = ("annotations", "Annotations", "labels", "xml")
_SUFFIX: dict[Form, str] = {"xml": ".xml", "yolo": ".txt", "csv": ".csv"}
EXPECTED = "an .xml (LabelImg) or a .txt (YOLO, with classes.txt) for each image, or a .csv with a row a box"


class BoxSection(NamedFiles, Protocol):
    """Section of a recipe on boxes in files: a `core.data.objects.config.BoxesData`."""

    @property
    def root(self) -> Path: ...

    @property
    def classes(self) -> tuple[str, ...] | None: ...

    @property
    def first_pixel(self) -> FirstPixel | None: ...

    @property
    def orientation(self) -> Orientation: ...

    @property
    def defects(self) -> DefectPolicy: ...


@dataclass(frozen=True)
class AnnotationFiles:
    """The files of annotations; below `base` they repeat the folders of the images, or lie flat."""

    form: Form
    base: Path
    files: list[Path]


@dataclass(frozen=True)
class BoxFiles:
    """Locations of images and annotations, from the files and the recipe."""

    data: BoxSection

    @cached_property
    def root(self) -> Path:
        """The root of the data set."""
        return self.data.root.expanduser()

    @cached_property
    def folder(self) -> Path:
        """The folder of the images; UserError where the recipe names one that is not there."""
        if self.data.images is not None:
            folder = self.root / self.data.images
            if not folder.is_dir():
                raise UserError(f"data.images: {folder}: no such folder; it is looked for below data.root")
            return folder
        usual = (self.root / name for name in ("images", "JPEGImages"))
        return next((folder for folder in usual if folder.is_dir()), self.root)

    @cached_property
    def names(self) -> Names:
        """The images by their ids; UserError where there are none."""
        images = images_by_name(self.folder)
        if not images:
            raise UserError(f"{self.folder}: no image in it; set `data: {{images: FOLDER}}`")
        return Names(images)

    @cached_property
    def annotations(self) -> "AnnotationFiles":
        """Return the kind of the annotations; raise UserError if there are none."""
        stated = self.data.annotations
        if stated is not None and stated.suffix.lower() == ".csv":
            # One table, or one in the folder of every split, as Roboflow exports them.
            named = self.root / stated
            files = [named] if named.is_file() else sorted(self.folder.rglob(stated.name))
            if files:
                return AnnotationFiles("csv", named.parent, files)
        folders = [self.folder, *(self.root / name for name in _USUAL), self.root]
        for folder in folders if stated is None else [self.root / stated]:
            for form in _SUFFIX:
                if files := self._files(folder, form):
                    return AnnotationFiles(form, folder, files)
        if stated is None and (tables := self._lists(".csv")):
            return AnnotationFiles("csv", self.root, tables)
        if stated is None:
            raise UserError(f"{self.folder}: no annotations in it; expected {EXPECTED}")
        where = self.root / stated
        what = (
            f"no annotations in it; expected {EXPECTED}" if where.is_dir() else "no such folder or csv file"
        )
        raise UserError(f"data.annotations: {where}: {what}; it is looked for below data.root")

    def _files(self, folder: Path, form: Form) -> list[Path]:
        """Return the files of annotations of one kind below a folder."""
        found = [
            path
            for path in sorted(folder.rglob(f"*{_SUFFIX[form]}"))
            if not any(is_hidden(part) for part in path.relative_to(folder).parts)
        ]
        if form == "yolo":
            # Others are lists, and the README of an export.
            ids = self.names.images
            return [p for p in found if p.relative_to(folder).with_suffix("").as_posix() in ids]
        if form == "csv":
            lists = self._lists(".csv")
            return [p for p in found if p not in lists and "class-descriptions" not in p.name]
        return found

    def _lists(self, suffix: str) -> list[Path]:
        """Return the files of this kind that a recipe names as splits."""
        named = [p for told in self.data.splits.values() for p in list_files(self.root, str(told))]
        return [path for path in named if path.suffix.lower() == suffix]

    @cached_property
    def tables(self) -> list[BoxTable]:
        """The tables of a data set that is annotated in csv; none of another."""
        if self.annotations.form != "csv":
            return []
        return [read_box_table(file, self.data.columns) for file in self.annotations.files]

    @cached_property
    def rows(self) -> dict[str, list[tuple[BoxTable, BoxRow]]]:
        """The rows of tables by image."""
        found: dict[str, list[tuple[BoxTable, BoxRow]]] = {}
        for table in self.tables:
            # A table in the folder of its images names them by file.
            inside = table.file.parent.is_relative_to(self.folder)
            prefix = table.file.parent.relative_to(self.folder).as_posix() if inside else "."
            for row in table.rows:
                own = row.image if prefix == "." else f"{prefix}/{row.image}"
                image_id = self.names.id_of(own)
                if image_id not in self.names.images:
                    image_id = self.names.id_of(row.image)
                found.setdefault(image_id, []).append((table, row))
        return found

    @cached_property
    def found(self) -> Found:
        """Return the images and rows from which the splits are made."""
        if self.tables:
            columns: dict[str, list[str]] = {}
            for image_id, rows in self.rows.items():
                for _, row in rows:
                    if row.split:
                        columns.setdefault(row.split, []).append(image_id)
            return Found(self.root, self.folder, self.names, list(self.rows), columns)
        base, files = self.annotations.base, self.annotations.files
        annotated = {self.names.id_of(path.relative_to(base).with_suffix("").as_posix()) for path in files}
        return Found(self.root, self.folder, self.names, sorted(annotated | self.names.images.keys()))

    @cached_property
    def classes(self) -> list[str] | None:
        """The classes in order: the recipe's, those a file names by numbers, or None for those that occur."""
        if self.data.classes is not None:
            return list(self.data.classes)
        return self._numbered[0] or None

    @cached_property
    def _numbered(self) -> tuple[list[str], Path | None]:
        if self.annotations.form != "yolo":
            return [], None
        names, file = class_names((self.annotations.base, self.folder, self.root))
        if not names and self.data.classes is not None:
            names = list(self.data.classes)
        if not names:
            raise UserError(
                f"{self.annotations.base}: the classes have numbers but no names; expected"
                f" {NAME_FILES[0]} beside the annotations, or `data: {{classes: [FIRST, SECOND]}}`"
            )
        return names, file

    @property
    def first_pixel(self) -> FirstPixel:
        """Return the coordinate convention: the recipe's; else XML as in Pascal VOC, others as edges."""
        if self.annotations.form == "yolo" or any(table.normalized for table in self.tables):
            return "edges"
        return (
            self.data.first_pixel
            if self.data.first_pixel is not None
            else 1
            if self.annotations.form == "xml"
            else "edges"
        )

    def records(self, ids: Sequence[str]) -> list[VocRecord]:
        """Read what the files say of these images."""
        if self.annotations.form == "csv":
            return in_parallel(self._of_table, ids)
        if self.annotations.form == "yolo":
            return in_parallel(self._of_yolo, ids)
        files = VocFiles(self.folder, self.annotations.base)
        images = self.names.images
        return in_parallel(lambda i: read_record(files, dict(images), i, self.data.orientation), ids)

    def annotation_file(self, image_id: str) -> Path:
        """Return the file of an image's own annotation, whether or not it is there."""
        file = self.annotations.base / f"{image_id}{_SUFFIX[self.annotations.form]}"
        flat = self.annotations.base / f"{Path(image_id).name}{_SUFFIX[self.annotations.form]}"
        return flat if flat.is_file() and not file.is_file() else file

    def _of_yolo(self, image_id: str) -> VocRecord:
        image = self.names.images.get(image_id, self.folder / f"{image_id}.jpg")
        return read_yolo(
            image_id, image, self.annotation_file(image_id), self._numbered[0], self.data.orientation
        )

    def _of_table(self, image_id: str) -> VocRecord:
        image = self.names.images.get(image_id)
        rows = self.rows.get(image_id, [])
        file = rows[0][0].file if rows else self.annotations.files[0]
        if image is None:
            missing = (
                "missing_image",
                self.folder / (rows[0][1].image if rows else image_id),
                "no such image file",
            )
            return VocRecord(image_id, missing[1], file, image_problems=(missing,))
        problems: list[tuple[str, Path, str]] = []
        if not rows:
            problems.append(("missing_annotation", file, f"no row for image {image_id}"))
        try:
            header = read_header(image, self.data.orientation)
        except OSError as error:
            problems.append(("unreadable_image", image, f"not a readable image ({error})"))
            return VocRecord(image_id, image, file, image_problems=tuple(problems))
        objects: list[VocObject] = []
        faults: list[tuple[str, Path, str]] = []
        for table, row in rows:
            if row.problem:
                faults.append(("malformed_object", table.file, f"line {row.line}: {row.problem}"))
            if row.box is not None:
                scale = (*header.size, *header.size) if table.normalized else (1, 1, 1, 1)
                a, b, c, d = (n * s for n, s in zip(row.box, scale, strict=True))
                place = f"line {row.line}"
                objects.append(VocObject(row.line, row.label, (a, b, c, d), row.difficult, place, row.crowd))
        size = next((row.size for _, row in rows if row.size is not None), None)
        return VocRecord(image_id, image, file, header, size, tuple(objects), tuple(problems), tuple(faults))

    def contents(self, splits: Sequence[str]) -> Contents:
        """List what is read of splits; see `core.data.digest`."""
        texts: dict[str, Path] = {}
        ids: dict[str, None] = {}
        for split in splits:
            members, lists = self.found.members(split, self.data.splits, self.data.splits_seed)
            ids |= dict.fromkeys(members)
            texts |= {f"{split} list": path for path in lists}
        if self.annotations.form == "csv":
            texts |= {f"{n} table": table.file for n, table in enumerate(self.tables)}
        else:
            texts |= {f"{i}{_SUFFIX[self.annotations.form]}": self.annotation_file(i) for i in ids}
        if (named := self._numbered[1]) is not None:
            texts["classes"] = named
        images = self.names.images
        return Contents(tuple(texts.items()), tuple((i, images.get(i, self.folder / i)) for i in ids))
