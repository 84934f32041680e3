"""ResNets under torchvision's own parameter names, without a classifier: the family's own file."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torchvision import models
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock, Bottleneck

from carryover.core.backbones.declared import InputRule

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")

_BLOCKS: dict[str, tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
# Dilations of the last two stages, by output stride.
_DILATIONS = {8: (2, 4), 16: (1, 2), 32: (1, 1)}


class ResNet(models.ResNet):
    """torchvision's ResNet with every channel multiplied by `width` and without its classifier.

    torchvision's `width_per_group` widens only the inner 3x3 convolution; EqCo's x2 and x4 models (Table 8:
    94 M and 375 M parameters) widen every layer, the stem included. See `declared.Declared`.
    """

    patch_size: int | None = None
    vector_names: tuple[str, ...] = ()
    input_rule = InputRule()
    pools_last_stage = True
    parts: tuple[tuple[str, ...], ...] = (("conv1", "bn1"), *((stage,) for stage in STAGES[1:]))

    def __init__(
        self,
        arch: str,
        width: int = 1,
        stem: str = "imagenet",
        stride_in_1x1: bool = False,
        padding: str = "symmetric",
    ) -> None:
        block, depths = _BLOCKS[arch]
        nn.Module.__init__(self)
        self._norm_layer = nn.BatchNorm2d
        self.inplanes = 64 * width
        self.dilation = 1
        self.groups = 1
        # Bottleneck computes its inner width as planes * base_width / 64 with planes already multiplied.
        self.base_width = 64
        small = stem != "imagenet"
        if small:
            self.conv1 = nn.Conv2d(3, self.inplanes, kernel_size=3, stride=1, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(3, self.inplanes, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(self.inplanes)
        self.relu = nn.Identity() if stem == "cifar_no_relu" else nn.ReLU(inplace=True)
        pooled = stem in ("imagenet", "cifar_maxpool")
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1) if pooled else nn.Identity()
        self.layer1 = self._make_layer(block, 64 * width, depths[0])
        self.layer2 = self._make_layer(block, 128 * width, depths[1], stride=2)
        self.layer3 = self._make_layer(block, 256 * width, depths[2], stride=2)
        self.layer4 = self._make_layer(block, 512 * width, depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Identity()
        self.feature_dim = 512 * width * block.expansion
        self.stages = STAGES
        self.widths = (64 * width, *(64 * width * block.expansion * 2**i for i in range(4)))
        first = (1 if small else 2) * (2 if pooled else 1)
        self.strides = (first, *(first * 2**i for i in range(4)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if stride_in_1x1:
            _stride_in_1x1(self)
        if padding == "same":
            _pad_as_tensorflow(self)

    def feature_maps(self, x: Tensor) -> dict[str, Tensor]:
        """Return "stem" (after max pooling) and "layer1" to "layer4"."""
        return resnet_maps(self, x)

    def vectors(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Return nothing: a ResNet has one pooled feature, its own output."""
        return {}

    def trunk(self, names: Mapping[str, str]) -> nn.Module:
        """Return the network up to the last of these stages."""
        return IntermediateLayerGetter(self, dict(names))

    def dilate(self, output_stride: int) -> None:
        """Trade the strides of the last stages for dilation, in place (Chen et al. 2018, Sec. 3.1).

        A stage's first block keeps the dilation of the stage before (torchvision's
        replace_stride_with_dilation, mmseg's contract_dilation). In a basic block only the first convolution
        is dilated, as in mmseg; torchvision has no dilated basic block.
        """
        for layer, dilation in zip((self.layer3, self.layer4), _DILATIONS[output_stride], strict=True):
            if dilation > 1:
                _dilate(layer, dilation)


def dilations(output_stride: int) -> tuple[int, int, int, int]:
    """Return the dilation of the four stages; a dilated one has stride 1."""
    return (1, 1, *_DILATIONS[output_stride])


def resnet_maps(network: models.ResNet, x: Tensor) -> dict[str, Tensor]:
    """Return the maps of ours and torchvision's ResNets by stage."""
    x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    maps = {"stem": x}
    for name in STAGES[1:]:
        x = getattr(network, name)(x)
        maps[name] = x
    return maps


def _stride_in_1x1(network: ResNet) -> None:
    """Move every bottleneck's stride from its 3x3 to its first 1x1 convolution (He et al. 2016; Caffe)."""
    for block in network.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: of a strided one the odd pixel goes to the end."""

    def forward(self, x: Tensor) -> Tensor:
        sizes = zip(x.shape[-2:], self.kernel_size, self.stride, self.dilation)
        (top, bottom), (left, right) = (_same(*each) for each in sizes)
        x = nn.functional.pad(x, (left, right, top, bottom))
        out: Tensor = nn.functional.conv2d(
            x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups
        )
        return out


class SameMaxPool2d(nn.MaxPool2d):
    """A max pooling padded as TensorFlow's SAME."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size, self.stride
        assert isinstance(kernel, int) and isinstance(stride, int)
        sides = [_same(size, kernel, stride, 1) for size in x.shape[-2:]]
        (top, bottom), (left, right) = sides
        x = nn.functional.pad(x, (left, right, top, bottom), value=float("-inf"))
        out: Tensor = nn.functional.max_pool2d(x, self.kernel_size, self.stride)
        return out


def _same(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Return the pixels before and after a side of `size` of TensorFlow's SAME padding."""
    total = max((-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
    return total // 2, total - total // 2


def _pad_as_tensorflow(network: ResNet) -> None:
    """Make every strided layer of a network pad as TensorFlow does, in place; tensors are unchanged."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d) and child.kernel_size != (1, 1):
                kernel, stride = child.kernel_size[0], child.stride[0]
                same = SameConv2d(child.in_channels, child.out_channels, kernel, stride, bias=False)
                same.weight = child.weight
                setattr(parent, name, same)
            elif isinstance(child, nn.MaxPool2d):
                setattr(parent, name, SameMaxPool2d(child.kernel_size, child.stride))


def _dilate(layer: nn.Sequential, dilation: int) -> None:
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


def zero_last_norms(backbone: nn.Module) -> None:
    """Set the weight of the last batch norm of every residual block of a ResNet to zero."""
    for block in backbone.modules():
        if isinstance(block, BasicBlock | Bottleneck):
            last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
            nn.init.zeros_(last.weight)
