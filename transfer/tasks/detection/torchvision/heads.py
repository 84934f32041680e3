"""The second stage on torchvision's RoIHeads: Detectron2's losses and pooling, C4's shared res5 features."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference
from torchvision.ops.poolers import LevelMapper

from carryover.transfer.tasks.detection.model_config import C4Config, FPNConfig
from carryover.transfer.tasks.detection.torchvision.backbone import Res5Head, norm_factory
from carryover.transfer.tasks.detection.torchvision.masks import mask_targets
from carryover.transfer.tasks.detection.torchvision.region_align import region_align


class RegionPool(nn.Module):
    """ROIAlign of Detectron2 ("ROIAlignV2"): half-pixel aligned, as many samples as the bin has pixels.

    torchvision's MultiScaleRoIAlign can do neither. Regions go to levels by Eq. 1 of the FPN paper.
    """

    def __init__(self, size: int, strides: Sequence[float]) -> None:
        super().__init__()
        self.size = size
        self.strides = tuple(strides)
        # Levels are chosen as for the nearest powers of two: those of 3.5 to 28 pixels as of 4 to 32.
        finest = round(math.log2(strides[0]))
        self.level_of = LevelMapper(finest, finest + len(strides) - 1)

    def forward(self, features: dict[str, Tensor], boxes: list[Tensor]) -> Tensor:
        """Cut `boxes` (pixels of the input) out of the pooled levels: (regions, channels, size, size)."""
        levels = list(features.values())[: len(self.strides)]
        image = torch.cat([torch.full_like(b[:, :1], i) for i, b in enumerate(boxes)])
        regions = torch.cat([image, torch.cat(boxes)], dim=1)
        if len(levels) == 1:
            return region_align(levels[0], regions, self.size, 1.0 / self.strides[0])
        level = self.level_of(boxes)
        order, pooled = [], []
        for index, (feature, stride) in enumerate(zip(levels, self.strides)):
            here = torch.where(level == index)[0]
            if len(here):
                order.append(here)
                pooled.append(region_align(feature, regions[here], self.size, 1.0 / stride))
        if not pooled:
            return region_align(levels[0], regions, self.size, 1.0 / self.strides[0])
        return torch.cat(pooled)[torch.cat(order).argsort()]


class _Heads(RoIHeads):
    """Parts shared by both detectors; `masks` of the targets are uint8 at the original resolution."""

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        if self.training:
            assert targets is not None
            return [], self._losses(features, proposals, image_shapes, targets)
        _, vectors = self._box_features(features, proposals)
        logits, deltas = self.box_predictor(vectors)
        found = self.postprocess_detections(logits.float(), deltas.float(), proposals, image_shapes)
        results = [{"boxes": b, "scores": s, "labels": k} for b, s, k in zip(*found)]
        if self.has_mask() and any(len(r["boxes"]) for r in results):
            logits = self._mask_logits(features, [r["boxes"] for r in results])
            masks = maskrcnn_inference(logits.float(), [r["labels"] for r in results])
        else:
            masks = [r["boxes"].new_zeros((len(r["boxes"]), 1, 1, 1)) for r in results]
        return [r | {"masks": m[:, 0]} if self.has_mask() else r for r, m in zip(results, masks)], {}

    def _losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        proposals, matched, labels, regression = self.select_training_samples(proposals, targets)
        regions, vectors = self._box_features(features, proposals)
        logits, deltas = self.box_predictor(vectors)
        losses = box_losses(logits.float(), deltas.float(), torch.cat(labels), torch.cat([*regression]))
        if self.has_mask():
            positive = [torch.where(k > 0)[0] for k in labels]
            boxes = [p[i] for p, i in zip(proposals, positive)]
            objects = [m[i] for m, i in zip(matched, positive)]
            mask_logits = self._train_mask_logits(features, regions, boxes, torch.cat(labels) > 0)
            kinds = torch.cat([k[i] for k, i in zip(labels, positive)])
            truth = torch.cat(
                [
                    mask_targets(t["masks"], b, o, shape, mask_logits.shape[-1])
                    for t, b, o, shape in zip(targets, boxes, objects, image_shapes)
                ]
            )
            losses["loss_mask"] = mask_loss(mask_logits.float(), kinds, truth)
        return losses

    @abstractmethod
    def _box_features(self, features: dict[str, Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the pooled maps of all regions and the vector that each is judged by."""

    @abstractmethod
    def _mask_logits(self, features: dict[str, Tensor], boxes: list[Tensor]) -> Tensor:
        """Return mask logits (regions, classes, side, side)."""

    @abstractmethod
    def _train_mask_logits(
        self, features: dict[str, Tensor], regions: Tensor, boxes: list[Tensor], positive: Tensor
    ) -> Tensor:
        """Return the mask logits of the positive regions, whose boxes are given."""


class FPNHeads(_Heads):
    """Regions from the pyramid's levels; boxes and masks have heads of their own."""

    def _box_features(self, features: dict[str, Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        regions = self.box_roi_pool(features, boxes)
        return regions, self.box_head(regions)

    def _mask_logits(self, features: dict[str, Tensor], boxes: list[Tensor]) -> Tensor:
        logits: Tensor = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes)))
        return logits

    def _train_mask_logits(
        self, features: dict[str, Tensor], regions: Tensor, boxes: list[Tensor], positive: Tensor
    ) -> Tensor:
        return self._mask_logits(features, boxes)


class C4Heads(_Heads):
    """Regions from layer3, all through res5; masks are read off the same res5 features as boxes."""

    def _box_features(self, features: dict[str, Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        regions = self.box_head(self.box_roi_pool(features, boxes))
        return regions, regions.mean(dim=(2, 3))

    def _mask_logits(self, features: dict[str, Tensor], boxes: list[Tensor]) -> Tensor:
        regions, _ = self._box_features(features, boxes)
        logits: Tensor = self.mask_predictor(regions)
        return logits

    def _train_mask_logits(
        self, features: dict[str, Tensor], regions: Tensor, boxes: list[Tensor], positive: Tensor
    ) -> Tensor:
        logits: Tensor = self.mask_predictor(regions[positive])
        return logits


def box_losses(logits: Tensor, deltas: Tensor, labels: Tensor, regression: Tensor) -> dict[str, Tensor]:
    """Cross-entropy over regions (label 0 is background), and L1 of the true class's deltas over positives.

    Both are divided by the number of all regions, as in Detectron2 (smooth L1 with beta 0).

    Parameters
    ----------
    logits, deltas
        (n, classes + 1) and (n, 4 (classes + 1)).
    labels, regression
        (n,) and (n, 4).
    """
    positive = torch.where(labels > 0)[0]
    of_class = deltas.view(len(labels), -1, 4)[positive, labels[positive]]
    box_loss = F.l1_loss(of_class, regression[positive], reduction="sum") / max(len(labels), 1)
    return {"loss_classifier": F.cross_entropy(logits, labels), "loss_box_reg": box_loss}


def mask_loss(logits: Tensor, labels: Tensor, truth: Tensor) -> Tensor:
    """Binary cross-entropy of the true class's mask, averaged over pixels; 0 without positive regions."""
    if len(labels) == 0:
        return logits.sum() * 0.0
    of_class = logits[torch.arange(len(labels), device=logits.device), labels]
    return F.binary_cross_entropy_with_logits(of_class, truth.to(of_class.dtype))


def build_c4_heads(res5: Res5Head, classes: int, config: C4Config, stride: int) -> C4Heads:
    """Build the second stage of a C4 detector around the backbone's own last stage."""
    mask = MaskRCNNPredictor(res5.out_channels, config.mask_dim, classes + 1) if config.masks else None
    return C4Heads(
        box_roi_pool=RegionPool(14, (stride,)),
        box_head=res5,
        box_predictor=_initialized_box_predictor(res5.out_channels, classes),
        mask_roi_pool=nn.Identity() if mask else None,
        mask_head=nn.Identity() if mask else None,
        mask_predictor=_initialized_mask_predictor(mask),
        **_settings(config),
    )


def build_fpn_heads(classes: int, config: FPNConfig, strides: Sequence[float]) -> FPNHeads:
    """Build the second stage on the pyramid's levels of the given strides."""
    norm = norm_factory(config.head_norm)
    box_head = FastRCNNConvFCHead(
        (config.fpn_dim, 7, 7),
        [config.box_conv_dim] * config.box_convs,
        [config.box_fc_dim] * config.box_fcs,
        norm_layer=norm,
    )
    for layer in box_head:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
    mask_head = mask_predictor = None
    if config.masks:
        mask_head = MaskRCNNHeads(config.fpn_dim, [config.mask_dim] * config.mask_convs, 1, norm_layer=norm)
        channels = config.mask_dim if config.mask_convs else config.fpn_dim
        mask_predictor = MaskRCNNPredictor(channels, config.mask_dim, classes + 1)
    return FPNHeads(
        box_roi_pool=RegionPool(7, strides),
        box_head=box_head,
        box_predictor=_initialized_box_predictor(config.box_fc_dim, classes),
        mask_roi_pool=RegionPool(14, strides) if config.masks else None,
        mask_head=mask_head,
        mask_predictor=_initialized_mask_predictor(mask_predictor),
        **_settings(config),
    )


def _settings(config: C4Config | FPNConfig) -> dict[str, Any]:
    roi = config.roi
    return {
        "fg_iou_thresh": roi.foreground_iou,
        "bg_iou_thresh": roi.foreground_iou,
        "batch_size_per_image": roi.batch_per_image,
        "positive_fraction": roi.positive_fraction,
        "bbox_reg_weights": (10.0, 10.0, 5.0, 5.0),
        "score_thresh": roi.score_threshold,
        "nms_thresh": roi.nms_threshold,
        "detections_per_img": roi.detections_per_image,
    }


def _initialized_box_predictor(channels: int, classes: int) -> FastRCNNPredictor:
    predictor = FastRCNNPredictor(channels, classes + 1)
    nn.init.normal_(predictor.cls_score.weight, std=0.01)
    nn.init.normal_(predictor.bbox_pred.weight, std=0.001)
    nn.init.zeros_(predictor.cls_score.bias)
    nn.init.zeros_(predictor.bbox_pred.bias)
    return predictor


def _initialized_mask_predictor(predictor: MaskRCNNPredictor | None) -> MaskRCNNPredictor | None:
    if predictor is not None:
        nn.init.normal_(predictor.mask_fcn_logits.weight, std=0.001)
        nn.init.kaiming_normal_(predictor.conv5_mask.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(predictor.mask_fcn_logits.bias)
        nn.init.zeros_(predictor.conv5_mask.bias)
    return predictor
