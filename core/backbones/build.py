"""Backbones under torchvision's own parameter names, without a classifier."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck

from carryover.core.formats.backbone import BACKBONES, BackboneConfig

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")

_RESNETS: dict[str, tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
_MOBILE: dict[str, Callable[..., nn.Module]] = {
    "mobilenet_v2": models.mobilenet_v2,
    "mobilenet_v3_small": models.mobilenet_v3_small,
    "mobilenet_v3_large": models.mobilenet_v3_large,
    "efficientnet_b0": models.efficientnet_b0,
}


class ResNet(models.ResNet):
    """torchvision's ResNet with every channel multiplied by `width` and without its classifier.

    torchvision's `width_per_group` widens only the inner 3x3 convolution; EqCo's x2 and x4 models (Table 8:
    94 M and 375 M parameters) widen every layer, the stem included.
    """

    def __init__(self, arch: str, width: int = 1, stem: str = "imagenet") -> None:
        block, depths = _RESNETS[arch]
        nn.Module.__init__(self)
        self._norm_layer = nn.BatchNorm2d
        self.inplanes = 64 * width
        self.dilation = 1
        self.groups = 1
        # Bottleneck computes its inner width as planes * base_width / 64 with planes already multiplied.
        self.base_width = 64
        if stem == "cifar":
            self.conv1 = nn.Conv2d(3, self.inplanes, kernel_size=3, stride=1, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(3, self.inplanes, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(self.inplanes)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if stem == "cifar" else nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = self._make_layer(block, 64 * width, depths[0])
        self.layer2 = self._make_layer(block, 128 * width, depths[1], stride=2)
        self.layer3 = self._make_layer(block, 256 * width, depths[2], stride=2)
        self.layer4 = self._make_layer(block, 512 * width, depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Identity()
        self.feature_dim = 512 * width * block.expansion
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def feature_maps(self, x: Tensor) -> dict[str, Tensor]:
        """Return "stem" (after max pooling) and "layer1" to "layer4"."""
        return _resnet_maps(self, x)


class MobileNet(nn.Module):
    """A torchvision network's `features`, pooled, without its classifier (MobileNetV2, V3, EfficientNet)."""

    def __init__(self, arch: str, stem: str = "imagenet") -> None:
        super().__init__()
        full: Any = _MOBILE[arch](weights=None)
        self.features: nn.Sequential = full.features
        if stem == "cifar":
            first: Any = self.features[0]
            first[0].stride = (1, 1)
        self.feature_dim = int(_out_channels(self.features))

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x).mean(dim=(2, 3))

    def feature_maps(self, x: Tensor) -> dict[str, Tensor]:
        """Return the feature blocks' outputs, "features.0", "features.1", ..."""
        maps = {}
        for index, block in enumerate(self.features):
            x = block(x)
            maps[f"features.{index}"] = x
        return maps


def build_resnet(config: BackboneConfig) -> ResNet:
    """Build a ResNet."""
    return ResNet(config.arch, config.width, config.stem)


def build_mobile(config: BackboneConfig) -> MobileNet:
    """Build one of the small networks."""
    return MobileNet(config.arch, config.stem)


def build_backbone(config: BackboneConfig) -> Any:
    """Build the backbone of a recipe, freshly initialised, by its registered builder.

    Returns
    -------
    nn.Module
        Maps images (B, 3, H, W) to pooled features (B, feature_dim); torchvision's networks are under
        torchvision's names.
    """
    return BACKBONES.get(config.arch)(config)


def feature_maps(backbone: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return every stage's output for images `x` (B, 3, H, W), by its own `feature_maps`.

    torchvision's own ResNets are taken as well.
    """
    own: Any = getattr(backbone, "feature_maps", None)
    if own is not None:
        maps: dict[str, Tensor] = own(x)
        return maps
    if isinstance(backbone, models.ResNet):
        return _resnet_maps(backbone, x)
    raise TypeError(f"{type(backbone).__name__} has no method `feature_maps`")


def _resnet_maps(backbone: models.ResNet, x: Tensor) -> dict[str, Tensor]:
    x = backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1(x))))
    maps = {"stem": x}
    for name in STAGES[1:]:
        x = getattr(backbone, name)(x)
        maps[name] = x
    return maps


def _out_channels(features: nn.Sequential) -> int:
    convolutions = [m for m in features.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        return convolutions[-1].out_channels
