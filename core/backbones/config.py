"""Which backbone a recipe asks for (torch-free, so that recipes load fast)."""

from typing import Literal

from pydantic import model_validator

from carryover.configs import Section

Architecture = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "efficientnet_b0",
]
Stem = Literal["imagenet", "cifar"]


class BackboneConfig(Section):
    """A backbone: architecture, width multiple and stem.

    Attributes
    ----------
    arch
        torchvision's name of the network.
    width
        Multiple of all channels; 2 and 4 are EqCo's ResNet-50 x2 and x4 (94 M and 375 M parameters, Table 8).
    stem
        "imagenet" (7x7 stride 2, max pooling) or "cifar" (3x3 stride 1, no pooling; for 32 px images).
    """

    arch: Architecture = "resnet50"
    width: Literal[1, 2, 4] = 1
    stem: Stem = "imagenet"

    @model_validator(mode="after")
    def _widened_only_resnets(self) -> "BackboneConfig":
        if self.width != 1 and not self.is_resnet:
            raise ValueError(f"width {self.width} is defined for ResNets only, not for {self.arch}")
        return self

    @property
    def is_resnet(self) -> bool:
        """Whether the network has ResNet's stages, and so can carry a detector."""
        return self.arch.startswith("resnet")

    @property
    def label(self) -> str:
        """The name used in reports, for example ``resnet50 x2``."""
        return self.arch if self.width == 1 else f"{self.arch} x{self.width}"
