"""The description of a backbone, as recipes and checkpoints carry it; the architectures (torch-free)."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, model_validator

from carryover.configs import Section
from carryover.configs.registry import Registry

BACKBONES: Registry[Callable[["BackboneConfig"], Any]] = Registry("backbone", "carryover.backbones")
"""Builders by architecture: each takes the section and returns a freshly initialised network.

The network maps images (B, 3, H, W) to pooled features (B, `feature_dim`), and its `feature_maps(x)` returns
every stage's maps by name. A user's package adds one by an entry point, or by `register_backbone`.
"""

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
MOBILE = ("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0")

for _arch in RESNETS:
    BACKBONES.register(_arch, "carryover.core.backbones.build:build_resnet")
for _arch in MOBILE:
    BACKBONES.register(_arch, "carryover.core.backbones.build:build_mobile")


def _known(arch: str) -> str:
    if arch not in BACKBONES:
        raise ValueError(BACKBONES.unknown(arch))
    return arch


Architecture = Annotated[str, AfterValidator(_known)]
Stem = Literal["imagenet", "cifar"]


class BackboneConfig(Section):
    """A backbone: architecture, width multiple and stem.

    Attributes
    ----------
    arch
        torchvision's name of the network, or that of a registered one.
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
        return self.arch in RESNETS

    @property
    def label(self) -> str:
        """The name used in reports, for example ``resnet50 x2``."""
        return self.arch if self.width == 1 else f"{self.arch} x{self.width}"


def register_backbone(arch: str, build: Callable[[BackboneConfig], Any]) -> None:
    """Add an architecture for this process; raises UserError where another one has the name."""
    BACKBONES.register(arch, build)
