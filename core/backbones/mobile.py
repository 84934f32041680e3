"""torchvision's small networks (MobileNetV2, V3, EfficientNet-B0) under its names, without a classifier."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision import models
from torchvision.models._utils import IntermediateLayerGetter

from carryover.core.backbones.declared import InputRule

_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "mobilenet_v2": models.mobilenet_v2,
    "mobilenet_v3_small": models.mobilenet_v3_small,
    "mobilenet_v3_large": models.mobilenet_v3_large,
    "efficientnet_b0": models.efficientnet_b0,
}


class MobileNet(nn.Module):
    """A torchvision network's `features`, pooled, without its classifier; see `declared.Declared`."""

    patch_size: int | None = None
    vector_names: tuple[str, ...] = ()
    input_rule = InputRule()
    pools_last_stage = True

    def __init__(self, arch: str, stem: str = "imagenet") -> None:
        super().__init__()
        full: Any = _NETWORKS[arch](weights=None)
        self.features: nn.Sequential = full.features
        if stem == "cifar":
            first: Any = self.features[0]
            first[0].stride = (1, 1)
        widths, strides, stride = [], [], 1
        for block in self.features:
            convolutions = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
            # Squeeze-and-excitation works on one pixel, with stride 1, and is never a block's last one.
            stride *= max(c.stride[0] for c in convolutions)
            widths.append(convolutions[-1].out_channels)
            strides.append(stride)
        self.stages = tuple(f"features.{index}" for index in range(len(self.features)))
        self.widths, self.strides = tuple(widths), tuple(strides)
        self.parts = tuple(
            tuple(stage for stage, s in zip(self.stages, strides) if max(s, 2) == level)
            for level in (2, 4, 8, 16, 32)
        )
        self.feature_dim = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x).mean(dim=(2, 3))

    def feature_maps(self, x: Tensor) -> dict[str, Tensor]:
        """Return the feature blocks' outputs, "features.0", "features.1", ..."""
        maps = {}
        for index, block in enumerate(self.features):
            x = block(x)
            maps[f"features.{index}"] = x
        return maps

    def vectors(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Return nothing: there is one pooled feature, the network's own output."""
        return {}

    def trunk(self, names: Mapping[str, str]) -> nn.Module:
        """Return the network up to the last of these stages."""
        return _Trunk(self.features, {stage.rpartition(".")[2]: name for stage, name in names.items()})


class _Trunk(nn.Module):
    """The blocks of `features` under their names, giving some blocks' outputs."""

    def __init__(self, features: nn.Sequential, names: Mapping[str, str]) -> None:
        super().__init__()
        self.features = IntermediateLayerGetter(features, dict(names))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.features(x)
        return found
