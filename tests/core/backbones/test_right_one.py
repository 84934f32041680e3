"""Files whose tensors do not tell what their network computes: recognized, told, or said to be assumed."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision

from carryover.configs import UserError, WorkError
from carryover.core.backbones.against import prove_against, read_reference
from carryover.core.backbones.build import feature_maps
from carryover.core.backbones.imported import live_backbone
from carryover.core.backbones.importers import take_backbone
from carryover.core.backbones.inspection import inspect_checkpoint
from carryover.core.backbones.reference_script import script_for
from carryover.core.backbones.verify import LoadedModel
from carryover.core.formats.receipt import read_receipt
from carryover.transfer.cli.commands import stated
from carryover.transfer.convert import convert
from tests.core.backbones.makers_networks import CASES, Case, randomized, write_reference


@pytest.mark.parametrize("told", [False, True], ids=["the file says it", "its user says it"])
def test_the_right_network_is_taken_and_proven_the_makers(told: bool, tmp_path: Path) -> None:
    cases = {name: case for name, case in CASES.items() if bool(case.told) == told}
    assert len(cases) >= 5
    for number, case in enumerate(cases.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        _prove(case, folder)


def _prove(case: Case, tmp_path: Path) -> None:
    model = case.model()
    path, reference = tmp_path / "theirs.pth", tmp_path / "reference.npz"
    torch.save(case.file(model), path)
    for beside, text in case.beside.items():
        (tmp_path / beside).write_text(text)
    write_reference(reference, case, model)
    if case.told:
        # What is assumed is said, with how to say otherwise; that it is wrong only the maker's features tell.
        wrong = take_backbone(path)
        assert case.wrong in wrong.metadata.assumed
        option = next(iter(case.told)).replace("_", "-")
        assert f"--{option}" in " ".join(wrong.metadata.assumed.values())
        network = live_backbone(wrong).eval()
        ours = LoadedModel("ours", {}, partial(feature_maps, network), network)
        with pytest.raises(WorkError, match="differs from the maker's"):
            prove_against(read_reference(reference), ours, wrong.metadata)
    receipt = convert(
        path, "canonical", tmp_path / "right.safetensors", None, None, stated(**case.told), reference
    )
    assert receipt.proof == "verified against the maker"
    assert receipt.against is not None
    assert receipt.against.largest <= 1e-4 * 10
    assert read_receipt(tmp_path / "right.safetensors").against == receipt.against
    assert case.wrong not in receipt.metadata.assumed


def test_moco_v3s_small_transformer_has_its_authors_heads(tmp_path: Path) -> None:
    """12 of 32 channels, where timm's has 6 of 64: the file's names tell whose it is."""
    path, reference = tmp_path / "theirs.pth", tmp_path / "reference.npz"
    case = CASES["12 heads"]
    model = case.model()
    state = {f"module.base_encoder.{n}": v for n, v in model.state_dict().items()}
    torch.save({"epoch": 300, "state_dict": state | {"module.predictor.0.weight": torch.ones(2, 2)}}, path)
    write_reference(reference, case, model)
    receipt = convert(path, "canonical", tmp_path / "right.safetensors", against=reference)
    assert receipt.proof == "verified against the maker"
    assert receipt.metadata.backbone.heads == 12 and "heads" not in receipt.metadata.assumed
    told = take_backbone(path, None, stated(heads=6)).metadata
    assert told.backbone.heads is None and "heads" not in told.assumed


def test_what_is_said_of_a_file_and_cannot_be_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    torch.save(CASES["12 heads"].model().state_dict(), path)
    resnet = tmp_path / "r.pth"
    torch.save(CASES["resnetaa50 by timm's own arch"].model().state_dict(), resnet)
    refused = {
        (path, "architecture", "timm/vit_small_patch61_224"): "did you mean 'timm/vit_small_patch16_224'",
        (path, "architecture", "timm/vit_base_patch16_224"): r"'cls_token' has shape \(1, 1, 384\)",
        (path, "architecture", "timm/convnext_tiny"): "no tensor is called",
        (resnet, "architecture", "resnet101"): "the tensors are those of a resnet50",
        (resnet, "architecture", "timm/resnet101"): "without 'layer3.6.conv1.weight'",
        (resnet, "heads", 3): "has no attention heads",
        (resnet, "pixels", "1,2/3/RGB"): "expected mean/std/order",
        (resnet, "pixels", "-1,0,0/1,1,1"): "cannot be of images",
        (resnet, "stem", "imagenette"): "expected imagenet, cifar",
    }
    for (file, option, value), message in refused.items():
        with pytest.raises(UserError, match=message):
            inspect_checkpoint(file, None, stated(**{option: value}))


def test_references_that_are_none_are_refused(tmp_path: Path) -> None:
    import numpy as np

    path, images = tmp_path / "c.pth", np.zeros((2, 3, 32, 32), np.float32)
    torch.save(randomized(CASES["3x3 stem with max pooling"].model()).state_dict(), path)
    refused = {
        "no images": ({"pooled": images}, "holds pooled; expected 'images'"),
        "bytes": (
            {"images": images + 100, "pooled": images},
            "reaches from 100 to 100; expected RGB in 0..1",
        ),
        "another name": ({"images": images, "res9": images}, "'res9': this network has stem, layer1"),
        "another width": ({"images": images, "pooled": np.zeros((2, 7), np.float32)}, r"is \(2, 7\)"),
        "not finite": ({"images": images, "pooled": images + np.inf}, "expected finite floats"),
    }
    for name, (arrays, message) in refused.items():
        np.savez(tmp_path / "r.npz", **arrays)
        with pytest.raises((UserError, WorkError), match=message):
            convert(path, "canonical", tmp_path / f"{name}.safetensors", against=tmp_path / "r.npz")
        assert not (tmp_path / f"{name}.safetensors").exists()
    (tmp_path / "r.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match=r"not a \.npz"):
        convert(path, "canonical", tmp_path / "o.safetensors", against=tmp_path / "r.npz")


def test_the_script_for_a_reference_is_python_of_the_maker(tmp_path: Path) -> None:
    wanted = {
        "12 heads": "timm.create_model",
        "mm-series, caffe": "mmpretrain",
        "Caffe's stride and BGR": "resnet50",
    }
    wanted["Detectron2 without a configuration"] = "DetectionCheckpointer"
    for name, text in wanted.items():
        torch.save(CASES[name].file(CASES[name].model()), tmp_path / "c.pth")
        script = script_for(inspect_checkpoint(tmp_path / "c.pth"))
        assert text in script
        compile(script, "reference", "exec")


def test_the_script_for_torchvisions_networks_gives_their_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run as it is printed, with the file's weights loaded: the reference is then that of `--against`."""
    for number, arch in enumerate(("resnet18", "mobilenet_v2")):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        model = randomized(torchvision.models.get_model(arch))
        torch.save(model.state_dict(), "theirs.pth")
        script = script_for(inspect_checkpoint(Path("theirs.pth")))
        loaded = "model.load_state_dict(torch.load('theirs.pth'), strict=False)\nnormalized ="
        exec(compile(script.replace("normalized =", loaded, 1), "reference", "exec"), {})
        receipt = convert(
            Path("theirs.pth"), "torchvision", folder / "o.pth", against=folder / "reference.npz"
        )
        assert receipt.proof == "verified against the maker"


def test_a_converted_file_that_holds_tensors_only_is_read_by_its_receipt(tmp_path: Path) -> None:
    for name in ("12 heads", "Caffe's stride and BGR"):
        case = CASES[name]
        path, out = tmp_path / "theirs.pth", tmp_path / "ours.pth"
        torch.save(case.file(case.model()), path)
        receipt = convert(path, "torchvision", out, stated=stated(**case.told))
        again = take_backbone(out)
        assert again.metadata == receipt.metadata
        with torch.no_grad():
            x = torch.rand(1, 3, case.side, case.side)
            first, second = (
                live_backbone(take).eval()(x)
                for take in (take_backbone(path, None, stated(**case.told)), again)
            )
        assert second.equal(first)
    # Another file in its place, or none of ours: the receipt does not count.
    torch.save(case.file(case.model()), out)
    assert "network" in take_backbone(out).metadata.assumed
