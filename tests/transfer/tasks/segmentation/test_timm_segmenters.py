"""Segmenters on plain transformers, ConvNeXt, Swin and ResNeXt, in both libraries."""

from pathlib import Path

import pytest
import torch

from carryover.configs import UserError
from carryover.core.backbones.build import build_backbone, feature_maps
from carryover.core.backbones.inspection import load_backbone
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.formats.metrics_log import read_metrics
from carryover.transfer.convert import convert
from carryover.transfer.convert.mmcv_stub import install
from carryover.transfer.tasks.evaluate import evaluate
from carryover.transfer.tasks.segmentation.config import SegmentationConfig
from carryover.transfer.tasks.segmentation.maps import divisor_of, require_segmentable, stages_of
from carryover.transfer.tasks.segmentation.model_config import FCNConfig, LinearHeadConfig, UPerNetConfig
from carryover.transfer.tasks.segmentation.torchvision.inference import slide
from carryover.transfer.tasks.segmentation.torchvision.model import build_segmenter, losses
from tests.interrupting import in_two_parts
from tests.transfer.convert.timm_backbones import write_timm
from tests.transfer.tasks.segmentation.mmseg_names import mmseg_name
from tests.transfer.tasks.segmentation.scenes import CLASSES, recipe

VIT, DINOV2 = "vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"
FCN = ("model.output_stride=16",)
NETWORKS = [VIT, DINOV2, "vit_small_patch16_dinov3", "convnext_atto", "swin_tiny_patch4_window7_224"]


def config_of(name: str, **more: object) -> BackboneConfig:
    return BackboneConfig.model_validate({"arch": f"timm/{name}", **more})


def linear(root: Path, *more: str) -> SegmentationConfig:
    """The tiny recipe with a linear head, whatever it says of other heads."""
    plain = recipe(root, *more).model_dump(mode="json")
    plain["model"] = {"name": "linear", "norm": "BN", "layers": 2}
    return SegmentationConfig.model_validate(plain)


def upernet(root: Path, *more: str) -> SegmentationConfig:
    """The tiny recipe with UPerNet, whatever it says of other heads."""
    plain = recipe(root, *more).model_dump(mode="json")
    auxiliary = {"channels": 8}
    plain["model"] = {"name": "upernet", "norm": "BN", "channels": 16, "dropout": 0.0, "auxiliary": auxiliary}
    return SegmentationConfig.model_validate(plain)


def test_four_blocks_stand_for_four_stages() -> None:
    fcn = FCNConfig(name="fcn", output_stride=16)
    assert stages_of(config_of(VIT), fcn) == ("blocks.3", "blocks.5", "blocks.7", "blocks.11")
    large = stages_of(config_of("vit_large_patch16_224"), fcn)
    assert large == ("blocks.7", "blocks.11", "blocks.15", "blocks.23")
    own = FCNConfig(name="fcn", output_stride=16, blocks=(1, 2, 3, 11))
    assert stages_of(config_of(VIT), own)[:2] == ("blocks.1", "blocks.2")
    assert stages_of(config_of(VIT), LinearHeadConfig(name="linear", layers=4))[0] == "blocks.8"
    assert stages_of(config_of("convnext_atto"), LinearHeadConfig(name="linear")) == ("stages.3",)
    with pytest.raises(UserError, match="the last below 12"):
        stages_of(config_of(VIT), FCNConfig(name="fcn", blocks=(1, 2, 3, 12)))
    with pytest.raises(UserError, match="no plain transformer"):
        stages_of(config_of("convnext_atto"), own)


def test_what_does_not_fit_a_transformer_is_refused_with_what_does() -> None:
    with pytest.raises(UserError, match=r"choose model\.output_stride: 16"):
        require_segmentable(config_of(VIT), FCNConfig(name="fcn", output_stride=8))
    with pytest.raises(UserError, match=r"multiples of 14 pixels; \[518, 518\] would do"):
        require_segmentable(config_of(DINOV2), LinearHeadConfig(name="linear"), (512, 512))
    assert [divisor_of(config_of(n)) for n in (VIT, "swin_tiny_patch4_window7_224", "resnext50_32x4d")] == [
        16,
        4,
        1,
    ]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_linear_head_reads_the_last_maps_as_they_are(name: str) -> None:
    about = config_of(name)
    torch.manual_seed(0)
    source = build_backbone(about)
    model = LinearHeadConfig(name="linear", norm="BN", layers=2)
    segmenter = build_segmenter(about, source.state_dict(), model, 3, seed=0).eval()
    side = 4 * divisor_of(about) if "vit" in name else 64
    x = torch.randn(2, 3, side, 2 * side)
    with torch.no_grad():
        maps = list(feature_maps(source.eval(), x).values())[-2:]
        maps[1] = torch.nn.functional.interpolate(maps[1], maps[0].shape[-2:], mode="bilinear")
        found = segmenter.backbone(x)["out"]
    torch.testing.assert_close(found, torch.cat(maps, dim=1), atol=1e-5, rtol=1e-5)
    assert not any(p.requires_grad for p in segmenter.backbone.parameters())
    assert not segmenter.train().backbone.training and segmenter.classifier.bn.training


@pytest.mark.parametrize(
    ("name", "head"), [(VIT, "fcn"), ("convnext_atto", "fcn"), (VIT, "upernet"), ("convnext_atto", "upernet")]
)
def test_a_run_in_torchvision_learns_and_resumes_exactly(name, head, root, tmp_path, monkeypatch) -> None:
    source = write_timm(tmp_path / "source.safetensors", name)
    # The window is smaller than the picture in one direction, larger in the other.
    keys = ["input.crop_size=[32, 64]", "log_every=1", "model.drop_path=0.1", "solver.base_lr=0.02"]
    if head == "upernet":
        config = upernet(root, *keys)
    else:
        config = recipe(root, *keys, f"model.output_stride={16 if name == VIT else 32}")
    evaluate(config, source, tmp_path / "whole")
    found = [row["loss"] for row in read_metrics(tmp_path / "whole" / "metrics.jsonl")]
    assert found[-1] < found[0]
    in_two_parts(lambda: evaluate(config, source, tmp_path / "parts"), 3, monkeypatch)
    for file in ("confusion.json", "metrics.jsonl", "segmenter.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes(), file


def test_a_frozen_backbone_is_the_checkpoints_bit_for_bit(root, tmp_path) -> None:
    from safetensors.torch import load_file

    source = write_timm(tmp_path / "source.safetensors", DINOV2, input_size=56)
    record = evaluate(linear(root, "input.crop_size=[42, 56]"), source, tmp_path / "run")
    assert record.model == "linear on 2 layers"
    trained = load_file(tmp_path / "run" / "segmenter.safetensors")
    for name, value in load_file(source).items():
        assert torch.equal(trained[f"backbone.{name}"], value), name


@pytest.mark.mmseg
class TestMmseg:
    @pytest.mark.parametrize("name", [*NETWORKS, "resnext50_32x4d", "resnetaa50"])
    def test_every_map_is_the_source_networks(self, name: str, tmp_path: Path) -> None:
        source = write_timm(tmp_path / "b.safetensors", name)
        receipt = convert(source, "mmseg", tmp_path / "b.pth")
        assert len(receipt.tensors) == receipt.expected
        assert receipt.largest_difference is not None and receipt.largest_difference <= 1e-4

    @pytest.mark.parametrize(
        ("name", "head"),
        [
            (VIT, "fcn"),
            (VIT, "linear"),
            ("convnext_atto", "linear"),
            (DINOV2, "linear"),
            (VIT, "upernet"),
            ("convnext_atto", "upernet"),
        ],
    )
    def test_both_libraries_give_the_same_logits_and_losses(self, name: str, head: str, tmp_path) -> None:
        install()
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        from carryover.transfer.tasks.segmentation.mmseg.model import build_model, model_settings

        options = {"input_size": 56} if name == DINOV2 else {}
        side = 56 if name == DINOV2 else 64
        keys = ("model.dropout=0", f"input.crop_size=[{side}, {side}]", *FCN)
        config = {"fcn": recipe, "linear": linear, "upernet": upernet}[head](tmp_path, *keys)
        source = write_timm(tmp_path / "b.safetensors", name, **options)
        backbone, about = load_backbone(source)
        ours = build_segmenter(about.backbone, backbone.state_dict(), config.model, len(CLASSES), 0)
        receipt = convert(source, "mmseg", tmp_path / "b.pth")
        settings = model_settings(config, about.backbone, len(CLASSES), tmp_path / "b.pth", "BN")
        theirs, carried = build_model(settings, receipt, 1)
        assert carried == len(receipt.tensors)
        heads = {mmseg_name(n): v for n, v in ours.state_dict().items() if not n.startswith("backbone.")}
        missing, unexpected = theirs.load_state_dict(heads, strict=False)
        assert not unexpected and all(n.startswith("backbone.") for n in missing)
        images = torch.randn(2, 3, side, side)
        labels = torch.randint(0, len(CLASSES), (2, side, side))
        samples = [SegDataSample(gt_sem_seg=PixelData(data=label[None])) for label in labels]
        with torch.no_grad():
            mine = ours.eval()(images)["out"]
            yours = theirs.eval().encode_decode(images, [{"img_shape": (side, side)}] * 2)
            torch.testing.assert_close(mine, yours, atol=1e-4, rtol=1e-4)
            mine_lost = losses(ours.train()(images), labels, config.model)
            yours_lost = theirs.train().loss(images, samples)
            for part, own in (("loss_seg", "decode.loss_ce"), ("loss_aux", "aux.loss_ce")):
                if part in mine_lost:
                    torch.testing.assert_close(mine_lost[part], yours_lost[own], atol=1e-4, rtol=1e-4)
            window = (side, side)
            image = torch.randn(1, 3, side + 28, side + 14) if name == DINOV2 else torch.randn(1, 3, 80, 96)
            slid = slide(ours.eval(), image, window, (side - 14, side - 14))
        assert slid.shape[-2:] == image.shape[-2:]

    @pytest.mark.parametrize(
        ("name", "head", "rate"),
        [(VIT, "upernet", 0.02), (VIT, "linear", 0.05), ("resnext50_32x4d", "linear", 0.3)],
    )
    def test_a_run_learns_and_is_proven(self, name: str, head: str, rate, root, tmp_path: Path) -> None:
        source = write_timm(tmp_path / "source.safetensors", name)
        lengths = ("log_every=1", "solver.max_iter=12", f"solver.base_lr={rate}")
        keys = ("backend=mmseg", "input.crop_size=[64, 64]", *lengths)
        plain = linear(root, *keys).model_dump(mode="json")
        if head == "upernet":
            plain["model"] = UPerNetConfig(name="upernet", channels=16, norm="BN").model_dump(mode="json")
        record = evaluate(SegmentationConfig.model_validate(plain), source, tmp_path / "run")
        found = [row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
        assert sum(found[-4:]) < sum(found[:4])
        tensors = [n for n in load_backbone(source)[0].state_dict() if not n.endswith("num_batches_tracked")]
        assert record.facts["carried_tensors"] >= len(tensors)
