"""Files of I-JEPA: context encoder, predictor and target encoder; networks without a class token."""

from pathlib import Path

import pytest
import timm
import torch

from carryover.core.backbones.inspection import inspect_checkpoint, load_backbone
from tests.core.backbones.layouts import prefixed
from tests.core.backbones.makers_networks import randomized


def without_token(name: str, seed: int) -> torch.nn.Module:
    """Their VisionTransformer: no class token, the last norm before the mean."""
    options = {"class_token": False, "global_pool": "avg", "fc_norm": False, "num_classes": 0}
    return randomized(timm.create_model(name, img_size=96, **options), seed)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224"])
def test_the_target_encoder_is_taken_with_its_own_heads(name: str, tmp_path: Path) -> None:
    context, target = without_token(name, 1), without_token(name, 2)
    file = {
        "encoder": prefixed("module.", context.state_dict()),
        "predictor": {
            "module.predictor_blocks.0.norm1.weight": torch.ones(8),
            "module.predictor_pos_embed": torch.randn(1, 36, 8),
        },
        "target_encoder": prefixed("module.", target.state_dict()),
        "opt": {"state": {}, "param_groups": []},
        "scaler": None,
        "epoch": 300,
        "loss": 0.1,
    }
    torch.save(file, tmp_path / "c.pth.tar")
    found = inspect_checkpoint(tmp_path / "c.pth.tar")
    assert (found.maker, found.encoder, found.metadata.epochs) == ("I-JEPA", "momentum", 300)
    assert found.coverage == 1 and "heads" not in found.metadata.assumed
    x = torch.randn(2, 3, 96, 96)
    for encoder, theirs in ((None, target), ("momentum", target), ("online", context)):
        network, _ = load_backbone(tmp_path / "c.pth.tar", encoder)
        with torch.no_grad():
            torch.testing.assert_close(network.eval()(x), theirs(x), rtol=0, atol=1e-4)


def test_a_transformer_without_a_class_token_is_the_plain_one_without_it(tmp_path: Path) -> None:
    torch.save(without_token("vit_small_patch16_224", 0).state_dict(), tmp_path / "c.pth")
    about = inspect_checkpoint(tmp_path / "c.pth").metadata.backbone
    assert (about.arch, about.tokens, about.input_size) == ("timm/vit_small_patch16_224", False, 96)
