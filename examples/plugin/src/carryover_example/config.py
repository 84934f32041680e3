"""What stands under ``method:`` for alignment and uniformity (torch-free: recipes are read without torch)."""

from typing import ClassVar, Literal

from pydantic import PositiveFloat

from carryover.pretrain.method_config import MethodSection, WeightSharingTarget


class AlignmentUniformityConfig(MethodSection):
    """Alignment and uniformity on the hypersphere (Wang and Isola 2020).

    Attributes
    ----------
    uniformity
        Weight of the uniformity loss, lambda of the paper.
    t
        Width of its Gaussian kernel, exp(-t |x - y|^2).
    """

    implementation: ClassVar[str] = "carryover_example.alignment_uniformity:AlignmentUniformity"

    name: Literal["alignment_uniformity"]
    uniformity: PositiveFloat = 1.0
    t: PositiveFloat = 2.0
    target: WeightSharingTarget = WeightSharingTarget()
