"""Backbones are torchvision's networks under torchvision's names, and as wide as the papers say."""

import pytest
import torch
from torch import nn
from torchvision import models

from carryover.core.backbones.build import build_backbone
from carryover.core.backbones.description import describe
from carryover.core.formats.backbone import MOBILE, RESNETS, Architecture, BackboneConfig


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("width", "millions"), [(2, 94), (4, 375)])
def test_wide_resnets_have_eqcos_parameter_counts(width: int, millions: int) -> None:
    config = BackboneConfig.model_validate({"arch": "resnet50", "width": width})
    with torch.device("meta"):
        backbone = build_backbone(config)
    assert backbone.feature_dim == 2048 * width
    # Table 8 counts the backbone alone, rounded to a million.
    assert round(_count(backbone) / 1e6) == millions


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50", "mobilenet_v2"])
def test_names_and_shapes_are_torchvisions(arch: Architecture) -> None:
    with torch.device("meta"):
        ours, theirs = build_backbone(BackboneConfig(arch=arch)), models.get_model(arch, weights=None)
    wanted = {n: v.shape for n, v in theirs.state_dict().items() if not n.startswith(("fc.", "classifier."))}
    assert {n: v.shape for n, v in ours.state_dict().items()} == wanted


@pytest.mark.parametrize("arch", ["mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0"])
def test_small_networks_carry_torchvisions_features(arch: Architecture) -> None:
    with torch.device("meta"):
        ours, theirs = build_backbone(BackboneConfig(arch=arch)), models.get_model(arch, weights=None)
    wanted = {n: v.shape for n, v in theirs.state_dict().items() if n.startswith("features.")}
    assert {n: v.shape for n, v in ours.state_dict().items()} == wanted


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2"])
def test_the_cifar_stem_keeps_the_resolution(arch: Architecture) -> None:
    images = torch.randn(2, 3, 32, 32)
    cifar = build_backbone(BackboneConfig(arch=arch, stem="cifar")).eval()
    first: nn.Module = cifar.conv1 if arch == "resnet18" else cifar.features[0][0]  # type: ignore[index, assignment]
    assert first(images).shape[-2:] == (32, 32)
    assert cifar(images).shape == (2, cifar.feature_dim)


def test_every_network_declares_what_it_is() -> None:
    wanted = {
        ("resnet50", "imagenet"): ((4, 4, 8, 16, 32), (64, 256, 512, 1024, 2048), 2048),
        ("resnet18", "cifar"): ((1, 1, 2, 4, 8), (64, 64, 128, 256, 512), 512),
        ("resnet18", "cifar_maxpool"): ((2, 2, 4, 8, 16), (64, 64, 128, 256, 512), 512),
    }
    for (arch, stem), (strides, widths, dimensions) in wanted.items():
        found = describe(BackboneConfig.model_validate({"arch": arch, "stem": stem}))
        assert (found.strides, found.widths, found.feature_dim) == (strides, widths, dimensions)
    for arch in (*RESNETS, *MOBILE):
        config = BackboneConfig(arch=arch)
        found, network = describe(config), build_backbone(config).eval()
        images = torch.zeros(1, 3, 64, 64)
        with torch.no_grad():
            maps = network.feature_maps(images)
            assert network(images).shape == (1, found.feature_dim)
            assert list(network.trunk({found.levels[16]: "a"}).eval()(images)) == ["a"]
        assert {name: tuple(m.shape[1:3]) for name, m in maps.items()} == {
            name: (width, 64 // stride)
            for name, width, stride in zip(found.stages, found.widths, found.strides, strict=True)
        }
        assert found.hierarchical
        parts = [name for part in network.parts for name in part]
        covered = {n for n, _ in network.named_parameters() if n.startswith(tuple(f"{p}." for p in parts))}
        assert covered == {n for n, _ in network.named_parameters()}
