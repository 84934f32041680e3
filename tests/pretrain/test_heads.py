"""Projectors have the layers that the papers draw, and encoders give float32."""

from itertools import product

import pytest
import torch
from torch import nn

from carryover.configs import load
from carryover.pretrain.config import ProjectorConfig
from carryover.pretrain.heads import Encoder, build_projector


def _kinds(head: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in head]  # type: ignore[attr-defined]


def test_unigrads_projector_has_norm_and_relu_after_the_first_two_of_three_layers() -> None:
    head = build_projector(ProjectorConfig(depth=3, hidden=32, out=16), 8)
    assert _kinds(head) == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert [layer.bias is not None for layer in head if isinstance(layer, nn.Linear)] == [False, False, True]


def test_simos_projector_has_a_norm_after_every_layer() -> None:
    head = build_projector(ProjectorConfig(depth=2, hidden=32, out=16, norm_last=True), 8)
    assert _kinds(head) == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]


def test_simsiams_projector_is_that_of_its_public_code() -> None:
    for name in ("r50_100ep", "in100k_r18", "cifar10_r18", "tinyimagenet_mobilenetv2"):
        config = load("pretrain", f"simsiam_{name}").projector
        assert (config.norm_last, config.affine_last) == (True, False), name
    head = build_projector(ProjectorConfig(depth=3, hidden=24, out=12, norm_last=True, affine_last=False), 24)
    # facebookresearch/simsiam, builder.py: its last layer has a bias that is not trained.
    theirs = nn.Sequential(
        *(nn.Linear(24, 24, bias=False), nn.BatchNorm1d(24), nn.ReLU()),
        *(nn.Linear(24, 24, bias=False), nn.BatchNorm1d(24), nn.ReLU()),
        *(nn.Linear(24, 12), nn.BatchNorm1d(12, affine=False)),
    )
    theirs[6].bias.requires_grad = False
    shapes = [{n: p.shape for n, p in net.named_parameters() if p.requires_grad} for net in (head, theirs)]
    assert shapes[0] == shapes[1] and "7.weight" not in shapes[0]
    theirs.load_state_dict(head.state_dict(), strict=False)
    x = torch.randn(9, 24)
    torch.testing.assert_close(head(x), theirs(x))
    with pytest.raises(ValueError, match="affine_last: false is of the last layer's norm"):
        ProjectorConfig(affine_last=False)


def test_npids_head_is_linear() -> None:
    assert _kinds(build_projector(ProjectorConfig(depth=1, out=16, norm="none"), 8)) == ["Linear"]


def test_every_depth_and_norm_maps_features_to_embeddings() -> None:
    for depth, norm in product([1, 2, 3, 4, 5], ["batch", "layer", "none"]):
        config = ProjectorConfig.model_validate({"depth": depth, "hidden": 24, "out": 12, "norm": norm})
        head = build_projector(config, 8)
        assert head(torch.randn(6, 8)).shape == (6, 12), (depth, norm)
        assert sum(isinstance(layer, nn.Linear) for layer in head) == depth, (depth, norm)


def test_an_encoder_under_bf16_gives_float32() -> None:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, 8))
    images = torch.randn(4, 3, 2, 2)
    head = nn.Linear(8, 5)
    low, full = Encoder(backbone, head, bf16=True)(images), Encoder(backbone, head, bf16=False)(images)
    assert low.dtype == full.dtype == torch.float32
    assert not torch.equal(low, full)
    torch.testing.assert_close(low, full, rtol=0.05, atol=0.05)
