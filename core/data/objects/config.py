"""The data of a detection recipe: Pascal VOC, COCO, or boxes in files of one's own (torch-free)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field, NonNegativeInt, field_validator, model_validator

from carryover.configs import Incidental, Section, UserError
from carryover.core.data.defects import DefectPolicy
from carryover.core.data.digest import Contents, named_in
from carryover.core.data.named_splits import Splits, require_one_rest
from carryover.core.data.objects.box_files import BoxFiles
from carryover.core.data.objects.box_table import TITLES
from carryover.core.data.objects.settle import FirstPixel
from carryover.core.data.objects.voc import VOC_CLASSES, voc_split
from carryover.core.data.pictures import Orientation
from carryover.core.data.voc_lists import VocFiles, ids_of_folder, images_by_name, listed

VocSplit = Annotated[str, Field(pattern=r"^((19|20)\d\d/)?[\w.-]+$")]
"""``2007/trainval``: VOC2007/ImageSets/Main/trainval.txt; ``trainval`` where the root is one VOC folder."""


VOC_RULES: Final = {
    "11point": "11-point AP (VOC 2007)",
    "area": "AP, area under the curve (VOC 2010 on)",
}
"""The rules of VOC's metric in words."""


class VocData(Section):
    """Pascal VOC layout.

    Attributes
    ----------
    root
        The directory that holds ``VOC2007`` and so on, or one such directory itself.
    title
        What the data set is called in records.
    classes
        Class names; their order gives the labels.
    train, test
        Splits; several training splits are joined.
    metric
        How precision is averaged over recall: VOC 2007's 11 points, or the area under the curve. Not stated:
        11 points for VOC's classes in a split of a year before 2010, or of no year; else the area.
    first_pixel
        The coordinate of the first pixel in the files; VOC's own count from 1.
    orientation
        Whether the EXIF flag of a picture is applied, as labeling tools do ("exif"), or pixels are taken as
        stored.
    defects
        What each kind of defect of the annotations does: stop before training, or drop, clip, keep.
    """

    kind: Literal["voc"] = "voc"
    root: Annotated[Path, Incidental]
    title: str = "VOC"
    classes: tuple[str, ...] = Field(default=VOC_CLASSES, min_length=1)
    train: tuple[VocSplit, ...] = Field(min_length=1)
    test: VocSplit
    metric: Literal["11point", "area"] = "11point"
    first_pixel: Literal[0, 1] = 1
    orientation: Orientation = "exif"
    defects: DefectPolicy = DefectPolicy()

    @model_validator(mode="before")
    @classmethod
    def _metric_of_the_data(cls, stated: Any) -> Any:
        """Fill in a metric that is not stated, so that the identity tells one rule from the other."""
        if not isinstance(stated, dict) or stated.get("metric") is not None:
            return stated
        year, _, _ = str(stated.get("test", "")).rpartition("/")
        vocs_own = tuple(stated.get("classes", VOC_CLASSES)) == VOC_CLASSES
        before_2010 = not year.isdecimal() or int(year) < 2010
        return stated | {"metric": "11point" if vocs_own and before_2010 else "area"}

    @property
    def test_label(self) -> str:
        """The split the numbers are measured on."""
        return self.test.replace("/", " ")

    @property
    def rule(self) -> str:
        """The rule of the metric in words."""
        return VOC_RULES[self.metric]

    def contents(self) -> Contents:
        """List what is read of both splits; see `core.data.digest`."""
        splits = [self.year_and_list(split) for split in (*self.train, self.test)]
        return voc_contents(self.root.expanduser(), splits)

    @staticmethod
    def year_and_list(split: VocSplit) -> tuple[int | None, str]:
        """Take ``2007/trainval`` apart."""
        year, _, name = split.rpartition("/")
        return (int(year) if year else None), name


class CocoSplit(Section):
    """A COCO annotation file and the directory of its images, both relative to the root."""

    annotations: Path
    images: Path


class CocoData(Section):
    """COCO json layout.

    Attributes
    ----------
    root
        The directory that the splits' paths are relative to.
    title
        What the data set is called in records.
    train, test
        Annotation file and image directory of each split.
    orientation, defects
        As in VocData.
    """

    rule: ClassVar[str] = "COCO's AP (IoU 0.50 to 0.95, 101 points of recall)"

    kind: Literal["coco"]
    root: Annotated[Path, Incidental]
    title: str = "COCO"
    train: CocoSplit
    test: CocoSplit
    orientation: Orientation = "exif"
    defects: DefectPolicy = DefectPolicy()

    @property
    def test_label(self) -> str:
        """The split the numbers are measured on."""
        return self.test.annotations.stem.removeprefix("instances_")

    def contents(self) -> Contents:
        """List what is read of both splits; see `core.data.digest`."""
        root = self.root.expanduser()
        return _coco(root, self.train) + _coco(root, self.test)


class BoxesData(Section):
    """Images anywhere below a root, with boxes in XML (LabelImg), YOLO's text or a csv.

    Attributes
    ----------
    root
        The directory that all other paths are relative to.
    title
        What the data set is called in records.
    images
        The folder of the images, those in folders below it included; None: ``images``, ``JPEGImages`` or the
        root itself.
    annotations
        The folder of the XML or text files, or a csv file (of this name in the folder of every split, if
        it is not at the root); None: beside the images, or in ``annotations``, ``labels`` or ``xml``.
    splits
        By name, which images a split has: a list of names (.txt, .csv), a folder, a value of a table's column
        for splits; or a share of the images, drawn by `splits_seed`. A split that is not named here is the
        list, folder or value of its own name; where shares are drawn, all that is left.
    columns
        Titles of a table's columns by what they hold (image, label, xmin, ...), where they are unusual.
    classes
        Class names in label order; None: those that occur, sorted, or YOLO's by number.
    train, test
        Names of splits; several to train on are joined.
    metric
        As in VocData.
    first_pixel
        How coordinates count: from 1 or 0 with both ends inside the box, or as its edges. None: from 1 in
        XML, as edges in a csv. Normalized ones are always edges.
    orientation, defects
        As in VocData.
    """

    kind: Literal["boxes"]
    root: Annotated[Path, Incidental]
    title: str = "boxes"
    images: Path | None = None
    annotations: Path | None = None
    splits: Splits
    splits_seed: NonNegativeInt = 0
    columns: dict[str, str] = Field(default_factory=dict)
    classes: tuple[str, ...] | None = Field(default=None, min_length=1)
    train: tuple[str, ...] = Field(default=("train",), min_length=1)
    test: str = "test"
    metric: Literal["11point", "area"] = "area"
    first_pixel: FirstPixel | None = None
    orientation: Orientation = "exif"
    defects: DefectPolicy = DefectPolicy()

    @field_validator("columns")
    @classmethod
    def _known(cls, columns: dict[str, str]) -> dict[str, str]:
        if unknown := sorted(columns.keys() - TITLES.keys()):
            raise ValueError(f"unknown: {', '.join(unknown)}; there are {', '.join(TITLES)}")
        return columns

    @model_validator(mode="after")
    def _one_rest(self) -> "BoxesData":
        require_one_rest(self.splits, [*self.train, self.test])
        if self.test in self.train:
            raise ValueError("the split to test on is a split to train on")
        return self

    @property
    def test_label(self) -> str:
        """The split the numbers are measured on."""
        return self.test

    @property
    def rule(self) -> str:
        """The rule of the metric in words."""
        return VOC_RULES[self.metric]

    def contents(self) -> Contents:
        """List what is read of both splits; see `core.data.digest`."""
        try:
            return BoxFiles(self).contents((*self.train, self.test))
        except UserError:
            # Its reader says so.
            return Contents()


DetectionData = Annotated[VocData | CocoData | BoxesData, Field(discriminator="kind")]


def voc_contents(root: Path, splits: Iterable[tuple[int | None, str]]) -> Contents:
    """List what is read of (year, list) pairs of a VOC data set: lists, annotations and images."""
    return sum((_voc(root, year, name) for year, name in dict.fromkeys(splits)), Contents())


def _voc(root: Path, year: int | None, split: str) -> Contents:
    try:
        folder, listing = voc_split(root, year, split)
        ids = ids_of_folder(folder) if listing is None else [line.id for line in listed(listing)]
    except (UserError, OSError):
        # Its reader says so.
        return Contents()
    files = VocFiles.of(folder)
    lists = () if listing is None else ((f"{year or ''}/{split} list", listing),)
    texts = (*lists, *((f"{i}.xml", files.annotations / f"{i}.xml") for i in ids))
    images = images_by_name(files.images)
    return Contents(texts, tuple((i, images.get(i, files.images / i)) for i in ids))


def _coco(root: Path, split: CocoSplit) -> Contents:
    file = root / split.annotations
    return Contents(((split.annotations.as_posix(), file),), tuple(named_in(file, root / split.images)))
