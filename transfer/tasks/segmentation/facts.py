"""Facts in the record of a segmentation run."""

from carryover.transfer.tasks.backend import TrainedFacts


class SegmentationFacts(TrainedFacts):
    """Facts in the record of either library.

    Attributes
    ----------
    metric_rule
        What the mIoU is, in words.
    classes, classes_measured
        The recipe's classes, and those of them with pixels in truth or prediction: mIoU is a mean over these.
    """

    classes: int
    classes_measured: int | None = None
    metric_rule: str | None = None
