"""A vision transformer on its patches alone is timm's own network."""

import pytest
import timm
import torch

from carryover.configs import UserError
from carryover.core.backbones.build import build_backbone, feature_maps
from carryover.core.backbones.dense import can_drop_tokens, patches_alone
from carryover.core.formats.backbone import BackboneConfig
from tests.core.backbones.makers_networks import randomized

PLAIN = BackboneConfig(arch="timm/vit_tiny_patch16_224")
REGISTERS = BackboneConfig(arch="timm/vit_small_patch14_reg4_dinov2", input_size=56)


def test_without_its_tokens_it_is_timms_network_built_without_them() -> None:
    source = randomized(build_backbone(PLAIN)).eval()
    state, config, dropped = patches_alone(source.state_dict(), PLAIN)
    assert list(dropped) == ["cls_token"]
    ours = build_backbone(config).eval()
    ours.load_state_dict(state)
    theirs = timm.create_model(
        "vit_tiny_patch16_224", class_token=False, global_pool="avg", fc_norm=False, num_classes=0
    ).eval()
    theirs.load_state_dict(state)
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        last = feature_maps(ours, x)["blocks.11"]
        expected = theirs.forward_intermediates(x, intermediates_only=True)[-1]
        kept = feature_maps(source, x)["blocks.11"]
    assert torch.equal(last, expected)
    # The class token took part in the attention of the whole network.
    assert not torch.allclose(last, kept, atol=1e-3)


def test_only_a_class_token_alone_is_dropped_unasked() -> None:
    assert can_drop_tokens(PLAIN)
    assert not can_drop_tokens(REGISTERS)
    assert not can_drop_tokens(BackboneConfig(arch="timm/vit_small_patch16_dinov3"))
    assert not can_drop_tokens(BackboneConfig(arch="timm/convnext_atto"))
    state = build_backbone(REGISTERS).state_dict()
    assert set(patches_alone(state, REGISTERS)[2]) == {"cls_token", "reg_token"}
    rotary = BackboneConfig(arch="timm/vit_small_patch16_dinov3")
    with pytest.raises(UserError, match="cannot build it without its class token"):
        patches_alone({}, rotary)
