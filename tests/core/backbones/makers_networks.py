"""Networks as their makers' own code builds them, whose tensors are those of another network too."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from lightly.models import ResNetGenerator
from timm.layers import Conv2dSame, create_pool2d
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

CAFFE_MEAN, RGB_MEAN, RGB_STD = (103.53, 116.28, 123.675), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Case:
    """One maker's file whose tensors do not tell what its network computes.

    `model` is the maker's network, `file` what is saved, `side` the images', `pooled` the maker's features of
    RGB images in 0..1. `wrong` is what is assumed without being told; `told` the options that say it.
    """

    model: Callable[[], nn.Module]
    file: Callable[[nn.Module], Any]
    pooled: Callable[[nn.Module, Tensor], Tensor]
    told: dict[str, Any]
    wrong: str
    side: int = 64
    beside: dict[str, str] = field(default_factory=dict)


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every tensor of a network values as of a trained one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not value.is_floating_point():
                value.zero_()
                continue
            if name.endswith(("running_var",)) or (name.endswith("weight") and value.ndim == 1):
                value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.75)
            elif value.ndim in (2, 4):
                fan = value[0].numel()
                value.copy_(torch.randn(value.shape, generator=generator) / fan**0.5)
            else:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return model.eval()


def write_reference(path: Path, case: Case, model: nn.Module) -> None:
    """Write what `convert --against` takes, by the maker's own network and preprocessing."""
    images = torch.rand(2, 3, case.side, case.side, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        np.savez(path, images=images.numpy(), pooled=case.pooled(model, images).numpy())


def _imagenet(model: nn.Module, images: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (RGB_MEAN, RGB_STD))
    found: Tensor = model((images - mean) / std)
    return found


def _plain_bgr(model: nn.Module, images: Tensor) -> Tensor:
    found: Tensor = model(255 * images.flip(1) - torch.tensor(CAFFE_MEAN).view(1, 3, 1, 1))
    return found


def _caffe() -> nn.Module:
    model = resnet50()
    model.fc = nn.Identity()
    for block in (b for stage in (model.layer2, model.layer3, model.layer4) for b in stage[:1]):
        block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)
    return randomized(model)


def _same() -> nn.Module:
    model = resnet18()
    model.fc = nn.Identity()
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d) and child.kernel_size != (1, 1):
                shape = child.in_channels, child.out_channels, child.kernel_size, child.stride
                setattr(parent, name, Conv2dSame(*shape, bias=False))
    model.maxpool = create_pool2d("max", 3, 2, padding="same")
    return randomized(model)


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: randomized(timm.create_model(name, num_classes=0, **options))


def _generator() -> nn.Module:
    children = list(ResNetGenerator("resnet-18").children())[:-1]
    return randomized(nn.Sequential(*children, nn.AdaptiveAvgPool2d(1), nn.Flatten()))


def _tiny_pooled() -> nn.Module:
    model = resnet18()
    model.conv1, model.fc = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return randomized(model)


def _plain(model: nn.Module) -> Any:
    return model.state_dict()


def _detectron2(model: nn.Module) -> Any:
    from carryover.core.backbones.naming import to_detectron2

    return {"model": {f"backbone.bottom_up.{to_detectron2(n)}": v for n, v in model.state_dict().items()}}


_MM = """
model = dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=50, style='caffe'))
img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
"""
_YAML = """
INPUT: {FORMAT: BGR}
MODEL:
  PIXEL_MEAN: [103.53, 116.28, 123.675]
  PIXEL_STD: [1.0, 1.0, 1.0]
  RESNETS: {STRIDE_IN_1X1: true}
"""


def _mm(model: nn.Module) -> Any:
    state = {f"backbone.{n}": v for n, v in model.state_dict().items()}
    return {"meta": {"cfg": _MM, "epoch": 12}, "state_dict": state}


def _prefixed(prefix: str, **more: Any) -> Callable[[nn.Module], Any]:
    return lambda m: {"state_dict": {f"{prefix}{n}": v for n, v in m.state_dict().items()}, **more}


CASES: dict[str, Case] = {
    "Caffe's stride and BGR": Case(
        _caffe, _plain, _plain_bgr, {"stride_in_1x1": True, "pixels": "caffe"}, "network"
    ),
    "Detectron2 without a configuration": Case(_caffe, _detectron2, _plain_bgr, {}, ""),
    "Detectron2 with config.yaml": Case(
        _caffe, _detectron2, _plain_bgr, {}, "", beside={"config.yaml": _YAML}
    ),
    "mm-series, caffe": Case(_caffe, _mm, _plain_bgr, {}, ""),
    "TensorFlow's padding": Case(_same, _plain, _imagenet, {"padding": "same"}, "network"),
    "resnetblur18": Case(
        _timm("resnetblur18"), _plain, _imagenet, {"architecture": "timm/resnetblur18"}, "network"
    ),
    "resnetaa50 by timm's own arch": Case(
        _timm("resnetaa50"), _prefixed("", arch="resnetaa50", epoch=9), _imagenet, {}, ""
    ),
    "lightly's ResNetGenerator": Case(_generator, _prefixed("backbone."), _imagenet, {}, "", 32),
    "3x3 stem with max pooling": Case(_tiny_pooled, _plain, _imagenet, {"stem": "cifar_maxpool"}, "stem", 32),
    "12 heads": Case(
        _timm("vit_small_patch16_224", num_heads=12), _plain, _imagenet, {"heads": 12}, "heads", 224
    ),
    "half the pixels": Case(
        _timm("vit_tiny_patch16_224"),
        _plain,
        lambda m, x: m(2 * x - 1),
        {"pixels": "0.5,0.5,0.5/0.5,0.5,0.5/RGB"},
        "pixels",
        224,
    ),
}
