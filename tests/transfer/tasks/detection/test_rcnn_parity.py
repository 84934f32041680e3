"""Our detectors against Detectron2's: the same weights give the same features, losses and detections."""

import numpy as np
import pytest
import torch

from carryover.core.backbones.build import build_backbone
from carryover.core.formats.backbone import BackboneConfig
from carryover.transfer.tasks.detection.config import InputConfig
from carryover.transfer.tasks.detection.model_config import (
    C4Config,
    C4RPNConfig,
    FPNConfig,
    FPNRPNConfig,
    ROIConfig,
)
from carryover.transfer.tasks.detection.torchvision.masks import paste_masks
from carryover.transfer.tasks.detection.torchvision.model import build_detector

pytestmark = pytest.mark.detectron2
detectron2 = pytest.importorskip("detectron2", reason="Detectron2 is not importable: put it on PYTHONPATH")

CLASSES = 3
SMALL_ROI = ROIConfig(batch_per_image=16, score_threshold=0.0)
RPN_LIMITS = {
    "pre_nms_train": 60,
    "pre_nms_test": 50,
    "post_nms_train": 40,
    "post_nms_test": 20,
    "batch_per_image": 32,
}
DETECTORS = {
    "faster fpn r18": (FPNConfig(name="fpn", norm="BN", fpn_dim=32, box_fc_dim=64), "resnet18"),
    "mask fpn r18, norms everywhere": (
        FPNConfig(
            name="fpn",
            masks=True,
            norm="BN",
            fpn_norm="BN",
            head_norm="BN",
            fpn_dim=32,
            box_convs=2,
            box_conv_dim=32,
            box_fcs=1,
            box_fc_dim=64,
            mask_convs=2,
            mask_dim=32,
        ),
        "resnet18",
    ),
    "mask c4 r18, res5 of basic blocks": (
        C4Config(name="c4", masks=True, norm="BN", mask_dim=32),
        "resnet18",
    ),
    "mask c4 r50": (C4Config(name="c4", masks=True, norm="BN", mask_dim=32), "resnet50"),
    "faster c4 r50, no extra norm": (C4Config(name="c4", norm="BN", extra_norm=False), "resnet50"),
}


@pytest.fixture(params=DETECTORS, scope="module")
def pair(request):
    from tests.transfer.tasks.detection.detectron2_twin import give_weights, twin

    config, arch = DETECTORS[request.param]
    limits = (FPNRPNConfig if config.name == "fpn" else C4RPNConfig)(**RPN_LIMITS)
    sizes = (16, 32, 64, 128, 256) if config.name == "fpn" else (16, 32, 64)
    config = config.model_copy(update={"rpn": limits, "roi": SMALL_ROI, "anchor_sizes": sizes})
    torch.manual_seed(3)
    backbone = build_backbone(BackboneConfig(arch=arch))
    _settle(backbone)
    about = BackboneConfig(arch=arch)
    ours = build_detector(about, backbone.state_dict(), config, InputConfig(), CLASSES, seed=1)
    # Fresh predictors answer almost nothing; let every output depend on its input.
    for name, parameter in ours.named_parameters():
        if "predictor" in name or "rpn.head" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    theirs = twin(config, arch, CLASSES)
    give_weights(ours, theirs, config)
    return config, ours, theirs


def test_features_agree(pair):
    _, ours, theirs = pair
    ours.eval(), theirs.eval()
    images, _ = _images(sizes=((96, 128),))
    with torch.no_grad():
        batch, _ = ours.transform(images)
        found = list(ours.backbone(batch.tensors).values())
        expected = list(theirs.backbone(theirs.preprocess_image([{"image": images[0]}]).tensor).values())
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_detections_agree(pair):
    config, ours, theirs = pair
    ours.eval(), theirs.eval()
    images, _ = _images(sizes=((100, 140), (90, 130)))
    for image in images:
        height, width = image.shape[-2:]
        with torch.no_grad():
            found = ours([image])[0]
            expected = theirs.inference([{"image": image, "height": height, "width": width}])[0]["instances"]
        assert len(found["boxes"]) == len(expected) > 5
        torch.testing.assert_close(found["boxes"], expected.pred_boxes.tensor, atol=2e-3, rtol=1e-4)
        torch.testing.assert_close(found["scores"], expected.scores, atol=1e-5, rtol=1e-4)
        assert torch.equal(found["labels"] - 1, expected.pred_classes)
        if config.masks:
            pasted = paste_masks(found["masks"], found["boxes"], height, width)
            differing = (pasted != expected.pred_masks).float().mean()
            assert differing < 1e-4


def test_losses_agree_when_the_same_regions_are_drawn(pair):
    config, ours, theirs = pair
    from detectron2.structures import BitMasks, Boxes, Instances
    from detectron2.utils.events import EventStorage

    ours.train(), theirs.train()
    before = {n: v.clone() for n, v in ours.state_dict().items()}, theirs.state_dict()
    before = before[0], {n: v.clone() for n, v in before[1].items()}
    images, targets = _images(sizes=((96, 128), (96, 128)))
    torch.manual_seed(11)
    found = ours(images, targets if config.masks else [_without_masks(t) for t in targets])
    inputs = []
    for image, target in zip(images, targets, strict=True):
        instances = Instances(tuple(image.shape[-2:]))
        instances.gt_boxes = Boxes(target["boxes"])
        instances.gt_classes = target["labels"] - 1
        instances.gt_masks = BitMasks(target["masks"])
        inputs.append({"image": image, "instances": instances})
    torch.manual_seed(11)
    with EventStorage():
        expected = theirs(inputs)
    ours.load_state_dict(before[0])
    theirs.load_state_dict(before[1])
    pairs = {
        "loss_classifier": "loss_cls",
        "loss_box_reg": "loss_box_reg",
        "loss_objectness": "loss_rpn_cls",
        "loss_rpn_box_reg": "loss_rpn_loc",
        "loss_mask": "loss_mask",
    }
    assert len(found) == len(expected)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[pairs[name]], atol=1e-5, rtol=1e-4)


def _settle(backbone: torch.nn.Module) -> None:
    """Make features as large as they are in life: quiet residual branches, the statistics of some images."""
    images, _ = _images(sizes=((96, 128), (96, 128)))
    for name, parameter in backbone.named_parameters():
        if name.endswith(("bn2.weight", "bn3.weight")):
            torch.nn.init.constant_(parameter, 0.3)
    backbone.train()
    with torch.no_grad():
        for _ in range(40):
            backbone(torch.stack(images).float().sub(120).div(60))


def _images(sizes):
    generator = torch.Generator().manual_seed(5)
    images, targets = [], []
    for height, width in sizes:
        images.append(torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator))
        boxes = torch.tensor([[10.0, 12.0, 50.0, 60.0], [40.0, 30.0, 90.5, 70.25], [70.0, 5.0, 88.0, 25.0]])
        masks = torch.zeros((3, height, width), dtype=torch.uint8)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y0 + 3 : y1 - 2, x0 + 2 : x1 - 4] = 1
        targets.append({"boxes": boxes, "labels": torch.tensor([1, 3, 2]), "masks": masks})
    return images, targets


def _without_masks(target):
    return {name: value for name, value in target.items() if name != "masks"}


def test_pasting_agrees_with_detectron2():
    from detectron2.layers import paste_masks_in_image

    generator = torch.Generator().manual_seed(0)
    masks = torch.rand((20, 28, 28), generator=generator)
    corners = torch.from_numpy(np.random.default_rng(0).uniform(-10, 60, (20, 2)).astype(np.float32))
    sides = torch.rand((20, 2), generator=generator) * 40 + 0.5
    boxes = torch.cat([corners, corners + sides], dim=1)
    boxes[:, 0::2].clamp_(0, 80)
    boxes[:, 1::2].clamp_(0, 50)
    boxes = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
    expected = paste_masks_in_image(masks[: len(boxes)], boxes, (50, 80))
    assert torch.equal(paste_masks(masks[: len(boxes)], boxes, 50, 80), expected)
