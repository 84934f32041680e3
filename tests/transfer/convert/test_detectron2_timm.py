"""Networks of timm in Detectron2: its own ViT where it can be one, timm's own network where it cannot."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from carryover.configs import UserError, WorkError
from carryover.core.backbones.build import feature_maps
from carryover.core.backbones.inspection import inspect_checkpoint, load_backbone
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.formats.receipt import Receipt
from carryover.transfer.convert import TARGETS, convert, detectron2_vit
from tests.transfer.convert.timm_backbones import write_timm

SMALL = {"input_size": 56}
NETWORKS = {
    "vit_tiny_patch16_224": ({}, 2, "its own ViT"),
    "vit_small_patch14_dinov2": (SMALL, 2, "its own ViT"),
    "deit3_small_patch16_224": ({}, 2, "its own ViT"),
    "vit_small_patch14_reg4_dinov2": (SMALL, 1, "timm's network"),
    "vit_small_patch16_dinov3": ({}, 1, "timm's network"),
    "vit_base_patch16_clip_224": ({}, 1, "timm's network"),
    "convnextv2_atto": ({}, 1, "timm's network"),
    "swin_tiny_patch4_window7_224": ({}, 1, "timm's network"),
    "resnetaa50": ({}, 1, "timm's network"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_whether_detectron2s_own_vit_can_be_it(name: str) -> None:
    config = BackboneConfig.model_validate({"arch": f"timm/{name}", **NETWORKS[name][0]})
    assert (detectron2_vit.own_vit(config) is not None) == (NETWORKS[name][2] == "its own ViT")


@pytest.mark.detectron2
@pytest.mark.parametrize("name", NETWORKS)
def test_every_map_is_the_source_networks(name: str, tmp_path: Path) -> None:
    options, proofs, how = NETWORKS[name]
    source = write_timm(tmp_path / "b.safetensors", name, **options)
    receipt = convert(source, "detectron2", tmp_path / "b.pkl")
    assert len(receipt.proofs) == proofs
    assert receipt.largest_difference is not None and receipt.largest_difference <= 1e-4
    assert all(proof.tensors == receipt.expected == len(receipt.tensors) for proof in receipt.proofs)
    dropped = {fate.source for fate in receipt.fates if fate.fate == "dropped"}
    assert ("cls_token" in dropped) == (how == "its own ViT")


@pytest.mark.detectron2
def test_plain_detectron2_computes_from_the_file_alone_what_the_settings_say(tmp_path: Path) -> None:
    # Nothing of carryover's is in this model: Detectron2's ViT, pyramid and checkpointer.
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import SimpleFeaturePyramid, ViT
    from detectron2.modeling.backbone.fpn import LastLevelMaxPool

    source = write_timm(tmp_path / "b.safetensors", "deit3_small_patch16_224")
    receipt = convert(source, "detectron2", tmp_path / "b.pkl")
    settings = receipt.settings["detectron2.modeling.ViT"]
    assert isinstance(settings, dict)
    vit = ViT(**settings, norm_layer=partial(nn.LayerNorm, eps=1e-6))
    pyramid = SimpleFeaturePyramid(vit, "last_feat", 8, (4.0, 2.0, 1.0, 0.5), LastLevelMaxPool())
    DetectionCheckpointer(pyramid.eval()).load(str(tmp_path / "b.pkl"))
    network = load_backbone(source)[0].eval()
    alone = network.inner
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        tokens = alone.patch_embed(x).flatten(1, 2) + alone.pos_embed
        for block in alone.blocks:
            tokens = block(tokens)
        expected = tokens.view(1, 14, 14, -1).permute(0, 3, 1, 2)
        assert (vit(x)["last_feat"] - expected).abs().max() <= 1e-4
        # With the class token they are others: the receipt says that it was dropped.
        assert (feature_maps(network, x)["blocks.11"] - expected).abs().max() > 1e-2


@pytest.mark.detectron2
def test_layer_scale_that_is_lost_is_caught_by_the_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(state):
        kept = {n: v for n, v in state.items() if not n.endswith("gamma")}
        return kept, {n: n.replace("ls1.gamma", "attn.proj.weight") for n in state if n.endswith("ls1.gamma")}

    monkeypatch.setattr(detectron2_vit, "_folded", lost)
    source = write_timm(tmp_path / "b.safetensors", "vit_small_patch14_dinov2", **SMALL)
    with pytest.raises(WorkError, match="differs from the source's"):
        convert(source, "detectron2", tmp_path / "out" / "b.pkl")
    assert not (tmp_path / "out").exists()


def test_the_receipt_says_what_went_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from carryover.transfer.convert.detectron2 import TARGET

    absent = replace(TARGET, version=lambda: (None, "not here"))
    monkeypatch.setattr(TARGETS, "get", lambda _: absent)
    source = write_timm(tmp_path / "b.safetensors", "vit_small_patch14_dinov2", **SMALL)
    receipt: Receipt = convert(source, "detectron2", tmp_path / "b.pkl")
    became = {fate.source: fate.target or fate.reason for fate in receipt.fates}
    assert became["blocks.3.ls2.gamma"] == "net.blocks.3.mlp.fc2.weight"
    assert became["blocks.3.mlp.fc2.weight"] == "net.blocks.3.mlp.fc2.weight"
    assert "ViTDet" in str(became["cls_token"]) and "last block" in str(became["norm.weight"])
    assert any("LayerScale" in note for note in receipt.notes)
    assert receipt.verified_in == "structure only"
    with pytest.raises(UserError, match="take the file that it was converted from"):
        inspect_checkpoint(tmp_path / "b.pkl")


@pytest.mark.detectron2
@pytest.mark.parametrize("name", ["convnextv2_atto", "vit_small_patch14_reg4_dinov2"])
def test_the_makers_pooled_features_are_proven_in_detectron2_too(name: str, tmp_path: Path) -> None:
    options = SMALL if "dinov2" in name else {}
    source = write_timm(tmp_path / "b.safetensors", name, **options)
    network, about = load_backbone(source)
    side = about.input_size
    images = torch.rand(2, 3, side, side)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (about.pixel_mean, about.pixel_std))
    with torch.no_grad():
        pooled = network.eval()((images - mean) / std)
    np.savez(tmp_path / "r.npz", images=images.numpy(), pooled=pooled.numpy())
    receipt = convert(source, "detectron2", tmp_path / "b.pkl", against=tmp_path / "r.npz")
    assert receipt.proof == "verified against the maker"


@pytest.mark.parametrize("name", ["vit_base_patch32_clip_quickgelu_224", "vit_small_patch32_224"])
def test_patches_that_no_pyramid_takes_are_refused(name: str) -> None:
    config = BackboneConfig.model_validate({"arch": f"timm/{name}"})
    with pytest.raises(UserError, match="take patches of 8, 14 or 16 pixels, not of 32; convert to timm"):
        TARGETS.get("detectron2").require(config)


@pytest.mark.detectron2
def test_a_network_without_its_tokens_is_not_said_to_be_the_makers(tmp_path: Path) -> None:
    source = write_timm(tmp_path / "b.safetensors", "vit_tiny_patch16_224")
    np.savez(tmp_path / "r.npz", images=np.zeros((1, 3, 224, 224), "f"), pooled=np.zeros((1, 192), "f"))
    with pytest.raises(UserError, match=r"--against: detectron2 runs .* verify the file with --to timm"):
        convert(source, "detectron2", tmp_path / "b.pkl", against=tmp_path / "r.npz")
    assert not (tmp_path / "b.pkl").exists()


@pytest.mark.detectron2
def test_a_resnext_under_detectron2s_names_is_read_back(tmp_path: Path) -> None:
    source = write_timm(tmp_path / "b.safetensors", "resnext50_32x4d")
    convert(source, "detectron2", tmp_path / "b.pkl")
    network, about = load_backbone(tmp_path / "b.pkl")
    expected, own = load_backbone(source)
    assert about.backbone == own.backbone
    state = network.state_dict()
    assert state.keys() == expected.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in expected.state_dict().items())
