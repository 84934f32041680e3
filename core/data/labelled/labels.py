"""Selection of labeled training images (torch-free)."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from carryover.configs import Section
from carryover.configs.paths import Relative
from carryover.core.data.digest import Contents


class FractionOfLabels(Section):
    """The same fraction of every class's images, drawn at random.

    Attributes
    ----------
    fraction
        Labeled part of the training images; subsets of one seed are nested.
    seed
        Decides the draw; None: the run's seed, so that every trial draws its own labels.
    """

    name: Literal["fraction"]
    fraction: Annotated[float, Field(gt=0, le=1)]
    seed: NonNegativeInt | None = None


class ImagesPerClass(Section):
    """The same number of every class's images, drawn at random; `seed` as in FractionOfLabels."""

    name: Literal["per_class"]
    images: PositiveInt
    seed: NonNegativeInt | None = None


class ListedImages(Section):
    """The images that a list names.

    Attributes
    ----------
    list
        A shipped list (``simclr_1percent``, ``simclr_10percent``), or a text file of image names.
    images_per_class
        Fewest and most images of a class that the list must give; None: anything but none.
    """

    name: Literal["list"]
    list: Annotated[str, Relative()]
    images_per_class: tuple[PositiveInt, PositiveInt] | None = None

    def contents(self) -> Contents:
        """Return the list itself, where it is a file: which images it names decides the result."""
        file = Path(self.list)
        return Contents(texts=(("labels.list", file),)) if file.is_file() else Contents()


class AllLabels(Section):
    """Every training image with its label."""

    name: Literal["all"] = "all"


Labels = Annotated[FractionOfLabels | ImagesPerClass | ListedImages | AllLabels, Field(discriminator="name")]
