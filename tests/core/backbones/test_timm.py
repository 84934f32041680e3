"""Vision transformers, ConvNeXts, Swins and ResNeXts of every layout are timm's own networks."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from carryover.configs import UserError
from carryover.core.backbones.description import describe, description_of
from carryover.core.backbones.imported import live_backbone
from carryover.core.backbones.importers import take_backbone
from carryover.core.backbones.inspection import inspect_checkpoint
from carryover.core.backbones.stated import Stated
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.formats.canonical import backbone_digest
from carryover.transfer.convert import convert
from tests.core.backbones.layouts import mlp, prefixed
from tests.core.backbones.makers_networks import randomized

State = dict[str, Tensor]


def weights(name: str, **options: Any) -> State:
    with torch.device("meta"):
        model = timm.create_model(name, **options)
    return dict(randomized(model.to_empty(device="cpu")).state_dict())


def by_timm(name: str, state: State, **options: Any) -> nn.Module:
    """The network as timm itself loads these tensors."""
    overlay = {"state_dict": dict(state), "num_classes": 1000}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, **options)
    return model.eval()


def dinov2(registers: int) -> State:
    """The authors' names: a class token among the positions, a mask token, registers of their own."""
    name = f"vit_small_patch14_{'reg4_' if registers else ''}dinov2"
    state = weights(name, img_size=56)
    if registers:
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat([torch.randn(1, 1, 384), state["pos_embed"]], dim=1)
    return state | {"mask_token": torch.randn(1, 384)}


def convnext_of_facebook() -> State:
    """ConvNeXt under the names of its authors' code."""
    found = {}
    for name, value in weights("convnext_atto", num_classes=10).items():
        new = name.replace("stem.", "downsample_layers.0.").replace("conv_dw", "dwconv")
        new = new.replace("mlp.fc", "pwconv").replace(".blocks.", ".")
        for stage in range(1, 4):
            new = new.replace(f"stages.{stage}.downsample.", f"downsample_layers.{stage}.")
        new = new.replace("head.norm.", "norm.").replace("head.fc.", "head.")
        found[new] = value
    return found


def moco_v3() -> Any:
    base = weights("vit_tiny_patch16_224", num_classes=0)
    state = prefixed("module.base_encoder.", base) | mlp("module.base_encoder.head.", 192, 64)
    state |= prefixed("module.momentum_encoder.", {k: v + 1 for k, v in base.items()})
    return {"state_dict": state, "epoch": 300}, base


def dino() -> Any:
    teacher = weights("vit_tiny_patch16_224", num_classes=0)
    file = {
        "student": prefixed("module.backbone.", {k: v + 1 for k, v in teacher.items()}),
        "teacher": prefixed("backbone.", teacher) | mlp("head.mlp.", 192, 64),
        "epoch": 100,
    }
    return file, teacher


def mae() -> Any:
    encoder = weights("vit_tiny_patch16_224", num_classes=0)
    decoder = {"norm1.weight": torch.ones(8), "attn.qkv.weight": torch.ones(24, 8)}
    decoder |= {"attn.qkv.bias": torch.ones(24)}
    beside = {"mask_token": torch.randn(1, 1, 8), "decoder_pos_embed": torch.ones(1, 5, 8)}
    return {"model": encoder | prefixed("decoder_blocks.0.", decoder) | beside}, encoder


def of(name: str) -> Callable[[], Any]:
    return lambda: (weights(name),) * 2


LAYOUTS: dict[str, tuple[str, str, Callable[[], Any], dict[str, Any]]] = {
    "DINO": ("DINO", "vit_tiny_patch16_224", dino, {}),
    "MAE": ("MAE", "vit_tiny_patch16_224", mae, {}),
    "MoCo v3": ("MoCo v3", "vit_tiny_patch16_224", moco_v3, {}),
    "DINOv2": ("DINOv2", "vit_small_patch14_dinov2", lambda: (dinov2(0),) * 2, {"img_size": 56}),
    "registers": ("DINOv2", "vit_small_patch14_reg4_dinov2", lambda: (dinov2(4),) * 2, {"img_size": 56}),
    "ConvNeXt": ("ConvNeXt", "convnext_atto", lambda: (convnext_of_facebook(),) * 2, {}),
    "ConvNeXt V2": ("timm", "convnextv2_atto", of("convnextv2_atto"), {}),
    "Swin": (
        "timm",
        "swin_tiny_patch4_window7_224",
        of("swin_tiny_patch4_window7_224"),
        {},
    ),
    "ResNeXt": (
        "torchvision / timm / VICReg release",
        "resnext50_32x4d",
        of("resnext50_32x4d"),
        {},
    ),
}


def test_every_layout_is_recognized_and_gives_the_features_of_timms_own_network(tmp_path: Path) -> None:
    path = tmp_path / "theirs.pth"
    for label, (maker, name, make, options) in LAYOUTS.items():
        file, encoder = make()
        torch.save(file, path)
        taken = take_backbone(path)
        assert (taken.metadata.maker, taken.metadata.backbone.arch) == (maker, f"timm/{name}"), label
        side = options.get("img_size", 224)
        images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
        reference, ours = by_timm(name, encoder, **options), live_backbone(taken).eval()
        with torch.no_grad():
            torch.testing.assert_close(ours(images), reference(images), atol=1e-5, rtol=1e-5)
            maps = reference.forward_intermediates(images, intermediates_only=True)
            for found, expected in zip(ours.feature_maps(images).values(), maps, strict=True):
                torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        # Every tensor is accounted for, and what is carried is all that the network has.
        carried = {part for f in taken.fates if f.target for part in f.target.split(" + ")}
        assert carried == set(reference.state_dict()), label
        named = take_backbone(path, None, Stated(architecture=f"timm/{name}"))
        assert backbone_digest(named.state, named.metadata) == backbone_digest(taken.state, taken.metadata)
        found = description_of(ours)
        assert found == describe(taken.metadata.backbone)
        assert found.feature_dim == reference(images[:1]).shape[1]


def test_tokens_are_those_of_dinos_linear_evaluation() -> None:
    config = BackboneConfig(arch="timm/vit_tiny_patch16_224", input_size=32)
    from carryover.core.backbones.build import build_backbone

    network = randomized(build_backbone(config))
    images = torch.randn(2, 3, 32, 32)
    outputs: list[Tensor] = []
    hooks = [b.register_forward_hook(lambda _m, _i, out: outputs.append(out)) for b in network.inner.blocks]
    with torch.no_grad():
        network(images)
        for hook in hooks:
            hook.remove()
        # get_intermediate_layers of DINO: the last four blocks, each through the last norm.
        last = [network.inner.norm(out) for out in outputs[-4:]]
        classes, mean = torch.cat([x[:, 0] for x in last], dim=1), last[-1][:, 1:].mean(dim=1)
        found = network.vectors(images, network.vector_names)
    expected = {
        "cls": last[-1][:, 0],
        "mean": mean,
        "cls+mean": torch.cat([last[-1][:, 0], mean], dim=1),
        "cls@4": classes,
        "cls@4+mean": torch.cat([classes, mean], dim=1),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    with pytest.raises(UserError, match="feature 'cls#4'"):
        network.vectors(images, ["cls#4"])


def test_conversions_prove_every_stage_in_the_library_itself(tmp_path: Path) -> None:
    # The stages of each network, and its pooled features where the library has the network itself.
    wanted = {
        "vit_tiny_patch16_224": {"canonical": 13, "timm": 13, "torchvision": 13},
        "convnext_atto": {"canonical": 5, "timm": 5, "torchvision": 5},
        "resnext50_32x4d": {"canonical": 6, "timm": 6, "torchvision": 5},
    }
    path = tmp_path / "theirs.pth"
    for name, targets in wanted.items():
        torch.save(weights(name), path)
        for to, stages in targets.items():
            out = tmp_path / f"{name}{'.pth' if to == 'torchvision' else '.safetensors'}"
            receipt = convert(path, to, out)
            assert receipt.largest_difference is not None
            assert receipt.largest_difference <= 1e-4
            assert len(receipt.proofs[0].stages) == stages, (name, to)
            assert receipt.metadata.backbone.arch == f"timm/{name}"
            assert inspect_checkpoint(out).metadata.backbone == receipt.metadata.backbone


def test_what_is_not_the_named_model_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "theirs.pth"
    scaled = weights("vit_tiny_patch16_224", init_values=0.1)
    cases: dict[str, tuple[State, str, str]] = {
        "layer scale": (scaled, "vit_tiny_patch16_224", r"with 'blocks\.0\.ls1\.gamma'.*does not have"),
        "cut": (
            {k: v for k, v in weights("vit_tiny_patch16_224").items() if "blocks.7." not in k},
            "vit_tiny_patch16_224",
            r"without 'blocks\.7\.",
        ),
        "patches": (weights("vit_tiny_patch16_224"), "vit_small_patch14_dinov2", "resampled|shape|without"),
        "no such model": (scaled, "vit_tinny_patch16_224", "did you mean 'timm/vit_tiny_patch16_224'"),
    }
    for state, name, message in cases.values():
        torch.save(state, path)
        with pytest.raises(UserError, match=message):
            take_backbone(path, None, Stated(architecture=f"timm/{name}"))
    torch.save(scaled, path)
    with pytest.raises(UserError, match=r"a vision transformer .* --architecture timm/NAME"):
        take_backbone(path)
    torch.save({"a": prefixed("teacher.backbone.", scaled), "b": prefixed("student.backbone.", scaled)}, path)
    with pytest.raises(UserError, match="--encoder student or --encoder teacher"):
        take_backbone(path, None, Stated(architecture="timm/vit_tiny_patch16_224"))


def test_without_timm_a_transformer_is_answered_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32)
    torch.save(network.state_dict(), path := tmp_path / "theirs.pth")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        UserError, match=r"theirs.pth: a vision transformer; .*pip install 'carryover-eval\[timm\]'"
    ):
        take_backbone(path)
