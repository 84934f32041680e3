"""Every maker's file is recognized from its keys, and its backbone carried whole and exactly."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from carryover.configs import UserError
from carryover.core.backbones.importers import import_checkpoint
from carryover.core.backbones.inspection import inspect_checkpoint, load_backbone
from tests.core.backbones.layouts import (
    LAYOUTS,
    Layout,
    backbone_of,
    children,
    moco_v1,
    network,
    prefixed,
    unigrad,
)
from tests.core.backbones.makers_networks import randomized


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A directory whose checkpoints do not outlive the test."""
    yield tmp_path
    for file in tmp_path.glob("*"):
        file.unlink()


def tensors_in(content: object) -> int:
    """Count the tensors and arrays of a nested checkpoint."""
    if isinstance(content, dict):
        return sum(tensors_in(value) for value in content.values())
    if isinstance(content, list | tuple):
        return sum(tensors_in(value) for value in content)
    return isinstance(content, torch.Tensor | np.ndarray)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.label)
def test_maker_is_recognized_the_backbone_carried_whole_and_every_key_accounted_for(
    layout: Layout, folder: Path
) -> None:
    content, backbones = layout.make()
    torch.save(content, folder / "checkpoint")
    seen = inspect_checkpoint(folder / "checkpoint")
    assert seen.maker == layout.maker
    assert seen.encoder == layout.default
    assert len(seen.alternatives) >= len(backbones) - 1
    assert seen.coverage == 1.0
    assert seen.metadata.backbone.arch in ("resnet18", "resnet50")
    assert seen.metadata.backbone.stem == "imagenet"
    for role, expected in backbones.items():
        state, metadata = import_checkpoint(folder / "checkpoint", encoder=role)
        assert metadata.encoder == role
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected), role
    assert len({fate.source for fate in seen.fates}) == len(seen.fates) == tensors_in(content)
    carried = [fate.target for fate in seen.fates if fate.fate == "carried"]
    assert set(carried) == backbones[layout.default].keys()
    assert len(carried) == len(set(carried))
    assert all(fate.reason for fate in seen.fates if fate.fate == "dropped")


def test_momentum_encoder_is_named_where_it_was_not_taken(folder: Path) -> None:
    torch.save(moco_v1()[0], folder / "moco.pth")
    seen = inspect_checkpoint(folder / "moco.pth")
    reasons = {fate.source: fate.reason for fate in seen.fates}
    assert reasons["state_dict.module.encoder_k.conv1.weight"] == (
        "the momentum encoder (take it with --encoder momentum)"
    )
    assert "classifier" in (reasons["state_dict.module.encoder_q.fc.weight"] or "")
    assert reasons["optimizer.state.0.momentum_buffer"] == "training state"
    assert "state_dict.module.encoder_k." in seen.alternatives[0]
    assert "momentum" in seen.report()


def test_student_and_teacher_are_other_names_for_online_and_momentum(folder: Path) -> None:
    content, backbones = unigrad()
    torch.save(content, folder / "c.pth")
    state, _ = import_checkpoint(folder / "c.pth", encoder="teacher")
    assert torch.equal(state["conv1.weight"], backbones["momentum"]["conv1.weight"])


def test_encoder_that_is_not_there_is_answered_with_what_is(folder: Path) -> None:
    torch.save(network(1).state_dict(), folder / "c.pth")
    with pytest.raises(UserError, match=r"no 'momentum' encoder in this file; it holds online at ''"):
        import_checkpoint(folder / "c.pth", encoder="momentum")


def test_two_different_backbones_in_one_role_are_refused_by_name_and_one_can_be_chosen(folder: Path) -> None:
    first, second = backbone_of(network(1)), backbone_of(network(2))
    torch.save(prefixed("a.", first) | prefixed("b.", second), folder / "c.pth")
    with pytest.raises(UserError, match=r"online at 'a\.', online at 'b\.'; choose with --encoder PREFIX"):
        import_checkpoint(folder / "c.pth")
    state, _ = import_checkpoint(folder / "c.pth", encoder="b.")
    assert torch.equal(state["conv1.weight"], second["conv1.weight"])


@pytest.mark.parametrize("prefix", ["module.module.", "_orig_mod.module.", "module.encoder."])
def test_wrappers_words_are_seen_through(prefix: str, folder: Path) -> None:
    backbone = backbone_of(network(1))
    torch.save({"state_dict": prefixed(prefix, backbone)}, folder / "c.pth")
    state, _ = import_checkpoint(folder / "c.pth")
    assert all(torch.equal(state[name], backbone[name]) for name in backbone)


def test_half_precision_is_carried_as_float32_and_said(folder: Path) -> None:
    half = {k: v.half() if v.is_floating_point() else v for k, v in backbone_of(network(1)).items()}
    torch.save(half, folder / "c.pth")
    state, _ = import_checkpoint(folder / "c.pth")
    assert torch.equal(state["conv1.weight"], half["conv1.weight"].float())
    assert "stored as float16; carried as float32" in inspect_checkpoint(folder / "c.pth").notes


def test_counters_that_old_files_lack_are_zero_and_said(folder: Path) -> None:
    backbone = backbone_of(network(1))
    old = {k: v for k, v in backbone.items() if not k.endswith("num_batches_tracked")}
    torch.save(old, folder / "c.pth")
    seen = inspect_checkpoint(folder / "c.pth")
    assert seen.coverage == 1.0
    assert any("20 BatchNorm counters" in note for note in seen.notes)
    module, _ = load_backbone(folder / "c.pth")
    assert module.state_dict()["bn1.num_batches_tracked"] == 0


def test_counters_that_no_layer_has_are_dropped_by_name(folder: Path) -> None:
    extra = backbone_of(network(1)) | {"layer1.0.conv1.num_batches_tracked": torch.tensor(3)}
    torch.save(extra, folder / "c.pth")
    fates = {fate.source: fate for fate in inspect_checkpoint(folder / "c.pth").fates}
    assert "counter" in (fates["layer1.0.conv1.num_batches_tracked"].reason or "")
    assert fates["bn1.num_batches_tracked"].fate == "carried"


def test_sequential_without_activation_or_pooling_modules_is_understood(folder: Path) -> None:
    # lightly's CIFAR ResNet: conv1, bn1, then the four stages at once, with `shortcut` for `downsample`.
    from lightly.models import ResNetGenerator

    model = randomized(ResNetGenerator("resnet-18"))
    torch.save(
        {"state_dict": prefixed("backbone.", nn.Sequential(*list(model.children())[:-1]).state_dict())},
        folder / "c",
    )
    state, metadata = import_checkpoint(folder / "c")
    images = torch.randn(2, 3, 32, 32)
    whole = nn.Sequential(*list(model.children())[:-1], nn.Flatten()).eval()
    with torch.no_grad():
        ours = load_backbone(folder / "c")[0].eval()(images)
        torch.testing.assert_close(ours, whole(images).view(2, 512, 4, 4).mean(dim=(2, 3)))
    assert metadata.backbone.stem == "cifar_no_relu"
    theirs = model.state_dict()
    assert torch.equal(state["layer2.0.downsample.0.weight"], theirs["layer2.0.shortcut.0.weight"])
    assert torch.equal(state["layer4.1.bn2.running_var"], theirs["layer4.1.bn2.running_var"])


def test_widened_and_shallow_networks_are_recognized_from_shapes(folder: Path) -> None:
    from carryover.core.backbones.build import build_backbone
    from carryover.core.formats.backbone import BackboneConfig

    for config in (
        BackboneConfig(arch="resnet34", stem="cifar"),
        BackboneConfig(arch="resnet18", width=2),
        BackboneConfig(arch="mobilenet_v2"),
    ):
        network = randomized(build_backbone(config))
        torch.save({"model": prefixed("module.backbone.", network.state_dict())}, folder / "c")
        assert import_checkpoint(folder / "c")[1].backbone == config


def test_children_of_a_resnet_keep_their_names_apart() -> None:
    names = children(network(1)).state_dict()
    assert "4.0.conv1.weight" in names
    assert "layer1.0.conv1.weight" not in names
