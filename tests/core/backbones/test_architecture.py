"""Depth, width and stem are read from shapes alone, for every network the contract knows."""

from itertools import product
from pathlib import Path

import pytest
import torch

from carryover.configs import UserError
from carryover.core.backbones.architecture import expected_tensors, recognize
from carryover.core.backbones.build import build_backbone
from carryover.core.formats.backbone import MOBILE, RESNETS, BackboneConfig


@pytest.mark.parametrize("arch", RESNETS)
def test_resnets_of_every_depth_width_and_stem(arch: str) -> None:
    for width, stem in product((1, 2, 4), ("imagenet", "cifar")):
        config = BackboneConfig.model_validate({"arch": arch, "width": width, "stem": stem})
        with torch.device("meta"):
            state = build_backbone(config).state_dict()
        assert recognize(state, Path("c.pth"), "") == config
        assert {name: spec.shape for name, spec in expected_tensors(config).items()} == {
            name: tuple(value.shape) for name, value in state.items()
        }


@pytest.mark.parametrize("arch", MOBILE)
def test_mobile_networks(arch: str) -> None:
    config = BackboneConfig.model_validate({"arch": arch})
    with torch.device("meta"):
        state = build_backbone(config).state_dict()
    assert recognize(state, Path("c.pth"), "") == config


def test_one_lost_tensor_does_not_hide_what_the_network_is() -> None:
    config = BackboneConfig(arch="resnet50", width=2)
    with torch.device("meta"):
        whole = build_backbone(config).state_dict()
    for lost in whole:
        if lost != "conv1.weight":
            rest = {name: value for name, value in whole.items() if name != lost}
            assert recognize(rest, Path("c.pth"), "") == config, lost


@pytest.mark.parametrize(
    ("prefix", "says"), [("", "a.pth: the stages are"), ("net.", "under 'net.' the stages are")]
)
def test_a_prefix_is_named_only_where_there_is_one(prefix: str, says: str) -> None:
    state = {n: torch.zeros(s.shape) for n, s in expected_tensors(BackboneConfig(arch="resnet18")).items()}
    state = {name: value for name, value in state.items() if not name.startswith("layer3.")}
    with pytest.raises(UserError, match=says):
        recognize(state, Path("a.pth"), prefix)
