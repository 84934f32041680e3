"""The data of a segmentation recipe: Pascal VOC, Cityscapes, ADE20K, or any two folders (torch-free)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from carryover.configs import Incidental, Section
from carryover.core.data.defects import MaskDefectPolicy
from carryover.core.data.digest import Contents, images_below
from carryover.core.data.names import located
from carryover.core.data.objects.voc import VOC_CLASSES
from carryover.core.data.pictures import Orientation
from carryover.core.data.voc_lists import images_by_name, listed

VOC_SEGMENTATION_CLASSES = ("background", *VOC_CLASSES)
CITYSCAPES_CLASSES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign"),
    *("vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train"),
    *("motorcycle", "bicycle"),
)
# Labels are bytes, and 255 of them means "ignored".
Classes = Annotated[tuple[str, ...], Field(min_length=2, max_length=255)]
Byte = Annotated[int, Field(ge=0, le=255)]
Color = tuple[Byte, Byte, Byte]


class VocPart(Section):
    """One list of ``ImageSets/Segmentation`` and the folder that has its masks."""

    split: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    masks: Path = Path("SegmentationClass")


class VocMasks(Section):
    """Pascal VOC's layout: JPEGImages, ImageSets/Segmentation, masks of indices; 255 is ignored.

    Attributes
    ----------
    root
        The VOC folder itself (``VOCdevkit/VOC2012``).
    title
        What the data set is called in records.
    classes
        Class names; their order gives the indices in the masks, from 0.
    train, test
        Lists; several for training are joined ("aug" is VOC's train and the lists of Hariharan et al. 2011).
    orientation
        Whether the EXIF flag of an image is applied ("exif"), or pixels are taken as stored.
    defects
        What each kind of defect does: stop before training, or drop the image.
    """

    kind: Literal["voc"]
    root: Annotated[Path, Incidental]
    title: str = "VOC 2012"
    classes: Classes = VOC_SEGMENTATION_CLASSES
    train: tuple[VocPart, ...] = Field(min_length=1)
    test: VocPart
    orientation: Orientation = "exif"
    defects: MaskDefectPolicy = MaskDefectPolicy()

    def contents(self) -> Contents:
        """List what is read of both splits; see `core.data.digest`."""
        root = self.root.expanduser()
        return sum((_voc(root, part) for part in (*self.train, self.test)), Contents())

    @property
    def test_label(self) -> str:
        """The split the numbers are measured on."""
        return self.test.split


class CityscapesMasks(Section):
    """Cityscapes' layout: ``leftImg8bit/SPLIT/CITY``, ``gtFine/SPLIT/CITY``.

    Attributes
    ----------
    masks
        Which of the masks to read: "labelIds", as downloaded (34 ids, 19 of which are evaluated), or
        "labelTrainIds", as Cityscapes' own scripts make from them.
    """

    kind: Literal["cityscapes"]
    root: Annotated[Path, Incidental]
    title: str = "Cityscapes"
    masks: Literal["labelIds", "labelTrainIds"] = "labelIds"
    train: str = "train"
    test: str = "val"
    orientation: Orientation = "exif"
    defects: MaskDefectPolicy = MaskDefectPolicy()

    @property
    def classes(self) -> tuple[str, ...]:
        """The 19 evaluated classes, in the order of their train ids."""
        return CITYSCAPES_CLASSES

    def contents(self) -> Contents:
        """List what is read of both splits; see `core.data.digest`."""
        pairs = [(Path("leftImg8bit", split), Path("gtFine", split)) for split in (self.train, self.test)]
        return _pairs(self.root.expanduser(), pairs)

    @property
    def test_label(self) -> str:
        """The split the numbers are measured on."""
        return self.test


class Ade20kMasks(Section):
    """ADE20K's layout (SceneParse150): ``images/SPLIT``, ``annotations/SPLIT``; 0 in a mask is ignored."""

    kind: Literal["ade20k"]
    root: Annotated[Path, Incidental]
    title: str = "ADE20K"
    classes: Classes
    train: str = "training"
    test: str = "validation"
    orientation: Orientation = "exif"
    defects: MaskDefectPolicy = MaskDefectPolicy()

    def contents(self) -> Contents:
        """List what is read of both splits; see `core.data.digest`."""
        pairs = [(Path("images", split), Path("annotations", split)) for split in (self.train, self.test)]
        return _pairs(self.root.expanduser(), pairs)

    @property
    def test_label(self) -> str:
        """The split the numbers are measured on."""
        return self.test


class FolderPair(Section):
    """A folder of images and the folder of their masks, both relative to the root."""

    image_dir: Path
    mask_dir: Path


class FolderMasks(Section):
    """Any two folders: the mask of ``image_dir/NAME.jpg`` is ``mask_dir/NAME`` + `mask_suffix`.

    Attributes
    ----------
    palette
        The color of each class, where the masks are painted; None where they hold indices.
    first_index
        The index of the first class in the masks; 1 if 0 marks pixels without a label
        (`reduce_zero_label`): 0 is then ignored.
    ignore
        The index, or with a palette the color, of pixels that are not labeled; None where all are.
    """

    kind: Literal["folders"]
    root: Annotated[Path, Incidental]
    title: str
    classes: Classes
    train: FolderPair
    test: FolderPair
    mask_suffix: str = ".png"
    palette: tuple[Color, ...] | None = None
    ignore: Byte | Color | None = 255
    first_index: Byte = 0
    orientation: Orientation = "exif"
    defects: MaskDefectPolicy = MaskDefectPolicy()

    def contents(self) -> Contents:
        """List what is read of both splits; see `core.data.digest`."""
        pairs = [(pair.image_dir, pair.mask_dir) for pair in (self.train, self.test)]
        return _pairs(self.root.expanduser(), pairs)

    @property
    def test_label(self) -> str:
        """The split the numbers are measured on."""
        return self.test.image_dir.as_posix()

    @model_validator(mode="after")
    def _palette_fits(self) -> "FolderMasks":
        if self.palette is None:
            if isinstance(self.ignore, tuple):
                raise ValueError("ignore: a color needs a palette; masks of indices ignore an index")
            index = None if self.ignore is None else self.ignore - self.first_index
            if index is not None and 0 <= index < len(self.classes):
                more = "" if index else "; where 0 means that a pixel has no label, say first_index: 1"
                raise ValueError(f"ignore: {self.ignore} is the class '{self.classes[index]}'{more}")
            if self.first_index + len(self.classes) > 256:
                raise ValueError("first_index: masks of bytes have no index for the last class")
            return self
        if self.first_index:
            raise ValueError("first_index: painted masks have colors instead of indices")
        if len(self.palette) != len(self.classes):
            raise ValueError(
                f"palette has {len(self.palette)} colors for {len(self.classes)} classes; one each is needed"
            )
        colors = [*self.palette, *([self.ignore] if isinstance(self.ignore, tuple) else [])]
        if len(set(colors)) != len(colors):
            raise ValueError("palette: a color is listed twice")
        return self


SegmentationData = Annotated[
    VocMasks | CityscapesMasks | Ade20kMasks | FolderMasks, Field(discriminator="kind")
]


def _voc(root: Path, part: VocPart) -> Contents:
    listing = root / "ImageSets" / "Segmentation" / f"{part.split}.txt"
    try:
        lines = listed(listing)
    except OSError:
        # Its reader says so.
        return Contents()
    masks = [line.mask or f"{part.masks.as_posix()}/{line.id}.png" for line in lines]
    images = images_by_name(root / "JPEGImages")
    return Contents(
        ((f"{part.split} list", listing), *((mask, located(root, mask)) for mask in masks)),
        tuple((line.id, images.get(line.id, root / "JPEGImages" / line.id)) for line in lines),
    )


def _pairs(root: Path, pairs: Iterable[tuple[Path, Path]]) -> Contents:
    """List folders of images and of their masks, which may be the same one."""
    found = Contents()
    for images, masks in pairs:
        pictures = () if images == masks else images_below(root / images, f"{images.as_posix()}/")
        found += Contents(tuple(images_below(root / masks, f"{masks.as_posix()}/")), tuple(pictures))
    return found
