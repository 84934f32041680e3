"""Backbones by their configuration, without a classifier, and every stage's maps of any of them."""

from typing import Any

from torch import Tensor, nn
from torchvision import models

from carryover.core.backbones.mobile import MobileNet
from carryover.core.backbones.resnet import ResNet, resnet_maps
from carryover.core.formats.backbone import BACKBONES, FAMILIES, BackboneConfig


def build_resnet(config: BackboneConfig) -> ResNet:
    """Build a ResNet."""
    return ResNet(config.arch, config.width, config.stem, config.stride_in_1x1, config.padding)


def build_mobile(config: BackboneConfig) -> MobileNet:
    """Build one of the small networks."""
    return MobileNet(config.arch, config.stem)


def build_backbone(config: BackboneConfig) -> Any:
    """Build the backbone of a recipe, freshly initialized, by its registered builder.

    Returns
    -------
    nn.Module
        Maps images (B, 3, H, W) to pooled features (B, feature_dim); torchvision's networks are under
        torchvision's names.
    """
    family, slash, _ = config.arch.partition("/")
    return (FAMILIES.get(family) if slash else BACKBONES.get(config.arch))(config)


def feature_maps(backbone: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return every stage's output for images `x` (B, 3, H, W), by its own `feature_maps`.

    torchvision's own ResNets are taken as well.
    """
    own: Any = getattr(backbone, "feature_maps", None)
    if own is not None:
        maps: dict[str, Tensor] = own(x)
        return maps
    if isinstance(backbone, models.ResNet):
        return resnet_maps(backbone, x)
    raise TypeError(f"{type(backbone).__name__} has no method `feature_maps`")
