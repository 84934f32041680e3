"""UPerNet's head (Xiao et al. 2018) as mmsegmentation has it: a pooling pyramid, then a feature pyramid."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carryover.core.backbones.transparent import Transparent
from carryover.transfer.tasks.segmentation.torchvision.blocks import classifier_of, convolution


class FourMaps(Transparent):
    """A trunk that gives four maps: {"out": all of them, "aux": the third, for the auxiliary head}."""

    def forward(self, x: Tensor) -> dict[str, Tensor | tuple[Tensor, ...]]:
        maps = tuple(self.inner(x).values())
        return {"out": maps, "aux": maps[2]}


class Rescaled(nn.Module):
    """The four maps of a plain transformer at a quarter, a half, one and two patches.

    mmseg's `Feature2Pyramid`, as for BEiT and MAE: transposed convolutions upwards, max pooling downwards.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.upsample_4x = nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, stride=2),
            nn.BatchNorm2d(width),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, 2, stride=2),
        )
        self.upsample_2x = nn.Sequential(nn.ConvTranspose2d(width, width, 2, stride=2))
        self.downsample_2x = nn.MaxPool2d(2, stride=2)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return self.upsample_4x(maps[0]), self.upsample_2x(maps[1]), maps[2], self.downsample_2x(maps[3])


class UPerHead(nn.Module):
    """Maps four feature maps (B, widths[i], h_i, w_i), the largest first, to logits (B, classes, h_0, w_0).

    Attributes
    ----------
    neck
        What brings a plain transformer's maps to four sizes; nothing for networks that have them.
    """

    def __init__(
        self,
        widths: Sequence[int],
        channels: int,
        pool_scales: Sequence[int],
        classes: int,
        *,
        dropout: float,
        align: bool,
        plain: bool,
    ) -> None:
        super().__init__()
        self.align_corners = align
        self.neck = Rescaled(widths[0]) if plain else None
        last = widths[-1]
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), convolution(last, channels, 1))
            for scale in pool_scales
        )
        self.bottleneck = convolution(last + len(pool_scales) * channels, channels)
        self.lateral_convs = nn.ModuleList(
            convolution(width, channels, 1, inplace=False) for width in widths[:-1]
        )
        self.fpn_convs = nn.ModuleList(convolution(channels, channels, inplace=False) for _ in widths[:-1])
        self.fpn_bottleneck = convolution(len(widths) * channels, channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier_of(channels, classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        if self.neck is not None:
            maps = self.neck(maps)
        levels = [lateral(x) for lateral, x in zip(self.lateral_convs, maps[:-1], strict=True)]
        levels.append(self._pooled(maps[-1]))
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + self._resized(levels[i], levels[i - 1])
        outs = [conv(x) for conv, x in zip(self.fpn_convs, levels[:-1], strict=True)] + levels[-1:]
        joined = torch.cat([outs[0], *(self._resized(x, outs[0]) for x in outs[1:])], dim=1)
        logits: Tensor = self.classifier(self.dropout(self.fpn_bottleneck(joined)))
        return logits

    def _pooled(self, x: Tensor) -> Tensor:
        pooled = [self._resized(module(x), x) for module in self.psp_modules]
        out: Tensor = self.bottleneck(torch.cat([x, *pooled], dim=1))
        return out

    def _resized(self, x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=self.align_corners)
