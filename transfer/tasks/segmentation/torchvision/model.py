"""FCN, UPerNet and a linear head around a pretrained backbone, assembled from torchvision's components.

With the same weights it gives mmseg's features, logits, losses and learning rates (verified in the tests).
What remains different: PIL resizes images, where mmseg uses OpenCV, which does not antialias; order and
augmentation of the images come from another random stream.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.fcn import FCN

from carryover.core.backbones.build import build_backbone
from carryover.core.backbones.transparent import Transparent
from carryover.core.data.masks.dataset import IGNORED
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.training.device import copied_to, random_states_kept
from carryover.transfer.tasks.segmentation.config import InputConfig
from carryover.transfer.tasks.segmentation.maps import (
    as_trained,
    divisor_of,
    is_plain,
    require_segmentable,
    stages_of,
    widths_of,
)
from carryover.transfer.tasks.segmentation.model_config import LinearHeadConfig, ModelConfig, UPerNetConfig
from carryover.transfer.tasks.segmentation.torchvision.backbone import dilate
from carryover.transfer.tasks.segmentation.torchvision.blocks import classifier_of, convolution
from carryover.transfer.tasks.segmentation.torchvision.upernet import FourMaps, UPerHead
from carryover.transfer.tasks.segmentation.transforms import Example


class ConvHead(nn.Module):
    """3x3 convolutions, dropout, and a linear classifier of every pixel (mmseg's FCNHead).

    Maps features (B, in_channels, h, w) to logits (B, classes, h, w).
    """

    def __init__(
        self, in_channels: int, channels: int, convs: int, concat_input: bool, dropout: float, classes: int
    ) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * convs
        self.convs = nn.Sequential(*(convolution(a, b) for a, b in pairwise(widths)))
        self.concat = convolution(in_channels + channels, channels) if concat_input else None
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier_of(channels, classes)

    def forward(self, features: Tensor) -> Tensor:
        x = self.convs(features)
        if self.concat is not None:
            x = self.concat(torch.cat([features, x], dim=1))
        logits: Tensor = self.classifier(self.dropout(x))
        return logits


class LinearHead(nn.Module):
    """Batch normalization, dropout, and a linear classifier of every cell (DINOv2's `BNHead`).

    Maps features (B, in_channels, h, w) to logits (B, classes, h, w).
    """

    def __init__(self, in_channels: int, dropout: float, classes: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier_of(in_channels, classes)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(self.bn(features)))
        return logits


class JoinedMaps(Transparent):
    """A trunk whose maps are resized to the largest of them and joined: {"out": (B, sum of widths, h, w)}."""

    def __init__(self, trunk: nn.Module, align: bool) -> None:
        super().__init__(trunk)
        self.align_corners = align

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = list(self.inner(x).values())
        size = maps[0].shape[-2:]
        alike = [
            m
            if m.shape[-2:] == size
            else F.interpolate(m, size=size, mode="bilinear", align_corners=self.align_corners)
            for m in maps
        ]
        return {"out": torch.cat(alike, dim=1)}


class DilatedFCN(FCN):
    """torchvision's FCN (`backbone`, `classifier`, `aux_classifier`) that aligns corners where asked to.

    Maps normalized images (B, 3, H, W) to logits (B, C, H, W): "out", and in training "aux". Sides are
    multiples of `divisor`. A `frozen` backbone stays in evaluation mode.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        auxiliary: nn.Module | None,
        align: bool,
        divisor: int = 1,
        frozen: bool = False,
    ) -> None:
        super().__init__(backbone, head, auxiliary)
        self.align_corners, self.divisor, self.frozen = align, divisor, frozen
        if frozen:
            backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> "DilatedFCN":
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.backbone(x)
        logits = {"out": self.classifier(features["out"])}
        if self.training and self.aux_classifier is not None:
            logits["aux"] = self.aux_classifier(features["aux"])
        return {name: self.resized(value, x.shape[-2:]) for name, value in logits.items()}

    def resized(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """Resize a map of logits (B, C, h, w) to (height, width), in float32."""
        return F.interpolate(
            logits.float(), size=list(size), mode="bilinear", align_corners=self.align_corners
        )


def build_segmenter(
    backbone: BackboneConfig,
    weights: Mapping[str, Tensor],
    model: ModelConfig,
    classes: int,
    seed: int,
) -> DilatedFCN:
    """Build a segmenter around a pretrained backbone; everything new is initialized from `seed`.

    Parameters
    ----------
    backbone, weights
        What the checkpoint holds: its architecture and its tensors under torchvision's names.

    Raises
    ------
    UserError
        The backbone cannot carry a segmenter (no stages of strides 4 to 32, or none that can be dilated, and
        no plain transformer).
    """
    require_segmentable(backbone, model)
    stages = stages_of(backbone, model)
    widths = widths_of(backbone, stages)
    with random_states_kept():
        torch.manual_seed(seed)
        network = build_backbone(as_trained(backbone, model))
        network.load_state_dict(weights, strict=False)
        head: nn.Module
        auxiliary = None
        if isinstance(model, LinearHeadConfig):
            head = LinearHead(sum(widths), model.dropout, classes)
            names = {stage: str(index) for index, stage in enumerate(stages)}
            body: nn.Module = JoinedMaps(network.trunk(names), model.align_corners)
        elif isinstance(model, UPerNetConfig):
            head = UPerHead(
                widths,
                model.channels,
                model.pool_scales,
                classes,
                dropout=model.dropout,
                align=model.align_corners,
                plain=is_plain(backbone),
            )
            if (aux := model.auxiliary) is not None:
                auxiliary = ConvHead(widths[2], aux.channels, aux.convs, False, model.dropout, classes)
            body = FourMaps(network.trunk({stage: str(index) for index, stage in enumerate(stages)}))
        else:
            if not is_plain(backbone):
                dilate(network, model.output_stride)
            head = ConvHead(
                widths[-1], model.channels, model.convs, model.concat_input, model.dropout, classes
            )
            if (aux := model.auxiliary) is not None:
                auxiliary = ConvHead(widths[-2], aux.channels, aux.convs, False, model.dropout, classes)
            body = network.trunk({stages[-2]: "aux", stages[-1]: "out"})
        segmenter = DilatedFCN(body, head, auxiliary, model.align_corners, divisor_of(backbone), model.frozen)
    return segmenter.to(memory_format=torch.channels_last)


def losses(logits: Mapping[str, Tensor], labels: Tensor, model: ModelConfig) -> dict[str, Tensor]:
    """Return the weighted cross-entropies of head and auxiliary head; labels (B, H, W) int64.

    Averaged over all pixels, the ignored ones too, which add nothing (mmseg's default).
    """
    found = {"loss_seg": _cross_entropy(logits["out"], labels)}
    if "aux" in logits and model.auxiliary is not None:
        found["loss_aux"] = model.auxiliary.weight * _cross_entropy(logits["aux"], labels)
    return found


def normalized(image: Tensor, config: InputConfig) -> Tensor:
    """Normalize (3, H, W) uint8 pixels by the recipe's statistics, on their device."""
    mean, std = (
        copied_to(torch.tensor(of_channel), image.device).view(3, 1, 1)
        for of_channel in (config.pixel_mean, config.pixel_std)
    )
    return (image.float() - mean) / std


def batch_of(examples: Sequence[Example], config: InputConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return crops as images (B, 3, H, W) and labels (B, H, W) int64 of the crop size.

    What a crop lacks is zero after normalization, the color of the mean, and ignored.
    """
    height, width = config.crop_size
    images = torch.zeros((len(examples), 3, height, width), device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.full((len(examples), height, width), IGNORED, dtype=torch.int64, device=device)
    for i, example in enumerate(examples):
        h, w = example.labels.shape
        images[i, :, :h, :w] = normalized(copied_to(example.image, device), config)
        labels[i, :h, :w] = copied_to(example.labels, device)
    return images, labels


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    return total / labels.numel()
