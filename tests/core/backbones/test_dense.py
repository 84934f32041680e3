"""A vision transformer on its patches alone, and its positions at another size, are timm's own networks."""

import pytest
import timm
import torch

from carryover.configs import UserError
from carryover.core.backbones.build import build_backbone, feature_maps
from carryover.core.backbones.dense import at_size, can_drop_tokens, patches_alone
from carryover.core.formats.backbone import BackboneConfig
from tests.core.backbones.makers_networks import randomised

PLAIN = BackboneConfig(arch="timm/vit_tiny_patch16_224")
REGISTERS = BackboneConfig(arch="timm/vit_small_patch14_reg4_dinov2", input_size=56)


def test_without_its_tokens_it_is_timms_network_built_without_them() -> None:
    source = randomised(build_backbone(PLAIN)).eval()
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


@pytest.mark.parametrize("config", [PLAIN, REGISTERS], ids=["class token", "registers"])
def test_positions_interpolated_once_are_those_of_every_image(config: BackboneConfig) -> None:
    source = randomised(build_backbone(config)).eval()
    state, sized = at_size(source.state_dict(), config, 112)
    once = build_backbone(sized).eval()
    once.load_state_dict(state)
    x = torch.randn(1, 3, 112, 112)
    with torch.no_grad():
        for name, found in feature_maps(once, x).items():
            torch.testing.assert_close(found, feature_maps(source, x)[name], atol=1e-5, rtol=1e-5)


def test_a_network_without_positions_stays_as_it_is() -> None:
    config = BackboneConfig(arch="timm/convnext_atto")
    state = build_backbone(config).state_dict()
    found, sized = at_size(state, config, 512)
    assert sized == config and found.keys() == state.keys()


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
