"""The pretrained backbone inside an FCN: dilated instead of strided, every tensor where it was."""

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from carryover.configs import UserError
from carryover.core.backbones.build import ResNet
from carryover.core.formats.backbone import BackboneConfig

# Dilations of layer3 and layer4, by output stride.
_DILATIONS = {8: (2, 4), 16: (1, 2), 32: (1, 1)}


def dilations(output_stride: int) -> tuple[int, int, int, int]:
    """Return the dilation of layer1 to layer4; a dilated layer has stride 1."""
    return (1, 1, *_DILATIONS[output_stride])


def dilate(resnet: ResNet, output_stride: int) -> None:
    """Trade the strides of layer3 and layer4 for dilation, in place (Chen et al. 2018, Sec. 3.1).

    A layer's first block keeps the dilation of the layer before (torchvision's
    replace_stride_with_dilation, mmseg's contract_dilation). In a basic block only the first convolution is
    dilated, as in mmseg; torchvision has no dilated basic block.
    """
    for layer, dilation in zip((resnet.layer3, resnet.layer4), _DILATIONS[output_stride], strict=True):
        if dilation == 1:
            continue
        for position, block in enumerate(layer):
            assert isinstance(block, BasicBlock | Bottleneck)
            spread = dilation if position else dilation // 2
            convolution = block.conv2 if isinstance(block, Bottleneck) else block.conv1
            convolution.stride = (1, 1)
            convolution.dilation = convolution.padding = (spread, spread)
            block.stride = 1
            if isinstance(block.downsample, nn.Sequential):
                first = block.downsample[0]
                assert isinstance(first, nn.Conv2d)
                first.stride = (1, 1)


def require_segmentable(backbone: BackboneConfig) -> None:
    """Raise UserError for a backbone that has no stages of strides 4 to 32."""
    if not backbone.is_resnet:
        raise UserError(f"{backbone.label}: segmenters are built on ResNets only")
    if backbone.stem != "imagenet":
        raise UserError(
            f"{backbone.label} with the '{backbone.stem}' stem: a segmenter needs stages of strides 4, 8, 16"
            " and 32, so a backbone pretrained with stem 'imagenet'"
        )
