"""Detectors around pretrained backbones: what is carried, frozen, normalized, and what comes out."""

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from carryover.configs import UserError, WorkError
from carryover.core.backbones.build import build_backbone, feature_maps
from carryover.core.formats.backbone import BackboneConfig
from carryover.transfer.tasks.detection.config import InputConfig
from carryover.transfer.tasks.detection.model_config import (
    C4Config,
    C4RPNConfig,
    FPNConfig,
    FPNRPNConfig,
    ROIConfig,
)
from carryover.transfer.tasks.detection.torchvision.backbone import assert_carried
from carryover.transfer.tasks.detection.torchvision.model import build_detector
from carryover.transfer.tasks.detection.torchvision.rpn import Anchors

FEW = {
    "pre_nms_train": 40,
    "pre_nms_test": 40,
    "post_nms_train": 16,
    "post_nms_test": 8,
    "batch_per_image": 16,
}
ROI = ROIConfig(batch_per_image=4)
FPN = FPNConfig(
    name="fpn", fpn_dim=16, box_fc_dim=16, mask_dim=16, mask_convs=1, roi=ROI, rpn=FPNRPNConfig(**FEW)
)
C4 = C4Config(name="c4", mask_dim=16, roi=ROI, rpn=C4RPNConfig(**FEW))


@pytest.mark.parametrize(
    ("backbone", "model", "masks"),
    [
        (BackboneConfig(arch="resnet18"), FPN, False),
        (BackboneConfig(arch="resnet18"), FPN, True),
        (BackboneConfig(arch="resnet18"), C4, False),
        (BackboneConfig(arch="resnet18", width=2), FPN, False),
        (BackboneConfig(arch="mobilenet_v3_small"), FPN, False),
        (BackboneConfig(arch="resnet50"), C4, True),
    ],
    ids=["faster fpn r18", "mask fpn r18", "faster c4 r18", "faster fpn r18 x2", "fpn mobile", "mask c4 r50"],
)
def test_trains_and_detects(backbone, model, masks):
    detector, weights, model = _detector(backbone, model.model_copy(update={"masks": masks}))
    assert assert_carried(detector, weights, model) == sum("num_batches" not in n for n in weights)
    losses = detector.train()(*_batch(masks))
    assert set(losses) == {
        "loss_classifier",
        "loss_box_reg",
        "loss_objectness",
        "loss_rpn_box_reg",
        *(("loss_mask",) if masks else ()),
    }
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
    detector.roi_heads.score_thresh = 0.0
    with torch.no_grad():
        found = detector.eval()(_batch(masks)[0])
    assert len(found) == 2
    assert len(found[0]["boxes"]) > 0
    assert found[0]["labels"].min() >= 1
    assert found[0]["labels"].max() <= 2
    assert ("masks" in found[0]) == masks
    if masks:
        assert found[0]["masks"].shape[1:] == ((28, 28) if model.name == "fpn" else (14, 14))


@pytest.mark.parametrize("model", [FPN, C4], ids=["fpn", "c4"])
def test_the_detector_sees_the_features_of_the_checkpoint(model):
    backbone = BackboneConfig(arch="resnet18")
    detector, weights, _ = _detector(backbone, model)
    reference = build_backbone(backbone)
    reference.load_state_dict(weights)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        found = detector.eval().backbone.body(images)
        expected = feature_maps(reference.eval(), images)
    names = ["layer1", "layer2", "layer3", "layer4"] if model.name == "fpn" else ["layer3"]
    assert len(found) == len(names)
    for name, value in zip(names, found.values(), strict=True):
        torch.testing.assert_close(value, expected[name], atol=1e-4, rtol=1e-4)


def test_c4_turns_regions_into_res5_features_through_the_checkpoints_layer4():
    detector, weights, _ = _detector(BackboneConfig(arch="resnet18"), C4)
    reference = build_backbone(BackboneConfig(arch="resnet18"))
    reference.load_state_dict(weights)
    regions = torch.randn(3, 256, 14, 14)
    with torch.no_grad():
        found = detector.eval().roi_heads.box_head(regions)
        expected = detector.roi_heads.box_head.norm(reference.eval().layer4(regions))
    assert found.shape == (3, 512, 7, 7)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_c4_proposes_from_fifteen_anchors_on_a_stride_of_sixteen():
    detector, _, _ = _detector(BackboneConfig(arch="resnet18"), C4Config(name="c4"))
    images, _ = detector.transform(_batch(False)[0])
    anchors = detector.rpn.anchor_generator(images, [torch.zeros(2, 1, 6, 9)])[0].view(6, 9, 15, 4)
    sides = (anchors[2, 5, :, 2:] - anchors[2, 5, :, :2]).double()
    areas = [32.0**2] * 3 + [64.0**2] * 3 + [128.0**2] * 3 + [256.0**2] * 3 + [512.0**2] * 3
    torch.testing.assert_close(sides.prod(dim=1), torch.tensor(areas).double(), atol=0.1, rtol=1e-6)
    torch.testing.assert_close((sides[:, 1] / sides[:, 0])[:3].float(), torch.tensor([0.5, 1.0, 2.0]))
    centers = (anchors[2, 5, :, 2:] + anchors[2, 5, :, :2]) / 2
    torch.testing.assert_close(centers, torch.tensor([80.0, 32.0]).expand(15, 2))


def test_the_coarsest_level_keeps_its_stride_on_any_image():
    # 800 pixels make 25 cells at stride 32 and 13 at stride 64: 800 // 13 would be 61.
    from torchvision.models.detection.image_list import ImageList

    anchors = Anchors([(32,), (64,)], (1.0,), (32, 64))
    images = ImageList(torch.zeros(1, 3, 800, 800), [(800, 800)])
    found = anchors(images, [torch.zeros(1, 1, 25, 25), torch.zeros(1, 1, 13, 13)])[0]
    coarse = found[25 * 25 :].view(13, 13, 4)
    assert coarse[0, 12].tolist() == [12 * 64 - 32, -32, 12 * 64 + 32, 32]


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        ("FrozenBN", FrozenBatchNorm2d),
        ("BN", nn.BatchNorm2d),
        ("SyncBN", nn.SyncBatchNorm),
        ("naiveSyncBN", nn.SyncBatchNorm),
    ],
)
def test_norm_of_the_backbone(norm, kind):
    detector, weights, model = _detector(
        BackboneConfig(arch="resnet18"), C4.model_copy(update={"norm": norm})
    )
    assert type(detector.backbone.body["bn1"]) is kind
    assert type(detector.roi_heads.box_head.layer4[1].bn2) is kind
    assert type(detector.roi_heads.box_head.norm) is kind
    assert assert_carried(detector, weights, model) == 100


def test_norms_of_the_new_layers():
    model = FPN.model_copy(update={"masks": True, "fpn_norm": "SyncBN", "head_norm": "BN", "box_convs": 2})
    detector, _, _ = _detector(BackboneConfig(arch="resnet18"), model)
    assert type(detector.backbone.fpn.inner_blocks[0][1]) is nn.SyncBatchNorm
    assert detector.backbone.fpn.layer_blocks[3][0].bias is None
    assert type(detector.roi_heads.box_head[1][1]) is nn.BatchNorm2d
    assert type(detector.roi_heads.mask_head[0][1]) is nn.BatchNorm2d


def test_frozen_stages_keep_weights_and_statistics():
    detector, weights, _ = _detector(
        BackboneConfig(arch="resnet18"), FPN.model_copy(update={"freeze_at": 2, "norm": "BN"})
    )
    detector.train()
    optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=0.1)
    sum(detector(*_batch(False)).values()).backward()
    optimizer.step()
    after = detector.state_dict()
    body = "backbone.body."
    frozen = [n for n in weights if n.startswith(("conv1", "bn1", "layer1")) and "num_batches" not in n]
    assert all(torch.equal(after[body + n], weights[n]) for n in frozen)
    assert not torch.equal(after[body + "layer2.0.conv1.weight"], weights["layer2.0.conv1.weight"])
    assert not torch.equal(after[body + "layer2.0.bn1.running_mean"], weights["layer2.0.bn1.running_mean"])


def test_new_layers_depend_on_the_seed_alone():
    torch.manual_seed(1)
    one, _, _ = _detector(BackboneConfig(arch="resnet18"), FPN, seed=5)
    torch.manual_seed(2)
    two, _, _ = _detector(BackboneConfig(arch="resnet18"), FPN, seed=5)
    three, _, _ = _detector(BackboneConfig(arch="resnet18"), FPN, seed=6)
    states = [d.state_dict() for d in (one, two, three)]
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    assert not torch.equal(states[0]["rpn.head.cls_logits.weight"], states[2]["rpn.head.cls_logits.weight"])


class TestProofOfCarriage:
    def test_a_tensor_that_differs_is_named(self):
        detector, weights, model = _detector(BackboneConfig(arch="resnet18"), FPN)
        with torch.no_grad():
            detector.backbone.body["layer3"][1].bn2.running_var[7] += 1e-6
        with pytest.raises(WorkError, match=r"backbone\.body\.layer3\.1\.bn2\.running_var"):
            assert_carried(detector, weights, model)

    def test_a_random_res5_of_a_c4_detector_is_noticed(self):
        detector, weights, model = _detector(BackboneConfig(arch="resnet18"), C4)
        nn.init.normal_(detector.roi_heads.box_head.layer4[0].conv1.weight)
        with pytest.raises(WorkError, match=r"layer4\.0\.conv1\.weight"):
            assert_carried(detector, weights, model)

    def test_a_checkpoint_that_lacks_a_tensor_is_noticed(self):
        detector, weights, model = _detector(BackboneConfig(arch="resnet18"), FPN)
        weights.pop("layer2.1.conv2.weight")
        with pytest.raises(WorkError, match=r"layer2\.1\.conv2\.weight"):
            assert_carried(detector, weights, model)

    def test_a_tensor_the_detector_lacks_is_noticed(self):
        detector, weights, model = _detector(BackboneConfig(arch="resnet18"), FPN)
        weights["layer1.0.conv3.weight"] = torch.zeros(1)
        with pytest.raises(WorkError, match=r"layer1\.0\.conv3\.weight"):
            assert_carried(detector, weights, model)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (BackboneConfig(arch="resnet18", stem="cifar"), "stem 'imagenet'"),
        (BackboneConfig(arch="mobilenet_v2", stem="cifar"), "stem 'imagenet'"),
    ],
)
def test_backbones_without_stages_of_those_strides_are_refused(backbone, message):
    with pytest.raises(UserError, match=message):
        build_detector(backbone, build_backbone(backbone).state_dict(), FPN, InputConfig(), 2, seed=0)
    if not backbone.is_resnet:
        whole = backbone.model_copy(update={"stem": "imagenet"})
        with pytest.raises(UserError, match=r"mobilenet_v2: a C4 detector .* model\.name: fpn"):
            build_detector(whole, build_backbone(whole).state_dict(), C4, InputConfig(), 2, seed=0)


def _detector(backbone, model, seed=0):
    torch.manual_seed(0)
    weights = dict(build_backbone(backbone).state_dict())
    return build_detector(backbone, weights, model, InputConfig(), 2, seed), weights, model


def _batch(masks):
    generator = torch.Generator().manual_seed(1)
    images = [
        torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
        for size in ((64, 96), (60, 70))
    ]
    targets = []
    for image in images:
        target = {
            "boxes": torch.tensor([[4.0, 6.0, 40.0, 50.0], [30.0, 10.0, 62.0, 44.0]]),
            "labels": torch.tensor([1, 2]),
        }
        if masks:
            target["masks"] = torch.zeros(2, *image.shape[1:], dtype=torch.uint8)
            target["masks"][:, 12:40, 32:38] = 1
        targets.append(target)
    return images, targets
