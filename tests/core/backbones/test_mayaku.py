"""Detectors of mayaku: torchvision's networks under its names, with its own configuration inside."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from carryover.configs import UserError
from carryover.core.backbones.build import feature_maps
from carryover.core.backbones.inspection import inspect_checkpoint, load_backbone
from tests.core.backbones.makers_networks import randomized

MEAN, STD = [120.0, 110.0, 100.0], [58.0, 57.0, 56.0]


class ResNetBottomUp(nn.Module):
    """The stages of mayaku's ResNetBackbone: torchvision's, the stride moved where the weights need it."""

    def __init__(self, name: str, stride_in_1x1: bool) -> None:
        super().__init__()
        network = getattr(torchvision.models, name)()
        self.stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        self.res2, self.res3, self.res4, self.res5 = (getattr(network, f"layer{i}") for i in range(1, 5))
        if stride_in_1x1:
            for stage in (self.res3, self.res4, self.res5):
                stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x, maps = self.stem(x), []
        for stage in (self.res2, self.res3, self.res4, self.res5):
            x = stage(x)
            maps.append(x)
        return maps


class ConvNeXtBottomUp(nn.Module):
    """The stages of mayaku's ConvNeXtBackbone."""

    def __init__(self, name: str) -> None:
        super().__init__()
        features = getattr(torchvision.models, name)().features
        self.stem = features[0]
        self._res_downs = nn.ModuleDict({"res2": nn.Identity()})
        self._res_downs.update({f"res{i}": features[2 * (i - 2)] for i in range(3, 6)})
        self._res_stages = nn.ModuleDict({f"res{i}": features[2 * (i - 2) + 1] for i in range(2, 6)})

    def forward(self, x: Tensor) -> list[Tensor]:
        x, maps = self.stem(x), []
        for stage in self._res_stages:
            x = self._res_stages[stage](self._res_downs[stage](x))
            maps.append(x)
        return maps


def write(path: Path, name: str, model: nn.Module, frozen: bool = True, stride: bool = False) -> None:
    """Write a file as mayaku's PeriodicCheckpointer does, its batch norms frozen ones without counters."""
    state = {
        f"backbone.bottom_up.{n}": v
        for n, v in model.state_dict().items()
        if not (frozen and n.endswith("num_batches_tracked"))
    }
    state |= {"backbone.fpn_lateral2.weight": torch.randn(8, 8, 1, 1), "roi_heads.box.weight": torch.ones(2)}
    backbone = {"name": name, "norm": "FrozenBN", "freeze_at": 2, "stride_in_1x1": stride}
    model_config: dict[str, Any] = {"backbone": backbone, "pixel_mean": MEAN, "pixel_std": STD}
    sidecar = {"schema_version": 1, "config": {"model": model_config}, "class_names": ["a"], "provenance": {}}
    torch.save({"model": state, "iteration": 7, "mayaku": sidecar}, path)


CASES: dict[str, tuple[str, bool, str]] = {
    "ResNet-50": ("resnet50", False, "resnet50"),
    "Detectron2's weights, stride in the 1x1": ("resnet50", True, "resnet50"),
    "ResNeXt": ("resnext101_32x8d", False, "timm/resnext101_32x8d"),
    "ConvNeXt": ("convnext_tiny", False, "timm/convnext_tiny"),
}


@pytest.mark.parametrize("case", CASES)
def test_its_backbone_is_read_with_what_its_configuration_says(case: str, tmp_path: Path) -> None:
    name, stride, arch = CASES[case]
    model = randomized(ConvNeXtBottomUp(name) if "convnext" in name else ResNetBottomUp(name, stride))
    write(tmp_path / "model_final.pth", name, model, stride=stride)
    found = inspect_checkpoint(tmp_path / "model_final.pth")
    assert (found.maker, found.metadata.backbone.arch) == ("mayaku", arch)
    assert found.metadata.backbone.stride_in_1x1 == stride
    assert found.metadata.pixel_mean == pytest.approx([v / 255 for v in MEAN])
    assert found.metadata.pixel_std == pytest.approx([v / 255 for v in STD])
    assert "pixels" not in found.metadata.assumed and "stride" not in found.metadata.assumed
    network, _ = load_backbone(tmp_path / "model_final.pth")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = list(feature_maps(network.eval(), x).values())[-4:], model(x)
    for mine, own in zip(ours, theirs, strict=True):
        assert float((mine - own).abs().max()) < 1e-4 * float(own.abs().max())


def test_a_resnext_that_is_said_to_stride_in_the_1x1_is_refused(tmp_path: Path) -> None:
    model = randomized(ResNetBottomUp("resnext50_32x4d", True))
    write(tmp_path / "c.pth", "resnext50_32x4d", model, stride=True)
    with pytest.raises(UserError, match=r"strides in its 3x3 convolutions, not in the 1x1 .*'mayaku'"):
        inspect_checkpoint(tmp_path / "c.pth")


def test_torchvisions_convnext_is_timms(tmp_path: Path) -> None:
    model = randomized(torchvision.models.convnext_tiny())
    torch.save(model.state_dict(), tmp_path / "c.pth")
    found = inspect_checkpoint(tmp_path / "c.pth")
    assert (found.maker, found.metadata.backbone.arch, found.coverage) == (
        "torchvision",
        "timm/convnext_tiny",
        1.0,
    )
    network, _ = load_backbone(tmp_path / "c.pth")
    model.classifier[2] = nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x), model(x), rtol=0, atol=1e-4)
