"""What the record of a segmentation run tells."""

from carryover.transfer.tasks.backend import TrainedFacts


class SegmentationFacts(TrainedFacts):
    """What a record of either library tells."""

    classes: int
