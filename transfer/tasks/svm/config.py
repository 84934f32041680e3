"""Recipe of VOC07's SVMs (torch-free)."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from carryover.configs import Incidental, Section
from carryover.core.data.digest import Contents
from carryover.core.data.objects.config import VocData, voc_contents
from carryover.core.data.pictures import Orientation
from carryover.transfer.tasks.frozen.config import FrozenRecipe


class VocImages(Section):
    """A Pascal VOC data set seen as images with several labels each.

    Attributes
    ----------
    root
        ``VOCdevkit``, or one VOC folder itself.
    train, test
        Splits as year/name, or a name alone where the root is one VOC folder.
    classes
        Class names; None: VOC's twenty.
    """

    title: str = "VOC 07"
    root: Annotated[Path | None, Incidental] = None
    train: str = "2007/trainval"
    test: str = "2007/test"
    classes: tuple[str, ...] | None = None
    orientation: Orientation = "exif"

    @property
    def test_label(self) -> str:
        """The split the numbers are measured on."""
        return self.test

    def contents(self) -> Contents:
        """List what is read of both splits; see `core.data.digest`."""
        assert self.root is not None
        splits = [VocData.year_and_list(split) for split in (self.train, self.test)]
        return voc_contents(self.root.expanduser(), splits)


class LowShot(Section):
    """SVMs on few images: `positives` of every class, each number drawn `draws` times."""

    positives: tuple[PositiveInt, ...] = (1, 2, 4, 8, 16, 32, 64, 96)
    draws: PositiveInt = 5


class SvmConfig(FrozenRecipe):
    """Linear SVMs on frozen features of VOC07 (msbreg_supplement 2.4; Goyal et al. 2019).

    Attributes
    ----------
    pool
        Side in cells of the windows, one cell apart, over which the last stage's maps are averaged (6 makes
        2 x 2 x 2,048 features of a ResNet-50's 7 x 7 cells); None: all of the map at once.
    costs
        Candidate values of C; each class takes the one that cross-validates best on the training split.
    low_shot
        None: the full training split only.
    metric
        "area" (the benchmark's code) or "11point" (VOC2007's rule).
    """

    implementation: ClassVar[str] = "carryover.transfer.tasks.svm.task:Svm"

    task: Literal["svm"] = "svm"
    data: VocImages
    pool: PositiveInt | None = None
    costs: tuple[PositiveFloat, ...] = Field(min_length=1)
    metric: Literal["area", "11point"] = "area"
    low_shot: LowShot | None = None
