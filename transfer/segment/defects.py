"""What can be wrong with pairs of images and masks, and what a recipe wants done about it."""

from typing import Literal

from carryover.configs import Section
from carryover.transfer.detect.defects import ALWAYS_FATAL, Action


class MaskDefectPolicy(Section):
    """What to do with each kind of defect: stop before training, drop the image, or keep it.

    Attributes
    ----------
    missing_image, missing_mask
        One of a pair's two files is not there.
    unreadable_image, unreadable_mask
        An image file whose header PIL cannot read; a mask that cannot be decoded, or has colours where
        indices are expected.
    size_mismatch
        Image and mask are not of the same size.
    out_of_range
        A mask value (or colour) that is neither a class nor the ignored one. ``keep`` keeps the image and
        ignores those pixels.
    """

    missing_image: Literal["fatal", "drop"] = "fatal"
    missing_mask: Literal["fatal", "drop"] = "fatal"
    unreadable_image: Literal["fatal", "drop"] = "fatal"
    unreadable_mask: Literal["fatal", "drop"] = "fatal"
    size_mismatch: Literal["fatal", "drop"] = "fatal"
    out_of_range: Literal["fatal", "drop", "keep"] = "fatal"

    def action(self, kind: str) -> Action:
        """Return what is to be done with a defect of this kind."""
        return "fatal" if kind in ALWAYS_FATAL else getattr(self, kind)
