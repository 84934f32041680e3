"""One file serves C4 and FPN models of Detectron2 itself: complete, exact, and back again."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from carryover.configs import WorkError
from carryover.core.backbones.architecture import expected_tensors
from carryover.core.backbones.importers import import_checkpoint
from carryover.core.backbones.inspection import load_backbone
from carryover.core.backbones.verify import probe, prove_carried
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.formats.canonical import CanonicalMetadata, load_canonical
from carryover.core.formats.receipt import read_receipt
from carryover.transfer.convert import TARGETS, convert
from carryover.transfer.convert import detectron2 as ours
from tests.core.backbones.test_naming import replaced
from tests.transfer.convert.backbones import write_backbone

pytestmark = pytest.mark.detectron2
ARCHITECTURES = [
    ("resnet18", 1),
    ("resnet34", 1),
    ("resnet50", 1),
    pytest.param("resnet50", 2, marks=pytest.mark.slow),
]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A directory whose checkpoints do not outlive the test."""
    yield tmp_path
    for file in tmp_path.rglob("*"):
        if file.is_file():
            file.unlink()


def model_of(layout: str, config: BackboneConfig) -> Any:
    """A Detectron2 R-CNN, randomly initialized."""
    build = {"FPN": ours._fpn_model, "C4": ours._c4_model}[layout]
    return build(config)


def suffix_of(name: str, tensors: dict[str, Tensor]) -> Tensor:
    """The one tensor of a Detectron2 model that torchvision's `name` becomes."""
    found = [value for full, value in tensors.items() if full.endswith(f".{replaced(name)}")]
    assert len(found) == 1, name
    return found[0]


@pytest.mark.parametrize(("arch", "width"), ARCHITECTURES)
def test_detectron2_loads_every_tensor_and_computes_the_same_features(
    arch: str, width: int, folder: Path
) -> None:
    source = write_backbone(folder / "b.safetensors", arch=arch, width=width)
    receipt = convert(source, "detectron2", folder / "b.pkl")
    assert receipt.verified_in.startswith("detectron2 ")
    assert [proof.model.rpartition(" ")[2] for proof in receipt.proofs] == ["FPN", "C4"]
    assert all(proof.tensors == receipt.expected for proof in receipt.proofs)
    assert receipt.largest_difference is not None
    assert receipt.largest_difference <= 1e-4


@pytest.mark.parametrize("layout", ["FPN", "C4"])
def test_plain_detection_checkpointer_fills_the_backbone_of_a_training_model(
    layout: str, folder: Path
) -> None:
    from detectron2.checkpoint import DetectionCheckpointer

    source = write_backbone(folder / "b.safetensors")
    convert(source, "detectron2", folder / "b.pkl")
    model = model_of(layout, BackboneConfig(arch="resnet18"))
    state, _ = load_canonical(source)
    before = model.state_dict()
    assert not torch.equal(suffix_of("layer4.0.conv1.weight", before), state["layer4.0.conv1.weight"])
    DetectionCheckpointer(model).load(str(folder / "b.pkl"))
    after = model.state_dict()
    for name, value in state.items():
        assert torch.equal(suffix_of(name, after), value), name
    assert prove_carried(read_receipt(folder / "b.pkl"), ours.backbone_tensors(model), layout) == len(state)


def test_model_that_kept_random_values_is_caught_by_the_receipt(folder: Path) -> None:
    source = write_backbone(folder / "b.safetensors")
    convert(source, "detectron2", folder / "b.pkl")
    model = model_of("C4", BackboneConfig(arch="resnet18"))
    with pytest.raises(WorkError, match=r"not the checkpoint's values: 'conv1\.weight'"):
        prove_carried(read_receipt(folder / "b.pkl"), ours.backbone_tensors(model), "Faster R-CNN C4")


@pytest.mark.parametrize("layout", ["FPN", "C4"])
def test_fine_tuned_detectron2_backbone_is_carried_further(layout: str, folder: Path) -> None:
    from detectron2.checkpoint import DetectionCheckpointer

    model = model_of(layout, BackboneConfig(arch="resnet18"))
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.01)
    DetectionCheckpointer(model, str(folder)).save("model_final")
    # Detectron2 writes it there; without it, its default would be assumed: BGR, stride in the 1x1.
    (folder / "config.yaml").write_text(
        "INPUT: {FORMAT: RGB}\n"
        "MODEL: {PIXEL_MEAN: [123.675, 116.28, 103.53], PIXEL_STD: [58.395, 57.12, 57.375],"
        " RESNETS: {STRIDE_IN_1X1: false}}\n"
    )
    state, about = import_checkpoint(folder / "model_final.pth")
    assert about.maker == "Detectron2"
    tuned = model.state_dict()
    for name, value in state.items():
        assert torch.equal(value, suffix_of(name, tuned)), name
    assert convert(folder / "model_final.pth", "detectron2", folder / "again.pkl").proofs


def test_features_of_fpn_model_are_those_of_the_source_backbone(folder: Path) -> None:
    # Written out with Detectron2's own forward, beside the proof's way of asking for stages.
    from detectron2.checkpoint import DetectionCheckpointer

    source = write_backbone(folder / "b.safetensors")
    convert(source, "detectron2", folder / "b.pkl")
    model = model_of("FPN", BackboneConfig(arch="resnet18")).eval()
    DetectionCheckpointer(model).load(str(folder / "b.pkl"))
    backbone = load_backbone(source)[0].eval()
    with torch.no_grad():
        theirs = model.backbone.bottom_up(probe())["res5"].mean(dim=(2, 3))
        expected = backbone(probe())
    assert (theirs - expected).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("matching_heuristics", False, r"'conv1\.weight' arrived with other values"),
        # Detectron2 then renames what it takes for Caffe2's names, and loses the running statistics.
        ("__author__", "Caffe2", r"'bn1\.running_mean' arrived with other values"),
    ],
)
def test_file_that_detectron2_would_silently_ignore_is_caught(
    key: str, value: object, named: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pickle

    def write(path: Path, tensors: Any, about: CanonicalMetadata) -> None:
        TARGET.write(path, tensors, about)
        record = pickle.loads(path.read_bytes())
        path.write_bytes(pickle.dumps(record | {key: value}))

    TARGET = ours.TARGET
    source = write_backbone(folder / "b.safetensors")
    monkeypatch.setattr(TARGETS, "get", lambda _: replace(TARGET, write=write))
    with pytest.raises(WorkError, match=rf"Faster R-CNN resnet18 FPN: {named}"):
        convert(source, "detectron2", folder / "out" / "b.pkl")
    assert not (folder / "out").exists()


def test_stride_in_the_first_convolution_is_caught_by_the_features(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ours.resnet_settings

    def original_msra(config: BackboneConfig) -> Any:
        return settings(config) | {"MODEL.RESNETS.STRIDE_IN_1X1": True}

    monkeypatch.setattr(ours, "resnet_settings", original_msra)
    source = write_backbone(folder / "b.safetensors", arch="resnet50")
    with pytest.raises(WorkError, match=r"feature map of 'layer2' differs .* although every tensor arrived"):
        convert(source, "detectron2", folder / "out" / "b.pkl")
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("arch", "width"), [("resnet18", 1), ("resnet50", 1), ("resnet50", 4), ("resnet152", 2)]
)
def test_settings_make_detectron2_build_the_same_shapes(arch: str, width: int) -> None:
    from detectron2.config import get_cfg
    from detectron2.modeling import build_backbone

    config = BackboneConfig.model_validate({"arch": arch, "width": width})
    cfg = get_cfg()
    for key, value in ours.resnet_settings(config).items():
        cfg.merge_from_list([key, value])
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    cfg.MODEL.RESNETS.NORM = "BN"
    with torch.device("meta"):
        built = build_backbone(cfg).state_dict()
    shapes = {name: tuple(value.shape) for name, value in built.items()}
    assert shapes == {replaced(name): spec.shape for name, spec in expected_tensors(config).items()}


def test_receipt_states_the_pixels_in_detectron2s_terms(folder: Path) -> None:
    settings = convert(write_backbone(folder / "b.safetensors"), "detectron2", folder / "b.pkl").settings
    assert settings["INPUT.FORMAT"] == "RGB"
    assert settings["MODEL.PIXEL_MEAN"] == [123.675, 116.280, 103.530]
    assert settings["MODEL.PIXEL_STD"] == [58.395, 57.120, 57.375]
