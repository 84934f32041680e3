"""A conversion is kept only with its proof: both files or none, and every sabotage caught."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from carryover.configs import UserError, WorkError
from carryover.configs.files import sha256_file
from carryover.core.backbones.importers import import_checkpoint
from carryover.core.backbones.inspection import load_backbone
from carryover.core.backbones.verify import prove_carried
from carryover.core.formats.canonical import CanonicalMetadata, load_canonical
from carryover.core.formats.receipt import read_receipt, receipt_path
from carryover.transfer.convert import TARGETS, convert
from carryover.transfer.convert.target import Target
from tests.core.backbones.layouts import moco_v1
from tests.transfer.convert.backbones import write_backbone

SUFFIXES = {name: TARGETS.get(name).suffixes[0] for name in TARGETS.names() if name != "canonical"}

NAMES = ["torchvision", "detectron2", "timm", pytest.param("mmseg", marks=pytest.mark.mmseg)]
State = Mapping[str, Tensor]


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A canonical ResNet-18."""
    path = write_backbone(tmp_path_factory.mktemp("canonical") / "backbone.safetensors")
    yield path
    path.unlink()


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """An empty directory whose files do not outlive the test."""
    folder = tmp_path / "out"
    yield folder
    for file in folder.glob("*"):
        file.unlink()


def needs(name: str) -> None:
    """Skip, in words, when the target library cannot be imported."""
    version, reason = TARGETS.get(name).version()
    if version is None and name != "detectron2":
        pytest.skip(f"{name} cannot be imported: {reason}")


@pytest.mark.parametrize("name", NAMES)
def test_receipt_accounts_for_both_files_every_tensor_and_every_stage(
    name: str, resnet18: Path, out: Path
) -> None:
    needs(name)
    target = out / f"backbone{SUFFIXES[name]}"
    receipt = convert(resnet18, name, target)
    state, about = load_canonical(resnet18)
    assert read_receipt(target) == receipt
    assert receipt.source.sha256 == sha256_file(resnet18)
    assert receipt.target.sha256 == sha256_file(target)
    assert {tensor.source for tensor in receipt.tensors} == state.keys()
    assert {fate.source for fate in receipt.fates if fate.fate == "carried"} == state.keys()
    assert receipt.expected == len(state)
    assert receipt.metadata == about
    if receipt.verified_in == "structure only":
        assert name == "detectron2"
        assert "could not be imported" in receipt.notes[-1]
    else:
        for proof in receipt.proofs:
            assert proof.tensors == len(state)
            assert [stage.stage for stage in proof.stages] == ["stem", "layer1", "layer2", "layer3", "layer4"]
        assert receipt.largest_difference is not None
        assert receipt.largest_difference <= 1e-4
    assert sorted(file.name for file in out.iterdir()) == [target.name, receipt_path(target).name]
    assert "122 of 122" in receipt.summary or "120 of 120" in receipt.summary


@pytest.mark.parametrize("name", NAMES)
def test_converted_file_is_carried_back_exactly(name: str, resnet18: Path, out: Path) -> None:
    needs(name)
    convert(resnet18, name, out / f"there{SUFFIXES[name]}")
    convert(out / f"there{SUFFIXES[name]}", "canonical", out / "back.safetensors")
    state, about = load_canonical(resnet18)
    returned, about_returned = load_canonical(out / "back.safetensors")
    assert returned.keys() == state.keys()
    assert all(torch.equal(returned[key], state[key]) for key in state)
    if name != "torchvision":
        # torchvision's file is a bare state dict and has no place for what the checkpoint says of itself.
        assert about_returned == about


def test_other_makers_files_are_converted_directly_and_every_key_told(out: Path, tmp_path: Path) -> None:
    content, backbones = moco_v1()
    torch.save(content, tmp_path / "moco.pth")
    receipt = convert(tmp_path / "moco.pth", "torchvision", out / "m.pth", encoder="momentum")
    assert receipt.metadata.maker == "MoCo v1/v2"
    assert receipt.metadata.encoder == "momentum"
    assert receipt.source.sha256 == sha256_file(tmp_path / "moco.pth")
    dropped = {fate.source: fate.reason for fate in receipt.fates if fate.fate == "dropped"}
    assert "online encoder" in (dropped["state_dict.module.encoder_q.conv1.weight"] or "")
    written = torch.load(out / "m.pth", weights_only=True)
    assert all(torch.equal(written[key], value) for key, value in backbones["momentum"].items())
    (tmp_path / "moco.pth").unlink()


def test_mobile_networks_go_to_torchvision_only(out: Path, tmp_path: Path) -> None:
    source = write_backbone(tmp_path / "m.safetensors", arch="mobilenet_v2")
    receipt = convert(source, "torchvision", out / "m.pth")
    assert receipt.proofs[0].model == "torchvision.models.mobilenet_v2"
    assert receipt.largest_difference == 0
    with pytest.raises(UserError, match="detectron2 is given ResNets only, not mobilenet_v2"):
        convert(source, "detectron2", out / "m.pkl")


def test_widened_shallow_resnet_is_refused_where_the_library_has_no_place_for_it(
    out: Path, tmp_path: Path
) -> None:
    source = write_backbone(tmp_path / "w.safetensors", width=2)
    for name in ("detectron2", "timm"):
        with pytest.raises(UserError, match=r"'conv1\.weight' has 128 output channels \(resnet18 x2\)"):
            convert(source, name, out / f"w{SUFFIXES[name]}")
    assert convert(source, "torchvision", out / "w.pth").largest_difference == 0
    source.unlink()


@pytest.mark.parametrize("name", ["torchvision", "detectron2", "timm", "mmseg"])
def test_cifar_stem_is_refused_by_its_tensor_within_seconds(name: str, out: Path, tmp_path: Path) -> None:
    source = write_backbone(tmp_path / "c.safetensors", stem="cifar")
    began = time.monotonic()
    with pytest.raises(UserError, match=r"'conv1.weight' has shape \(64, 3, 3, 3\), the cifar stem"):
        convert(source, name, out / f"c{SUFFIXES[name]}")
    assert time.monotonic() - began < 10
    assert not out.exists()
    source.unlink()


def swapped(first: str, second: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    def swap(state: dict[str, Tensor]) -> dict[str, Tensor]:
        state[first], state[second] = state[second], state[first]
        return state

    return swap


def without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def changed(
    name: str, change: Callable[[Tensor], Tensor]
) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {key: change(value) if key == name else value for key, value in state.items()}


def misspelt(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.replace("layer2.1.conv2", "layer2.1.convolution2"): value for key, value in state.items()}


SABOTAGE: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "a tensor lost": (without("layer3.0.conv1.weight"), "layer3.0.conv1.weight"),
    "a tensor renamed": (misspelt, "layer2.1.conv(olution)?2.weight"),
    "a tensor transposed": (
        changed("layer1.0.conv1.weight", lambda v: v.transpose(0, 1).contiguous()),
        "layer1.0.conv1.weight",
    ),
    "a tensor flattened": (
        changed("layer4.0.downsample.0.weight", lambda v: v.flatten(1)),
        "downsample.0.weight",
    ),
    "two tensors exchanged": (swapped("layer1.0.bn1.weight", "layer1.0.bn2.weight"), "layer1.0.bn1.weight"),
    "mean for variance": (swapped("bn1.running_mean", "bn1.running_var"), "bn1.running"),
    "channels reversed": (changed("conv1.weight", lambda v: v.flip(1).contiguous()), "conv1.weight"),
    "precision lost": (changed("layer4.1.conv2.weight", lambda v: v.half().float()), "layer4.1.conv2.weight"),
    "another precision": (changed("bn1.bias", Tensor.double), "bn1.bias"),
}


def sabotaged(target: Target, damage: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Target:
    """The same target, writing a damaged file."""

    def write(path: Path, tensors: State, about: CanonicalMetadata) -> None:
        plain = {target.rename_back(key) or key: value for key, value in tensors.items()}
        damaged = {_renamed(target, key): value for key, value in damage(plain).items()}
        target.write(path, damaged, about)

    return replace(target, write=write)


def _renamed(target: Target, name: str) -> str:
    try:
        return target.rename(name)
    except KeyError:
        return name


@pytest.mark.parametrize("way", SABOTAGE)
@pytest.mark.parametrize("name", ["torchvision", "detectron2"])
def test_sabotaged_file_is_caught_by_the_tensors_name_and_not_kept(
    name: str, way: str, resnet18: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, named = SABOTAGE[way]
    broken = sabotaged(TARGETS.get(name), damage)
    monkeypatch.setattr(TARGETS, "get", lambda _: broken)
    with pytest.raises(WorkError, match=named):
        convert(resnet18, name, out / f"b{SUFFIXES[name]}")
    assert not out.exists()


@pytest.mark.parametrize(
    "way", ["a tensor lost", "two tensors exchanged", "channels reversed", "a tensor renamed"]
)
def test_library_itself_catches_a_sabotage_that_our_reader_does_not_see(
    way: str, resnet18: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = TARGETS.get("torchvision")
    damage, named = SABOTAGE[way]
    blind = replace(sabotaged(target, damage), read=lambda _: load_canonical(resnet18)[0])
    monkeypatch.setattr(TARGETS, "get", lambda _: blind)

    def load(path: Path, config: Any) -> Iterator[Any]:
        from carryover.transfer.convert.torchvision import _classifier

        yield _classifier(torch.load(path, weights_only=True), config, config.arch)

    monkeypatch.setattr(TARGETS, "get", lambda _: replace(blind, load=load))
    with pytest.raises(WorkError, match=named):
        convert(resnet18, "torchvision", out / "b.pth")
    assert not out.exists()


def test_library_that_computes_another_network_from_the_same_tensors_is_caught(
    resnet18: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = TARGETS.get("torchvision")

    def load(path: Path, config: Any) -> Iterator[Any]:
        for model in target.load(path, config):
            stages = model.stages
            yield replace(model, stages=lambda x, stages=stages: {k: v + 2e-4 for k, v in stages(x).items()})

    monkeypatch.setattr(TARGETS, "get", lambda _: replace(target, load=load))
    with pytest.raises(WorkError, match=r"feature map of 'stem' differs from the source's by 0\.0002"):
        convert(resnet18, "torchvision", out / "b.pth")
    assert not out.exists()


def test_without_the_library_the_receipt_says_structure_only(
    resnet18: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = replace(TARGETS.get("detectron2"), version=lambda: (None, "No module named 'detectron2'"))
    monkeypatch.setattr(TARGETS, "get", lambda _: absent)
    receipt = convert(resnet18, "detectron2", out / "b.pkl")
    assert receipt.verified_in == "structure only"
    assert receipt.proofs == ()
    assert receipt.notes == ("detectron2 could not be imported here: No module named 'detectron2'",)


def test_earlier_file_survives_a_conversion_that_fails(
    resnet18: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(resnet18, "torchvision", out / "b.pth")
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    damage, _ = SABOTAGE["a tensor lost"]
    broken = sabotaged(TARGETS.get("torchvision"), damage)
    monkeypatch.setattr(TARGETS, "get", lambda _: broken)
    with pytest.raises(WorkError):
        convert(resnet18, "torchvision", out / "b.pth")
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_conversion_leaves_the_callers_random_state_alone(resnet18: Path, out: Path) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    convert(resnet18, "torchvision", out / "b.pth")
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("to", "name", "expected"),
    [
        ("detectrn2", "b.pkl", "did you mean 'detectron2'"),
        ("detectron2", "b.pth", r"detectron2 knows its files by their suffix; expected \.pkl"),
        ("torchvision", "b", r"expected \.pth or \.pt"),
    ],
)
def test_wrong_target_or_suffix_is_answered_with_the_right_one(
    to: str, name: str, expected: str, resnet18: Path, out: Path
) -> None:
    with pytest.raises(UserError, match=expected):
        convert(resnet18, to, out / name)


def test_out_must_be_another_file(resnet18: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is the checkpoint itself"):
        convert(resnet18, "timm", resnet18)
    with pytest.raises(UserError, match="a directory"):
        convert(resnet18, "timm", tmp_path)


def test_receipt_of_another_file_is_refused(resnet18: Path, out: Path) -> None:
    convert(resnet18, "torchvision", out / "b.pth")
    with (out / "b.pth").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="differs from the file its receipt was written for"):
        read_receipt(out / "b.pth")
    receipt_path(out / "b.pth").write_text(json.dumps({"format": "other"}), encoding="utf-8")
    with pytest.raises(UserError, match="not a receipt"):
        read_receipt(out / "b.pth")
    receipt_path(out / "b.pth").unlink()
    with pytest.raises(UserError, match=r"no receipt beside b\.pth"):
        read_receipt(out / "b.pth")
    with pytest.raises(UserError, match="no such converted checkpoint"):
        read_receipt(out / "c.pth")


def test_live_model_is_checked_against_the_receipt_alone(resnet18: Path, out: Path) -> None:
    receipt = convert(resnet18, "torchvision", out / "b.pth")
    tensors = dict(load_backbone(resnet18)[0].state_dict())
    assert prove_carried(receipt, tensors, "model") == len(tensors)
    frozen = {key: value for key, value in tensors.items() if not key.endswith("num_batches_tracked")}
    assert prove_carried(receipt, frozen, "model") == len(frozen)
    random = torch.randn(tensors["layer2.1.conv1.weight"].shape)
    for wrong, expected in (
        (tensors | {"layer2.1.conv1.weight": random}, "not the checkpoint's values: 'layer2.1.conv1.weight'"),
        (tensors | {"layer5.weight": random}, "in the model but not in the checkpoint: 'layer5.weight'"),
        ({k: v for k, v in tensors.items() if k != "conv1.weight"}, "not in the model: 'conv1.weight'"),
    ):
        with pytest.raises(WorkError, match=expected):
            prove_carried(receipt, wrong, "Faster R-CNN")


def test_detectron2_file_needs_no_numpy_internals_to_be_read(resnet18: Path, out: Path) -> None:
    import pickletools

    convert(resnet18, "detectron2", out / "b.pkl")
    with (out / "b.pkl").open("rb") as file:
        strings = [arg for opcode, arg, _ in pickletools.genops(file) if opcode.name == "SHORT_BINUNICODE"]
    # numpy 1 and numpy 2 keep `_reconstruct` in different modules; `numpy.ndarray` is in both.
    assert "ndarray" in strings
    assert not [text for text in strings if "_core" in text or "_reconstruct" in text]
    assert import_checkpoint(out / "b.pkl")[1].method == "unigrad"
