"""The data of a detection recipe: Pascal VOC or COCO (torch-free)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from carryover.configs import Incidental, Section
from carryover.core.data.defects import DefectPolicy
from carryover.core.data.digest import Contents, by_stem, lines_of, named_in
from carryover.core.data.objects.voc import VOC_CLASSES
from carryover.core.data.pictures import Orientation

VocSplit = Annotated[str, Field(pattern=r"^((19|20)\d\d/)?[\w.-]+$")]
"""``2007/trainval``: VOC2007/ImageSets/Main/trainval.txt; ``trainval`` where the root is one VOC folder."""


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
        How precision is averaged over recall: VOC 2007's 11 points, or the area under the curve.
    orientation
        Whether the EXIF flag of a picture is applied, as labelling tools do ("exif"), or pixels are taken as
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
    orientation: Orientation = "exif"
    defects: DefectPolicy = DefectPolicy()

    @property
    def test_label(self) -> str:
        """The split the numbers are measured on."""
        return self.test.replace("/", " ")

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


DetectionData = Annotated[VocData | CocoData, Field(discriminator="kind")]


def voc_contents(root: Path, splits: Iterable[tuple[int | None, str]]) -> Contents:
    """List what is read of (year, list) pairs of a VOC data set: lists, annotations and images."""
    return sum((_voc(root, year, name) for year, name in dict.fromkeys(splits)), Contents())


def _voc(root: Path, year: int | None, split: str) -> Contents:
    folder = root / f"VOC{year}" if year is not None and (root / f"VOC{year}").is_dir() else root
    if year is None and not (folder / "ImageSets").is_dir():
        folder = next((p.parent for p in sorted(root.glob("*/ImageSets"))), folder)
    listing = folder / "ImageSets" / "Main" / f"{split}.txt"
    where = f"{year or ''}/{split}"
    ids = [line.split()[0] for line in lines_of(listing) if line.split()]
    texts = [(f"{where} list", listing), *((f"{i}.xml", folder / "Annotations" / f"{i}.xml") for i in ids)]
    return Contents(tuple(texts), tuple(by_stem(folder / "JPEGImages", ids)))


def _coco(root: Path, split: CocoSplit) -> Contents:
    file = root / split.annotations
    return Contents(((split.annotations.as_posix(), file),), tuple(named_in(file, root / split.images)))
