"""Names in Detectron2's layout, against what real Detectron2 models hold and its own conversion script."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from carryover.core.backbones.architecture import expected_tensors
from carryover.core.backbones.importers import import_checkpoint
from carryover.core.backbones.inspection import inspect_checkpoint
from carryover.core.backbones.naming import from_detectron2, to_detectron2
from carryover.core.formats.backbone import BackboneConfig
from tests.core.backbones.manifests import NAMES, arch_of, is_new_layer, manifest

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def replaced(name: str) -> str:
    """The rule of Detectron2's tools/convert-torchvision-to-d2.py, written out."""
    if "layer" not in name:
        name = f"stem.{name}"
    for stage in (1, 2, 3, 4):
        name = name.replace(f"layer{stage}", f"res{stage + 1}")
    for norm in (1, 2, 3):
        name = name.replace(f"bn{norm}", f"conv{norm}.norm")
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


@pytest.mark.parametrize("name", NAMES)
def test_every_backbone_tensor_of_a_real_model_is_matched_by_exactly_one_of_ours(name: str) -> None:
    ours = {
        to_detectron2(n): s.shape for n, s in expected_tensors(BackboneConfig(arch=arch_of(name))).items()
    }
    theirs = {n: shape for n, shape in manifest(name).items() if not is_new_layer(n)}
    used = set()
    for full, shape in theirs.items():
        # Detectron2 takes a checkpoint's tensor for every model tensor whose name ends with it.
        matches = [short for short in ours if full == short or full.endswith(f".{short}")]
        assert len(matches) == 1, full
        assert ours[matches[0]] == shape, full
        used.add(matches[0])
    assert used == ours.keys()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_ours_lands_in_the_detectors_new_layers(name: str) -> None:
    ours = [to_detectron2(n) for n in expected_tensors(BackboneConfig(arch=arch_of(name)))]
    for full in filter(is_new_layer, manifest(name)):
        assert not [short for short in ours if full.endswith(f".{short}")]


@pytest.mark.parametrize("arch", RESNETS)
def test_names_agree_with_detectron2s_own_script_and_come_back(arch: str) -> None:
    for name in expected_tensors(BackboneConfig(arch=arch)):
        assert to_detectron2(name) == replaced(name)
        assert from_detectron2(to_detectron2(name)) == name


def test_foreign_names_have_no_place() -> None:
    assert from_detectron2("fpn_lateral2.weight") is None
    assert from_detectron2("res5.norm.weight") is None
    with pytest.raises(KeyError):
        to_detectron2("fc.weight")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_detectron2_model_is_carried_back_whole(name: str, suffix: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    model = {
        full: torch.rand(shape, generator=generator) if shape else torch.tensor(7)
        for full, shape in manifest(name).items()
    }
    path = tmp_path / f"model{suffix}"
    if suffix == ".pth":
        torch.save({"model": model, "optimizer": {}, "scheduler": {"last_epoch": 3}, "iteration": 3}, path)
    else:
        arrays = {full: np.asarray(value) for full, value in model.items()}
        path.write_bytes(
            pickle.dumps({"model": arrays, "__author__": "someone", "matching_heuristics": True})
        )
    seen = inspect_checkpoint(path)
    assert (seen.maker, seen.coverage) == ("Detectron2", 1.0)
    # What names no author was trained by Detectron2, whose own default is Caffe's network on BGR images.
    caffe = suffix == ".pth"
    arch = arch_of(name)
    assert seen.metadata.backbone == BackboneConfig(arch=arch, stride_in_1x1=caffe and arch == "resnet50")
    assert seen.metadata.pixel_std == pytest.approx((1 / 255,) * 3 if caffe else (0.229, 0.224, 0.225))
    assert ("stride" in seen.metadata.assumed) == caffe
    assert {f.source for f in seen.fates if f.fate == "dropped"} == {
        f"model.{full}" for full in filter(is_new_layer, model)
    }
    state, _ = import_checkpoint(path)
    for ours, value in state.items():
        found = [v for full, v in model.items() if full.endswith(f".{replaced(ours)}")]
        assert len(found) == 1
        assert torch.equal(value, found[0].flip(1) if caffe and ours == "conv1.weight" else found[0])
    path.unlink()
