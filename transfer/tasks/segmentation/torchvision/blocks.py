"""The layers that segmentation heads are made of, initialized as mmsegmentation does."""

from torch import nn


def convolution(in_channels: int, channels: int, kernel: int = 3, inplace: bool = True) -> nn.Sequential:
    """Build a convolution without bias, batch normalization and ReLU (mmcv's ConvModule)."""
    layer = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(layer, nn.BatchNorm2d(channels), nn.ReLU(inplace=inplace))


def classifier_of(channels: int, classes: int) -> nn.Conv2d:
    """Build the 1x1 convolution that gives the logits of every cell."""
    layer = nn.Conv2d(channels, classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer
