"""Files that cannot be carried whole are refused in seconds, by the name of what is wrong with them."""

import argparse
import os
import pickle
import sys
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from carryover.configs import UserError
from carryover.core.backbones.importers import import_checkpoint
from carryover.core.backbones.inspection import inspect_checkpoint, load_backbone
from carryover.core.backbones.reading import read_contents
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.formats.canonical import CanonicalMetadata, save_canonical
from tests.core.backbones.layouts import State, backbone_of, network, prefixed

ABOUT = CanonicalMetadata(
    backbone=BackboneConfig(arch="resnet18"),
    input_size=64,
    method="unigrad",
    epochs=1,
    dataset="shapes",
    seed=0,
    recipe="unigrad_demo",
    recipe_hash=None,
    git_revision="none",
    library_versions={},
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A directory whose checkpoints do not outlive the test."""
    yield tmp_path
    for file in tmp_path.glob("*"):
        if file.is_file():
            file.unlink()


@pytest.fixture
def backbone() -> State:
    """A whole ResNet-18."""
    return backbone_of(network(1))


def without(name: str) -> Callable[[State], State]:
    return lambda state: {k: v for k, v in state.items() if k != name}


def renamed(name: str, new: str) -> Callable[[State], State]:
    return lambda state: {new if k == name else k: v for k, v in state.items()}


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[State], State]:
    return lambda state: {k: change(v) if k == name else v for k, v in state.items()}


def not_a_number(value: Tensor) -> Tensor:
    value = value.clone()
    value.view(-1)[3] = float("nan")
    return value


DEFECTS = {
    "missing weight": (without("layer3.1.conv2.weight"), "'layer3.1.conv2.weight'"),
    "missing statistics": (without("layer2.0.bn1.running_var"), "'layer2.0.bn1.running_var'"),
    "missing stem": (without("conv1.weight"), "conv1.weight"),
    "renamed": (
        renamed("layer4.0.bn2.bias", "layer4.0.norm2.bias"),
        "'layer4.0.bn2.bias'.*'layer4.0.norm2.bias'",
    ),
    "transposed": (
        changed("layer2.0.conv1.weight", lambda v: v.transpose(0, 1).contiguous()),
        r"'layer2.0.conv1.weight' has shape \(64, 128, 3, 3\), expected \(128, 64, 3, 3\)",
    ),
    "cut": (changed("layer4.1.bn2.weight", lambda v: v[:-1]), r"'layer4.1.bn2.weight' has shape \(511,\)"),
    "not a number": (changed("layer1.0.conv1.weight", not_a_number), "'layer1.0.conv1.weight' has values"),
    "whole stage": (
        lambda state: {k: v for k, v in state.items() if not k.startswith("layer4.")},
        "layer1|layer4",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("kind", ["canonical", "moco"])
def test_defective_tensor_is_named_within_seconds(
    defect: str, kind: str, backbone: State, folder: Path
) -> None:
    damage, expected = DEFECTS[defect]
    path = folder / "checkpoint"
    if kind == "canonical":
        save_canonical(path, damage(backbone), ABOUT)
    else:
        torch.save({"state_dict": prefixed("module.encoder_q.", damage(backbone))}, path)
    began = time.monotonic()
    with pytest.raises(UserError, match=expected) as refused:
        load_backbone(path)
    assert str(path) in str(refused.value)
    assert time.monotonic() - began < 10


def test_canonical_tensor_of_another_type_is_named(backbone: State, folder: Path) -> None:
    save_canonical(folder / "b.safetensors", changed("bn1.weight", Tensor.double)(backbone), ABOUT)
    with pytest.raises(UserError, match=r"'bn1.weight' has dtype torch.float64, expected torch.float32"):
        load_backbone(folder / "b.safetensors")


def test_canonical_file_that_says_another_architecture_is_refused(backbone: State, folder: Path) -> None:
    about = ABOUT.model_copy(update={"backbone": BackboneConfig(arch="resnet34")})
    save_canonical(folder / "b.safetensors", backbone, about)
    with pytest.raises(UserError, match=r"not a whole resnet34.*'layer1.2.conv1.weight'"):
        load_backbone(folder / "b.safetensors")


def test_canonical_file_loads_back_exactly(backbone: State, folder: Path) -> None:
    save_canonical(folder / "b.safetensors", backbone, ABOUT)
    module, about = load_backbone(folder / "b.safetensors")
    assert about == ABOUT
    assert all(torch.equal(value, backbone[name]) for name, value in module.state_dict().items())
    seen = inspect_checkpoint(folder / "b.safetensors")
    assert (seen.layout, seen.coverage, seen.maker) == ("canonical", 1.0, "carryover")
    with pytest.raises(UserError, match="no 'momentum' encoder"):
        load_backbone(folder / "b.safetensors", encoder="momentum")


def deep_stem(state: State) -> State:
    deep = {k: v for k, v in state.items() if not k.startswith(("conv1.", "bn1."))}
    return deep | {"stem.0.weight": torch.zeros(32, 3, 3, 3), "stem.1.weight": torch.ones(32)}


def timm_deep_stem(state: State) -> State:
    return without("conv1.weight")(state) | {"conv1.0.weight": torch.zeros(32, 3, 3, 3)}


def average_down(state: State) -> State:
    return {
        k.replace("downsample.0.", "downsample.1."): v for k, v in state.items() if "downsample.1." not in k
    }


def group_norm(state: State) -> State:
    return {k.replace("bn", "gn"): v for k, v in state.items() if "running" not in k and "num_" not in k}


def folded(state: State) -> State:
    return {k: v for k, v in state.items() if "running" not in k and "num_" not in k}


def grouped(state: State) -> State:
    return state | {"layer1.0.conv2.weight": torch.zeros(128, 4, 3, 3)}


def wide(state: State) -> State:
    return state | {"layer1.0.conv1.weight": torch.zeros(128, 64, 1, 1)}


def squeezed(state: State) -> State:
    return state | {"layer1.0.se.fc1.weight": torch.zeros(4, 64, 1, 1)}


FOREIGN = {
    "ResNetV1c": (18, deep_stem, r"'stem\.0\.weight' belongs to a deep stem"),
    "ResNet-C of timm": (18, timm_deep_stem, r"'conv1\.0\.weight' belongs to a deep stem"),
    "ResNet-D": (
        18,
        average_down,
        r"downsample\.1\.weight' is a convolution after average pooling \(ResNet-D\)",
    ),
    "GroupNorm": (18, group_norm, r"'gn1\.weight' belongs to GroupNorm"),
    "folded norm": (18, folded, r"no '\.\.\.running_mean' at all"),
    "ResNeXt": (50, grouped, r"grouped convolution \(32 groups\): a ResNeXt"),
    "Wide ResNet": (50, wide, r"'layer1\.0\.conv1\.weight' has 128 inner channels.*a Wide ResNet"),
    "SE-ResNet": (18, squeezed, r"'layer1\.0\.se\.fc1\.weight'"),
    "gray images": (18, changed("conv1.weight", lambda v: v[:, :1]), r"takes 1 channels, expected 3"),
    "5x5 stem": (18, changed("conv1.weight", lambda v: v[..., 1:6, 1:6]), r"'conv1\.weight' is 5x5"),
    "odd width": (18, changed("conv1.weight", lambda v: v[:48]), r"'conv1\.weight' has 48 output channels"),
    "unknown depth": (
        18,
        lambda s: s | {"layer3.2.conv1.weight": torch.zeros(1)},
        r"\(2, 2, 3, 2\) basic blocks",
    ),
}


@pytest.mark.parametrize("variant", FOREIGN)
def test_network_that_is_no_plain_resnet_is_refused_by_name(variant: str, folder: Path) -> None:
    depth, change, expected = FOREIGN[variant]
    torch.save(change(backbone_of(network(1, depth=depth))), folder / "c.pth")
    with pytest.raises(UserError, match=expected):
        inspect_checkpoint(folder / "c.pth")


def test_vision_transformer_and_unknown_networks_are_refused_by_name(folder: Path) -> None:
    torch.save({"model": {"blocks.0.attn.qkv.weight": torch.zeros(3)}}, folder / "vit.pth")
    with pytest.raises(UserError, match="a vision transformer"):
        inspect_checkpoint(folder / "vit.pth")
    torch.save({"features.3.weight": torch.zeros(3)}, folder / "other.pth")
    with pytest.raises(UserError, match=r"no ResNet under any known naming.*'features.3.weight'"):
        inspect_checkpoint(folder / "other.pth")
    torch.save({"epoch": 3}, folder / "none.pth")
    with pytest.raises(UserError, match="holds no tensors at all"):
        inspect_checkpoint(folder / "none.pth")
    torch.save({"features.0.0.weight": torch.zeros(16, 3, 3, 3)}, folder / "mobile.pth")
    with pytest.raises(UserError, match="not those of torchvision's mobilenet_v2"):
        inspect_checkpoint(folder / "mobile.pth")


UNREADABLE = {
    "empty": (b"", "the file is empty"),
    "text": (b"hello, this is no checkpoint", "not a checkpoint"),
    "html": (b"<!DOCTYPE html><html>404</html>", "a web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
    "gzip": (b"\x1f\x8b\x08\x00rest", "a compressed file"),
    "hdf5": (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    "zeros": (bytes(100), "a file of zeros"),
    "zip": (b"PK\x03\x04" + bytes(60), "truncated or damaged"),
    "safetensors": (b"\xff\x00\x00\x00\x00\x00\x00\x00{" + bytes(40), "not a whole safetensors file"),
    "pickle": (b"\x80\x04\x95\x10\x00", "truncated or damaged|not safe to read"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_unreadable_file_is_named_with_what_it_is(kind: str, folder: Path) -> None:
    content, expected = UNREADABLE[kind]
    (folder / "checkpoint").write_bytes(content)
    with pytest.raises(UserError, match=expected) as refused:
        load_backbone(folder / "checkpoint")
    assert str(folder / "checkpoint") in str(refused.value)


@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_torch_file_is_refused(legacy: bool, backbone: State, folder: Path) -> None:
    torch.save(backbone, folder / "c.pth", _use_new_zipfile_serialization=not legacy)
    whole = (folder / "c.pth").read_bytes()
    (folder / "c.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="truncated or damaged"):
        load_backbone(folder / "c.pth")


def test_legacy_torch_file_is_read(backbone: State, folder: Path) -> None:
    torch.save({"state_dict": backbone}, folder / "c.pth", _use_new_zipfile_serialization=False)
    assert inspect_checkpoint(folder / "c.pth").layout == "torch (legacy)"


def test_missing_path_and_directory_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="no such checkpoint"):
        load_backbone(folder / "nowhere.pth")
    (folder / "d").mkdir()
    with pytest.raises(UserError, match=r"a folder with nothing; expected \.metadata, model\.safe"):
        load_backbone(folder / "d")
    (folder / "d").rmdir()


def test_file_that_is_one_tensor_is_refused(folder: Path) -> None:
    torch.save(torch.zeros(3), folder / "c.pth")
    with pytest.raises(UserError, match="holds a Tensor, expected a dictionary"):
        load_backbone(folder / "c.pth")


class Trap:
    """Leaves a file behind when anything executes it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("writer", ["torch", "torch legacy", "pickle"])
def test_no_code_in_a_file_is_ever_executed(writer: str, folder: Path) -> None:
    mark, path = folder / "mark", folder / "c.pkl"
    content = {"model": {"conv1.weight": np.zeros(3)}, "trap": Trap(mark)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(UserError, match=r"posix\.mkdir"):
        read_contents(path)
    assert not mark.exists()


def test_a_module_saved_whole_is_read_without_its_class(folder: Path, backbone: State) -> None:
    torch.save({"model": network(1), "epoch": 2}, folder / "c.pth")
    state, _ = import_checkpoint(folder / "c.pth")
    assert all(torch.equal(state[name], backbone[name]) for name in backbone)
    assert "(torchvision.models.resnet.ResNet)" in " ".join(read_contents(folder / "c.pth").notes)


def test_torchscript_archives_are_read_and_frozen_ones_refused(folder: Path, backbone: State) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network(1).eval(), torch.zeros(1, 3, 32, 32))
        torch.jit.save(traced, str(folder / "c.pt"))
        torch.jit.save(torch.jit.freeze(traced), str(folder / "frozen.pt"))
    state, _ = import_checkpoint(folder / "c.pt")
    assert all(torch.equal(state[name], backbone[name]) for name in backbone)
    with pytest.raises(UserError, match="TorchScript archive without parameters"):
        read_contents(folder / "frozen.pt")


def test_bookkeeping_of_known_libraries_is_read_without_those_libraries(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # VISSL keeps its configuration in the file as a dict subclass of its own.
    config_type = type("AttrDict", (dict,), {"__module__": "vissl.config.attr_dict"})
    module = ModuleType("vissl.config.attr_dict")
    module.AttrDict = config_type  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vissl", ModuleType("vissl"))
    monkeypatch.setitem(sys.modules, "vissl.config", ModuleType("vissl.config"))
    monkeypatch.setitem(sys.modules, "vissl.config.attr_dict", module)
    content = {
        "state": OrderedDict(w=torch.ones(2)),
        "config": config_type(OPTIMIZER=config_type(lr=0.3)),
        "args": argparse.Namespace(lr=np.float64(0.1)),
        "scores": np.arange(3.0),
        "path": folder,
    }
    torch.save(content, folder / "c.pth")
    monkeypatch.undo()
    assert "vissl" not in sys.modules
    contents = read_contents(folder / "c.pth")
    assert contents.tensors.keys() == {"state.w", "scores"}


def test_what_others_allowed_stays_allowed(folder: Path) -> None:
    theirs = type(np.dtype("f8"))
    torch.serialization.add_safe_globals([theirs])
    torch.save({"w": torch.ones(2), "lr": np.float64(0.1)}, folder / "c.pth")
    before = set(torch.serialization.get_safe_globals())
    read_contents(folder / "c.pth")
    assert set(torch.serialization.get_safe_globals()) == before
    assert theirs in before


def test_history_of_an_mmengine_file_is_read(folder: Path) -> None:
    history = pytest.importorskip("mmengine.logging.history_buffer", reason="mmengine is not installed")
    buffer = history.HistoryBuffer([1.0, 2.0], [1, 1])
    torch.save({"message_hub": {"log_scalars": {"loss": buffer}}, "w": torch.ones(2)}, folder / "c.pth")
    assert "w" in read_contents(folder / "c.pth").tensors


def test_bgr_weights_are_turned_to_rgb(folder: Path) -> None:
    from carryover.core.backbones.naming import to_detectron2

    backbone = backbone_of(network(1))
    state = {f"backbone.{to_detectron2(k)}": v for k, v in backbone.items()}
    file = {"model": state | {"pixel_mean": torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)}}
    torch.save(file, folder / "c.pth")
    found, about = import_checkpoint(folder / "c.pth")
    assert torch.equal(found["conv1.weight"], backbone["conv1.weight"].flip(1))
    assert about.pixel_mean == pytest.approx((123.675 / 255, 116.28 / 255, 103.53 / 255))
    assert about.pixel_std == pytest.approx((1 / 255,) * 3)


def test_values_that_no_trained_network_has_are_refused(backbone: State, folder: Path) -> None:
    silent = changed("layer1.0.conv1.weight", lambda v: v.index_fill(0, torch.tensor([3]), 0))
    dead = changed("layer1.0.bn1.running_var", lambda v: v.index_fill(0, torch.tensor([3]), 0))
    cases = {
        "negative": (
            changed("bn1.running_var", lambda v: v - 2),
            r"'bn1\.running_var' has a negative variance",
        ),
        "underflow": (dead, r"'layer1\.0\.bn1\.running_var' has a variance of zero in 1 channels"),
        "dead": (lambda state: dead(silent(state)), None),
        "all zero": (
            changed("layer2.0.conv1.weight", torch.zeros_like),
            r"'layer2\.0\.conv1\.weight' is all zero",
        ),
    }
    for damage, message in cases.values():
        torch.save(damage(backbone), folder / "c.pth")
        if message is None:
            inspect_checkpoint(folder / "c.pth")
            continue
        with pytest.raises(UserError, match=message):
            inspect_checkpoint(folder / "c.pth")


def test_caffe2_pickle_is_refused_by_name(folder: Path) -> None:
    (folder / "R-50.pkl").write_bytes(pickle.dumps({"res2_0_branch2a_w": np.zeros((64, 64, 1, 1))}))
    with pytest.raises(UserError, match="a Caffe2 / Detectron1 pickle"):
        import_checkpoint(folder / "R-50.pkl")


def test_embedded_metadata_that_is_not_ours_is_refused(folder: Path) -> None:
    torch.save({"state_dict": backbone_of(network(1)), "carryover": '{"format": "other"}'}, folder / "c.pth")
    with pytest.raises(UserError, match="'carryover': not a canonical checkpoint: backbone"):
        import_checkpoint(folder / "c.pth")
