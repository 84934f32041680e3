"""Every recipe as a model of Detectron2: built, proven to carry the checkpoint, able to take a step."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from carryover.configs import WorkError, load
from carryover.core.backbones.build import feature_maps
from carryover.core.backbones.inspection import load_backbone
from carryover.core.backbones.source import Source, open_source
from carryover.core.data.objects.splits import read_splits
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.formats.claims import Work
from carryover.core.training.distributed import Ranks
from carryover.transfer.tasks.base import Run
from carryover.transfer.tasks.detection.task import backend_of
from carryover.transfer.tasks.identity import identify
from tests.core.backbones.manifests import manifest
from tests.transfer.convert.backbones import write_backbone
from tests.transfer.tasks.detection.test_detection_config import PUBLISHED

pytestmark = pytest.mark.detectron2
ONE_PROCESS = Ranks(0, 1, torch.device("cpu"))
SMALL = [
    "backend=detectron2",
    "model.mask_dim=16",
    "model.rpn.post_nms_train=16",
    "model.roi.batch_per_image=8",
    "input.min_sizes_train=[64]",
    "input.min_size_sampling=choice",
    "solver.ims_per_batch=2",
    "workers=0",
]
SMALL_FPN = ["model.fpn_dim=16", "model.box_fc_dim=32", "model.box_conv_dim=16", "model.mask_convs=1"]
VOC = ["data.classes=[disk, star, triangle, cross]", "data.train=[2007/trainval]"]
COCO = [
    "data.train.annotations=annotations/train.json",
    "data.train.images=VOC2007/JPEGImages",
    "data.test.annotations=annotations/test.json",
    "data.test.images=VOC2007/JPEGImages",
]


@pytest.fixture(scope="module")
def conversion(checkpoint, tmp_path_factory) -> Path:
    from carryover.transfer.tasks.detection.detectron2.backend import BACKBONE_NAME, converted

    folder = tmp_path_factory.mktemp("converted")
    converted(_source(checkpoint), folder / BACKBONE_NAME, ONE_PROCESS)
    return folder


@pytest.fixture
def out(conversion, tmp_path) -> Path:
    """A run's directory in which the checkpoint is converted already; a run takes the file away again."""
    for file in conversion.iterdir():
        (tmp_path / file.name).hardlink_to(file)
    return tmp_path


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_recipe_builds_proves_its_backbone_and_takes_a_step(name, shapes, checkpoint, out):
    with _detector(_recipe(name, shapes), checkpoint, out) as detector:
        assert detector.carried == 100
        model, optimizer = detector.model, detector.build_optimizer()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        (step,) = detector.steps(0, 1)
        model.train()
        from detectron2.utils.events import EventStorage

        with EventStorage():
            losses = model(*step)
        assert ("loss_mask" in losses) is detector.run.config.model.masks
        total = sum(losses.values())
        assert math.isfinite(float(total.detach()))
        total.backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        optimizer.step()
        # Nothing is frozen, from the stem to what is new.
        moved = {n for n, p in model.named_parameters() if not torch.equal(p.detach(), before[n])}
        stem = "backbone.bottom_up.stem" if "fpn" in name else "backbone.stem"
        assert {f"{stem}.conv1.weight", "proposal_generator.rpn_head.conv.weight"} <= moved
        res5 = "roi_heads.res5" if "c4" in name else "backbone.bottom_up.res5"
        assert f"{res5}.0.conv1.weight" in moved
        if "c4" in name:
            assert "roi_heads.res5.norm.weight" in moved
        groups = {g["weight_decay"] for g in optimizer.param_groups}
        assert groups == {1e-4, 0.0}


@pytest.mark.parametrize(("arch", "extra_norm"), [("resnet18", False), ("resnet34", True)])
def test_res5_of_basic_blocks_is_the_backbones_layer4(arch, extra_norm, shapes, tmp_path):
    checkpoint = write_backbone(tmp_path / "backbone.safetensors", arch=arch)
    recipe = _recipe("voc0712_c4_24k", shapes, f"model.extra_norm={extra_norm}")
    backbone, _ = load_backbone(checkpoint)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with _detector(recipe, checkpoint, tmp_path) as detector, torch.no_grad():
        model = detector.model.eval()
        expected = feature_maps(backbone.eval(), images)
        features = model.backbone(images)["res4"]
        torch.testing.assert_close(features, expected["layer3"], atol=1e-4, rtol=1e-4)
        res5 = model.roi_heads.res5
        assert hasattr(res5, "norm") is extra_norm
        assert model.roi_heads.box_predictor.cls_score.in_features == 512
        blocks = torch.nn.Sequential(*[block for name, block in res5.named_children() if name != "norm"])
        torch.testing.assert_close(blocks(features), expected["layer4"], atol=1e-4, rtol=1e-4)
        if extra_norm:
            normed = res5.norm(expected["layer4"])
            torch.testing.assert_close(res5(features), normed, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("recipe", "file"),
    [
        ("voc0712_c4_24k", "faster_rcnn_R_50_C4_extranorm"),
        ("coco_c4_1x", "mask_rcnn_R_50_C4_extranorm"),
        ("voc0712_fpn_24k", "faster_rcnn_R_50_FPN"),
        ("coco_fpn_1x", "mask_rcnn_R_50_FPN"),
    ],
)
def test_resnet50_has_the_tensors_of_the_models_that_papers_use(recipe, file):
    from carryover.transfer.tasks.detection.detectron2.config import Surroundings, build_cfg

    config = load("transfer", recipe, ["backend=detectron2", "model.norm=BN"])
    around = Surroundings(20, "a", "b", "polygon", Path("backbone.pkl"), Path("run"), "meta", 1)
    from detectron2.modeling import build_model

    with torch.device("meta"):
        built = build_model(build_cfg(config, BackboneConfig(arch="resnet50"), around)).state_dict()
    backbone = ("backbone.bottom_up.", "backbone.stem.", "backbone.res", "roi_heads.res5.")
    shapes_ = {name: tuple(value.shape) for name, value in built.items() if name.startswith(backbone)}
    expected = {name: shape for name, shape in manifest(file).items() if name.startswith(backbone)}
    assert shapes_ == expected


def test_freezing_all_five_stages_reaches_res5_in_the_heads(shapes, checkpoint, out):
    recipe = _recipe("voc0712_c4_24k", shapes, "model.freeze_at=5")
    with _detector(recipe, checkpoint, out) as detector:
        assert detector.carried == 100
        trained = {n for n, p in detector.model.named_parameters() if p.requires_grad}
        assert {n for n in trained if n.startswith(("backbone", "roi_heads.res5"))} == {
            "roi_heads.res5.norm.weight",
            "roi_heads.res5.norm.bias",
        }


def test_bfloat16_ends_before_boxes_are_computed(shapes, checkpoint, out):
    recipe = _recipe("coco_fpn_1x", shapes, "solver.precision=bf16")
    with _detector(recipe, checkpoint, out) as detector:
        model = detector.model.train()
        (step,) = detector.steps(0, 1)
        from detectron2.utils.events import EventStorage

        with torch.autocast("cpu", torch.bfloat16), EventStorage():
            features = model.backbone(torch.zeros(1, 3, 64, 64))
            assert {f.dtype for f in features.values()} == {torch.float32}
            # They were computed in bfloat16, whose numbers end in sixteen zero bits.
            assert all(torch.equal(f, f.bfloat16().float()) for f in features.values())
            assert all(loss.dtype == torch.float32 for loss in model(*step).values())


class TestSabotage:
    """A model in which any backbone tensor kept its random value stops before iteration 0."""

    def test_weights_that_were_never_loaded(self, shapes, checkpoint, out, monkeypatch):
        from detectron2.checkpoint import DetectionCheckpointer

        monkeypatch.setattr(DetectionCheckpointer, "load", lambda self, path: {})
        with (
            pytest.raises(WorkError, match=r"not the checkpoint's values: 'conv1\.weight'"),
            _detector(_recipe("voc0712_fpn_24k", shapes), checkpoint, out),
        ):
            pass

    @pytest.mark.parametrize(
        ("name", "tensor", "source"),
        [
            ("voc0712_c4_24k", "roi_heads.res5.1.conv2.weight", r"layer4\.1\.conv2\.weight"),
            ("voc0712_c4_24k", "backbone.res2.0.conv1.norm.running_var", r"layer1\.0\.bn1\.running_var"),
            ("coco_fpn_1x", "backbone.bottom_up.stem.conv1.norm.bias", r"bn1\.bias"),
        ],
    )
    def test_one_tensor_that_kept_its_value(self, name, tensor, source, shapes, checkpoint, out, monkeypatch):
        from detectron2.checkpoint import DetectionCheckpointer

        load_ = DetectionCheckpointer.load

        def all_but_one(self, path):
            kept = self.model.state_dict()[tensor].clone()
            load_(self, path)
            self.model.state_dict()[tensor].copy_(kept)

        monkeypatch.setattr(DetectionCheckpointer, "load", all_but_one)
        with (
            pytest.raises(WorkError, match=rf"not the checkpoint's values: '{source}'"),
            _detector(_recipe(name, shapes), checkpoint, out),
        ):
            pass

    def test_res5_that_detectron2_builds_of_bottlenecks(self, shapes, checkpoint, out, monkeypatch):
        # As without our heads: ResNet-18's res5 would be three bottlenecks of random weights.
        from detectron2.modeling.roi_heads import Res5ROIHeads

        from carryover.transfer.tasks.detection.detectron2 import heads as detectron2_heads

        build = Res5ROIHeads.__dict__["_build_res5_block"]
        monkeypatch.setattr(detectron2_heads.Res5ROIHeadsOfBackbone, "_build_res5_block", build)
        recipe = _recipe("voc0712_c4_24k", shapes, "model.extra_norm=false")
        with pytest.raises(WorkError, match=r"layer4"), _detector(recipe, checkpoint, out):
            pass


def _recipe(name: str, shapes: Path, *more: str) -> Any:
    # So few images do not show every class.
    own = [
        *SMALL,
        "data.defects.absent_class=keep",
        f"data.root={shapes}",
        *(VOC if name.startswith("voc") else COCO),
    ]
    return load("transfer", name, [*own, *(SMALL_FPN if "fpn" in name else []), *more])


def _source(checkpoint: Path) -> Source:
    return open_source(checkpoint)


def _detector(recipe: Any, checkpoint: Path, out: Path) -> Any:
    splits = read_splits(recipe.data, needs_masks=recipe.model.masks)
    source = _source(checkpoint)
    work = Work(out, recipe, identify(recipe, source))
    return backend_of(recipe).build(Run(recipe, splits, source, out, ONE_PROCESS, work))
