"""A forward pass of a vision transformer: fused attention in every block, positions interpolated once."""

from typing import Any

import pytest
import torch
from torch import Tensor

timm = pytest.importorskip("timm", reason="timm is not installed")

from carryover.core.backbones.build import build_backbone, feature_maps  # noqa: E402
from carryover.core.formats.backbone import BackboneConfig  # noqa: E402
from carryover.transfer.tasks.frozen.depths import pooled  # noqa: E402


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_small_patch14_dinov2", "vit_small_patch16_dinov3"]
)
def test_attention_is_torchs_fused_one_in_every_block(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_backbone(BackboneConfig(arch=f"timm/{name}")).eval()
    calls = []
    real = torch.nn.functional.scaled_dot_product_attention

    def counted(*given: Any, **options: Any) -> Tensor:
        calls.append(given[0].shape)
        return real(*given, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    side = 2 * network.patch_size
    with torch.no_grad():
        network(torch.randn(1, 3, side, side))
    assert len(calls) == len(network.stages) == 12


@pytest.mark.parametrize(("side", "times"), [(224, 0), (96, 1)])
def test_positions_are_interpolated_once_a_pass_and_not_at_their_own_size(
    side: int, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build_backbone(BackboneConfig(arch="timm/vit_tiny_patch16_224")).eval()
    sizes = []
    real = torch.nn.functional.interpolate

    def counted(x: Tensor, size: Any, **options: Any) -> Tensor:
        sizes.append(tuple(size))
        return real(x, size=size, **options)

    monkeypatch.setattr(timm.layers.pos_embed.F, "interpolate", counted)
    x = torch.randn(1, 3, side, side)
    passes = (
        lambda: network(x),
        lambda: feature_maps(network, x),
        lambda: pooled(network, x, ("cls", "cls@4", "cls@4+mean")),
    )
    for run in passes:
        sizes.clear()
        with torch.no_grad():
            run()
        assert sizes == [(side // 16, side // 16)] * times
