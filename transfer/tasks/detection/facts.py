"""Facts in the record of a detection run."""

from carryover.transfer.tasks.backend import TrainedFacts


class DetectionFacts(TrainedFacts):
    """Facts in the record of either library, and Detectron2's own.

    Attributes
    ----------
    precise_bn_layers
        Layers whose batch statistics were estimated again before testing.
    empty_images_left_out
        Training images without objects.
    detectron2
        "built" or "unbuilt".
    conversion_difference
        The largest difference of feature maps in the conversion that the model was verified against.
    receipt
        That conversion's receipt.
    mask_format
        "polygon" or "bitmask".
    prefix_tokens
        What became of a plain transformer's class token and registers.
    attention
        Where its patches attend: windows, blocks, relative positions.
    metric_rule
        The rule of AP in words.
    classes, classes_measured
        The recipe's classes, and those of them with objects in the test split: AP is a mean over these.
    """

    precise_bn_layers: int
    empty_images_left_out: int
    detectron2: str | None = None
    conversion_difference: float | None = None
    receipt: str | None = None
    mask_format: str | None = None
    prefix_tokens: str | None = None
    attention: str | None = None
    metric_rule: str | None = None
    classes: int | None = None
    classes_measured: int | None = None
