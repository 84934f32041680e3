"""Signals computed during a training, their number of images and interval (torch-free)."""

import math
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from carryover.configs import Section


class OnlineConfig(Section):
    """Signals taken while training: k-NN and linear accuracy, RankMe, LiDAR (`pretrain.online.signals`).

    They change no weight. The images and their views are chosen once and kept decoded.

    Attributes
    ----------
    split
        Held-out images; None: there are none, nothing is classified, and ranks are of training images.
    train_images, test_images
        Training images whose labels classify so many held-out ones, class by class alike.
    lidar_images, lidar_views
        n and q of LiDAR, of held-out images; alignment and uniformity are of the first two views.
    every
        Steps between two looks; None: so many that a look's forward passes are `share` of the training's.
    share
        Part of the training's passes that a look may take; what else it takes is about as much on a GPU.
    k, tau
        NPID's, of the k-NN vote.
    """

    split: str | None = "val"
    train_images: PositiveInt = 512
    test_images: PositiveInt = 512
    lidar_images: Annotated[int, Field(ge=2)] = 64
    lidar_views: Annotated[int, Field(ge=2)] = 8
    every: PositiveInt | None = None
    share: Annotated[float, Field(gt=0, le=1)] = 0.01
    k: PositiveInt = 20
    tau: PositiveFloat = 0.07

    @property
    def images(self) -> int:
        """Images of all forward passes of one look, at most."""
        return self.train_images + self.test_images + self.lidar_images * self.lidar_views

    def steps_between(self, images_per_step: float) -> int:
        """Return the steps between two looks, of a process that trains on so many views in a step.

        A step is a forward pass and a backward one of twice its cost.
        """
        if self.every is not None:
            return self.every
        return max(1, math.ceil(self.images / (self.share * 3 * images_per_step)))
