"""A file that is named after a model of timm is held against that very model, without being asked."""

import json
from pathlib import Path

import pytest
import torch

timm = pytest.importorskip("timm", reason="timm is not installed")

from safetensors.torch import save_file  # noqa: E402

from carryover.configs import WorkError  # noqa: E402
from carryover.core.backbones import timm_checkpoint  # noqa: E402
from carryover.core.backbones.importers import import_checkpoint  # noqa: E402
from carryover.core.backbones.stated import Stated  # noqa: E402
from carryover.core.formats.receipt import read_receipt  # noqa: E402
from carryover.transfer.convert import convert  # noqa: E402
from tests.core.backbones.makers_networks import randomized  # noqa: E402

NAMES = (
    "test_vit",
    "test_convnext",
    "test_resnet",
    "resnetblur18",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("to", ["canonical", "timm"])
def test_a_named_model_is_compared_with_timm_itself(name: str, to: str, tmp_path: Path) -> None:
    path, out = tmp_path / "theirs.pth", tmp_path / "ours.safetensors"
    torch.save({"state_dict": randomized(timm.create_model(name, num_classes=7)).state_dict()}, path)
    receipt = convert(path, to, out, stated=Stated(architecture=f"timm/{name}"))
    assert receipt.proof == "equal to timm's own model"
    assert receipt.against is not None and receipt.against.reference is None
    assert receipt.against.maker == f"timm {timm.__version__}'s own {name}"
    assert receipt.against.features[-1].stage == "pooled"
    assert receipt.against.largest <= 1e-4
    assert f"own {name}" in receipt.summary
    assert read_receipt(out).against == receipt.against


def test_a_wrong_name_is_not_called_verified(tmp_path: Path) -> None:
    """Tensors of an anti-aliased network are a plain one's: timm's own plain model agrees, and is wrong."""
    path = tmp_path / "theirs.pth"
    torch.save(randomized(timm.create_model("resnetblur18", num_classes=0)).state_dict(), path)
    receipt = convert(
        path, "canonical", tmp_path / "ours.safetensors", stated=Stated(architecture="timm/resnet18")
    )
    assert receipt.proof != "verified against the maker" and "verified" not in receipt.summary
    assert "--against" in receipt.summary


def test_what_names_and_shapes_alone_tell_is_not_verified(tmp_path: Path) -> None:
    path = tmp_path / "theirs.pth"
    torch.save(randomized(timm.create_model("vit_tiny_patch16_224")).state_dict(), path)
    receipt = convert(path, "canonical", tmp_path / "ours.safetensors")
    assert receipt.proof == "consistent"


def test_a_configuration_beside_the_file_names_the_model_too(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(randomized(timm.create_model("test_vit")).state_dict(), path)
    cfg = {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 160, 160]}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit", "pretrained_cfg": cfg}))
    receipt = convert(path, "canonical", tmp_path / "ours.safetensors")
    assert receipt.proof == "equal to timm's own model"
    assert "pixels" not in receipt.metadata.assumed


def test_a_network_that_is_not_timms_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations and conversions alike, and nothing is left behind."""
    path = tmp_path / "theirs.pth"
    torch.save(randomized(timm.create_model("test_vit")).state_dict(), path)
    real = timm_checkpoint.filled

    def exchanged(filtered, raw, where):  # type: ignore[no-untyped-def]
        state = real(filtered, raw, where)
        return {**state, "blocks.0.attn.qkv.weight": state["blocks.0.attn.qkv.weight"].roll(64, 0)}

    monkeypatch.setattr(timm_checkpoint, "filled", exchanged)
    named = Stated(architecture="timm/test_vit")
    with pytest.raises(WorkError, match=r"timm .*'s own test_vit: 'blocks\.0' .* differs from the maker's"):
        convert(path, "canonical", tmp_path / "ours.safetensors", stated=named)
    assert not (tmp_path / "ours.safetensors").exists()
    with pytest.raises(WorkError, match="differs from the maker's"):
        import_checkpoint(path, stated=named)
