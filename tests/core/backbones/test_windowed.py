"""Windows and relative positions of a plain transformer: sums written out, and Detectron2's own ViT."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from carryover.configs import UserError, WorkError
from carryover.core.backbones.build import build_backbone, feature_maps
from carryover.core.backbones.relative_positions import begun, without_tables
from carryover.core.backbones.windowed import WindowAttention, WindowedBlock
from carryover.core.formats.backbone import AttentionConfig, BackboneConfig
from tests.core.backbones.makers_networks import randomized

PLAIN = BackboneConfig(arch="timm/vit_tiny_patch16_224", tokens=False)
WINDOWS = AttentionConfig(window=4, global_blocks=(2, 5, 8, 11), relative_positions=True, grid=14)


def attending(attention: AttentionConfig | None, plain: BackboneConfig = PLAIN) -> BackboneConfig:
    return plain.model_copy(update={"attention": attention})


def pair(attention: AttentionConfig, plain: BackboneConfig = PLAIN) -> tuple[nn.Module, nn.Module]:
    """A network as pretrained, and the same weights with another attention, tables at zero."""
    network = randomized(build_backbone(plain)).eval()
    windowed = build_backbone(attending(attention, plain)).eval()
    windowed.load_state_dict(begun(windowed, network.state_dict()), strict=True)
    return network, windowed


def draw_tables(network: nn.Module, std: float = 0.5) -> None:
    generator = torch.Generator().manual_seed(5)
    for name, parameter in network.named_parameters():
        if "rel_pos" in name:
            assert not parameter.any()
            parameter.data = torch.randn(parameter.shape, generator=generator) * std


def written_out(attention: WindowAttention, x: np.ndarray, window: int) -> np.ndarray:
    """Attention of an image (H, W, C), each patch to those of its window, padding included."""
    rows, columns, width = x.shape
    side_y, side_x = (window, window) if window else (rows, columns)
    weights = {n: p.detach().double().numpy() for n, p in attention.state_dict().items()}
    padded = np.zeros((math.ceil(rows / side_y) * side_y, math.ceil(columns / side_x) * side_x, width))
    padded[:rows, :columns] = x
    qkv = padded @ weights["qkv.weight"].T + weights["qkv.bias"]
    heads = attention.num_heads
    q, k, v = np.moveaxis(qkv.reshape(*padded.shape[:2], 3, heads, width // heads), 2, 0)
    out = np.zeros_like(x)
    for y, x_ in np.ndindex(rows, columns):
        top, left = y // side_y * side_y, x_ // side_x * side_x
        for head in range(heads):
            query = q[y, x_, head]
            score = np.empty((side_y, side_x))
            for r, c in np.ndindex(side_y, side_x):
                score[r, c] = query @ k[top + r, left + c, head] / math.sqrt(len(query))
                if attention.use_rel_pos:
                    score[r, c] += query @ weights["rel_pos_h"][y - top - r + side_y - 1]
                    score[r, c] += query @ weights["rel_pos_w"][x_ - left - c + side_x - 1]
            score = np.exp(score - score.max())
            part = slice(head * len(query), (head + 1) * len(query))
            seen = v[top : top + side_y, left : left + side_x, head]
            out[y, x_, part] = np.einsum("rc,rcd->d", score / score.sum(), seen)
    return out @ weights["proj.weight"].T + weights["proj.bias"]


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("window", [0, 3])
def test_a_block_attends_as_the_sums_say(window: int, relative: bool) -> None:
    # 5 x 7 patches: windows of 3 are padded below and to the right.
    about = AttentionConfig(window=window, relative_positions=relative, grid=5)
    torch.manual_seed(1)
    own = build_backbone(PLAIN).inner.blocks[0]
    block = WindowedBlock(own, about, 0).eval()
    size = (5, 5) if not window else (5, 7)
    nn.init.normal_(block.attn.qkv.weight, std=0.2)
    nn.init.normal_(block.attn.qkv.bias)
    if relative:
        nn.init.normal_(block.attn.rel_pos_h, std=0.5)
        nn.init.normal_(block.attn.rel_pos_w, std=0.5)
    x = torch.randn(1, *size, own.norm1.normalized_shape[0])
    with torch.no_grad():
        normed = block.norm1(x)[0].double().numpy()
        attended = x + torch.from_numpy(written_out(block.attn, normed, window)).float()
        expected = attended + block.mlp(block.norm2(attended))
        assert (block(x) - expected).abs().max() <= 1e-5 < (x - expected).abs().max()


def test_without_windows_and_with_tables_at_zero_it_is_the_pretrained_network() -> None:
    network, windowed = pair(WINDOWS.model_copy(update={"window": 0}))
    images = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        found, expected = feature_maps(windowed, images), feature_maps(network, images)
        assert found.keys() == expected.keys()
        assert max((found[name] - expected[name]).abs().max() for name in found) <= 1e-5
        assert (windowed(images) - network(images)).abs().max() <= 1e-5


def test_windows_are_seen_from_the_first_block_and_tables_from_the_first_block() -> None:
    network, windowed = pair(WINDOWS)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        before = feature_maps(windowed, images)
        assert (before["blocks.0"] - feature_maps(network, images)["blocks.0"]).abs().max() > 1e-3
        draw_tables(windowed)
        assert (feature_maps(windowed, images)["blocks.0"] - before["blocks.0"]).abs().max() > 1e-3


def test_a_windowed_block_passes_nothing_between_windows() -> None:
    windowed = pair(WINDOWS)[1]
    x = torch.randn(1, 8, 8, 192)
    other = x.clone()
    other[:, 4:, 4:] = torch.randn(1, 4, 4, 192)
    with torch.no_grad():
        for index, block in enumerate(windowed.inner.blocks):
            seen = (block(x) - block(other))[:, :4, :4].abs().max()
            assert (seen > 1e-5) == (index in WINDOWS.global_blocks)


def test_stochastic_depth_leaves_out_images_not_windows() -> None:
    config = attending(WINDOWS, PLAIN.model_copy(update={"drop_path": 0.5}))
    block = build_backbone(config).inner.blocks[-2].train()
    nn.init.zeros_(block.mlp.fc2.weight), nn.init.zeros_(block.mlp.fc2.bias)
    torch.manual_seed(0)
    x = torch.randn(64, 8, 8, 192)
    with torch.no_grad():
        changed = (block(x) != x).flatten(3).any(dim=3).flatten(1)
    assert (changed.all(dim=1) | ~changed.any(dim=1)).all()
    assert 10 < int(changed.all(dim=1).sum()) < 54


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit_small_patch14_reg4_dinov2", "registers attend too"),
        ("vit_small_patch16_dinov3", "registers attend too"),
        ("vit_base_patch16_rope_224", "registers attend too"),
    ],
)
def test_other_networks_are_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        build_backbone(attending(WINDOWS, BackboneConfig(arch=f"timm/{name}")))


def test_tables_that_are_not_zero_are_no_tensors_of_a_file() -> None:
    windowed = pair(WINDOWS)[1]
    kept = without_tables(windowed.state_dict(), "here")
    assert kept.keys() == build_backbone(PLAIN).state_dict().keys()
    draw_tables(windowed)
    with pytest.raises(WorkError, match=r"blocks\.0\.attn\.rel_pos_h' of relative positions does not"):
        without_tables(windowed.state_dict(), "here")


@pytest.mark.detectron2
@pytest.mark.parametrize("window", [4, 14, 0])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_dinov2"])
def test_detectron2s_own_vit_of_the_settings_gives_the_same_maps(name: str, window: int) -> None:
    vit_module = pytest.importorskip(
        "detectron2.modeling.backbone.vit", reason="Detectron2 is not importable"
    )
    from carryover.transfer.convert.detectron2_vit import _folded, vit_settings

    plain = BackboneConfig(arch=f"timm/{name}", tokens=False, input_size=224)
    # Tables of 20 patches, interpolated to the 16 of the images.
    about = WINDOWS.model_copy(update={"window": window, "grid": 20})
    windowed = pair(about, plain)[1]
    draw_tables(windowed)
    settings = vit_settings(attending(about, plain))
    vit = vit_module.ViT(**settings, norm_layer=partial(nn.LayerNorm, eps=1e-6)).eval()
    tensors = {n: v for n, v in _folded(windowed.state_dict())[0].items() if not n.startswith("norm.")}
    vit.load_state_dict(tensors, strict=True)
    assert [b.window_size for b in vit.blocks] == [0 if i in (2, 5, 8, 11) else window for i in range(12)]
    # As many patches as there are positions: Detectron2 interpolates positions in another way.
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        found, expected = feature_maps(windowed, images)["blocks.11"], vit(images)["last_feat"]
    assert (found - expected).abs().max() <= 1e-4
