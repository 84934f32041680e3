"""Options of `carryover verify` (torch-free)."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from carryover.configs import Section
from carryover.core.data.labelled.config import ClassifyData
from carryover.core.training.device_name import DeviceName


class VerifyConfig(Section):
    """The images that a checkpoint is verified on, and how many of them.

    Attributes
    ----------
    data
        A labeled data set with a split to fit on and a split to test on, as the tasks read it.
    size
        Side of the images in pixels; None: that of the file, where it says one, else the data's own.
    train_images, test_images
        The most that are taken of either split, class by class alike.
    statistics_images
        On how many of them batch statistics are measured.
    k, temperature
        Of the k-NN vote (Wu et al. 2018).
    costs
        Values of C of the linear classifier on cached features; one is chosen on a held-out tenth.
    random_controls
        How many networks with random weights are measured beside the file.
    """

    data: ClassifyData = Field(default_factory=lambda: ClassifyData.model_validate({}))
    size: PositiveInt | None = None
    train_images: PositiveInt = 2000
    test_images: PositiveInt = 2000
    statistics_images: Annotated[int, Field(ge=8)] = 128
    k: PositiveInt = 20
    temperature: PositiveFloat = 0.07
    costs: tuple[PositiveFloat, ...] = Field(default=(1e-3, 1e-2, 1e-1), min_length=1)
    random_controls: PositiveInt = 2
    batch_size: PositiveInt = 100
    seed: NonNegativeInt = 0
    workers: NonNegativeInt = 0
    device: DeviceName = "auto"
    images: Path | None = None
