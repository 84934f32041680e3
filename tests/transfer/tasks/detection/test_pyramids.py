"""Detectors on plain transformers, ConvNeXt, Swin and ResNeXt: what carries which pyramid, and whole runs."""

import pytest
import torch

from carryover.configs import UserError
from carryover.core.backbones.build import build_backbone
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.formats.metrics_log import read_metrics
from carryover.transfer.tasks.detection.config import InputConfig
from carryover.transfer.tasks.detection.model_config import C4Config, FPNConfig
from carryover.transfer.tasks.detection.pyramid import as_trained, pyramid_of, require_detectable
from carryover.transfer.tasks.detection.torchvision.model import build_detector
from carryover.transfer.tasks.evaluate import evaluate
from tests.interrupting import in_two_parts
from tests.transfer.convert.backbones import write_backbone
from tests.transfer.tasks.detection import runs

FPN = FPNConfig(name="fpn", norm="BN", fpn_dim=16, box_fc_dim=32)


def config(name: str, **more: object) -> BackboneConfig:
    return BackboneConfig.model_validate({"arch": f"timm/{name}", **more})


@pytest.mark.parametrize(
    ("name", "strides", "divisor"),
    [
        ("convnext_atto", (4, 8, 16, 32, 64), 32),
        ("swin_tiny_patch4_window7_224", (4, 8, 16, 32, 64), 32),
        ("resnext50_32x4d", (4, 8, 16, 32, 64), 32),
        ("vit_tiny_patch16_224", (4, 8, 16, 32, 64), 32),
        ("vit_small_patch8_224", (4, 8, 16, 32, 64), 32),
        ("vit_small_patch14_dinov2", (3.5, 7, 14, 28, 56), 28),
        ("vit_small_patch16_dinov3", (4, 8, 16, 32, 64), 32),
    ],
)
def test_every_level_has_the_stride_that_anchors_and_regions_take_it_for(
    name: str, strides: tuple[float, ...], divisor: int
) -> None:
    about = config(name)
    found = pyramid_of(about)
    assert (found.strides, found.divisor) == (strides, divisor)
    with torch.random.fork_rng(devices=[]):
        network = build_backbone(about)
    trained, weights, _ = as_trained(about, network.state_dict(), FPN, InputConfig())
    detector = build_detector(trained, weights, FPN, InputConfig(), 2, seed=0)
    detector.eval()
    with torch.no_grad():
        batch, _ = detector.transform([torch.randint(0, 256, (3, 90, 130), dtype=torch.uint8)])
        maps = list(detector.backbone(batch.tensors).values())
    height, width = batch.tensors.shape[-2:]
    assert height % divisor == width % divisor == 0
    for level, stride in zip(maps, strides, strict=True):
        assert level.shape[1] == 16
        assert level.shape[-2] == -(-height // stride) and level.shape[-1] == -(-width // stride)


def test_what_a_pyramid_cannot_stand_on_is_refused_with_what_can() -> None:
    for arch, said in (
        (config("vit_small_patch32_224"), "patches of 8, 14 or 16 pixels .*, not of 32"),
        (BackboneConfig(arch="resnet18", stem="cifar"), "pretrained with stem 'imagenet'"),
    ):
        with pytest.raises(UserError, match=said):
            require_detectable(arch, FPN)
    vit, convnext = config("vit_tiny_patch16_224"), config("convnext_atto")
    with pytest.raises(UserError, match=r"choose model\.name: fpn"):
        require_detectable(vit, C4Config(name="c4"))
    with pytest.raises(UserError, match="whose pyramid uses one map"):
        require_detectable(vit, FPNConfig(name="fpn", level_norm="LN"))
    with pytest.raises(UserError, match="no plain transformer"):
        require_detectable(convnext, FPNConfig(name="fpn", prefix_tokens="drop"))


def test_tokens_go_where_there_is_only_a_class_token_and_stay_where_features_need_them() -> None:
    for name, said in (
        ("vit_tiny_patch16_224", "cls_token dropped"),
        ("vit_small_patch14_reg4_dinov2", "kept"),
        ("vit_small_patch16_dinov3", "kept"),
    ):
        about = config(name)
        trained, _, tokens = as_trained(about, build_backbone(about).state_dict(), FPN, InputConfig())
        assert tokens is not None and tokens.startswith(said)
        assert trained.tokens == (said == "kept")
    kept = FPNConfig(name="fpn", prefix_tokens="keep")
    about = config("vit_tiny_patch16_224")
    assert as_trained(about, build_backbone(about).state_dict(), kept, InputConfig())[0] == about


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto"])
def test_a_run_learns_records_and_resumes_exactly(name, shapes, tmp_path, monkeypatch) -> None:
    source = write_backbone(tmp_path / "source.safetensors", arch=f"timm/{name}")
    keys = ["model.drop_path=0.1", "log_every=1"]
    recipe = runs.recipe("demo_faster_fpn", shapes, *keys)
    record = evaluate(recipe, source, tmp_path / "whole")
    losses = [row["loss"] for row in read_metrics(tmp_path / "whole" / "metrics.jsonl")]
    assert losses[-1] < losses[0]
    tokens = record.facts.get("prefix_tokens")
    assert tokens == (
        "cls_token dropped: patches attend to patches alone, as in ViTDet" if "vit" in name else None
    )
    in_two_parts(lambda: evaluate(recipe, source, tmp_path / "parts"), 3, monkeypatch)
    runs.assert_same_files(tmp_path / "whole", tmp_path / "parts")


def test_a_frozen_part_is_frozen_by_its_name_in_timm() -> None:
    about = config("resnext50_32x4d")
    weights = build_backbone(about).state_dict()
    detector = build_detector(
        about, weights, FPN.model_copy(update={"freeze_at": 2}), InputConfig(), 2, seed=0
    )
    frozen = {
        n.split("inner.")[-1].split(".")[0]
        for n, p in detector.backbone.body.named_parameters()
        if not p.requires_grad
    }
    assert frozen == {"conv1", "layer1"}
