"""Detectron2's proposal network on torchvision's: exact strides, unrounded anchors, plain L1 loss."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from carryover.transfer.tasks.detection.model_config import C4Config, FPNConfig


class Anchors(AnchorGenerator):
    """Anchors of the stated sizes on grids of the stated strides.

    torchvision rounds the anchors to whole pixels and infers strides from sizes, so that the pyramid's
    coarsest level gets stride 61 instead of 64 on an 800 pixel image; Detectron2 does neither.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[float, ...]],
        aspect_ratios: tuple[float, ...],
        strides: Sequence[float],
    ) -> None:
        self.strides = tuple(strides)
        super().__init__(tuple(sizes), (aspect_ratios,) * len(sizes))

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008 (torchvision's signature)
    ) -> Tensor:
        sides = torch.tensor(scales, dtype=torch.float64)
        roots = torch.tensor(aspect_ratios, dtype=torch.float64).sqrt()
        widths = (sides[:, None] / roots[None, :]).flatten()
        heights = (sides[:, None] * roots[None, :]).flatten()
        corners = torch.stack([-widths, -heights, widths, heights], dim=1) / 2
        return corners.to(device=device, dtype=dtype)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        device = feature_maps[0].device
        # Under autocast the maps are bfloat16, whose 8 bits cannot hold a coordinate.
        self.set_cell_anchors(torch.float32, device)
        grids = [list(feature.shape[-2:]) for feature in feature_maps]
        strides = [[torch.full((), s, device=device)] * 2 for s in self.strides]
        of_image = torch.cat(self.grid_anchors(grids, strides))
        return [of_image] * len(image_list.image_sizes)


class Float32RPNHead(RPNHead):
    """torchvision's head, its outputs in float32 under autocast: boxes are decoded from them."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [level.float() for level in logits], [level.float() for level in deltas]


class ProposalNetwork(RegionProposalNetwork):
    """torchvision's network with Detectron2's loss: L1 (beta 0), normalized by the full sample size."""

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        positive, negative = (torch.where(torch.cat(masks))[0] for masks in self.fg_bg_sampler([*labels]))
        sampled = torch.cat([positive, negative])
        normalizer = self.fg_bg_sampler.batch_size_per_image * len(labels)
        targets = torch.cat([*regression_targets])
        box_loss = F.l1_loss(pred_bbox_deltas[positive], targets[positive], reduction="sum")
        objectness_loss = F.binary_cross_entropy_with_logits(
            objectness.flatten()[sampled], torch.cat([*labels])[sampled], reduction="sum"
        )
        return objectness_loss / normalizer, box_loss / normalizer


def build_rpn(in_channels: int, config: C4Config | FPNConfig, strides: Sequence[float]) -> ProposalNetwork:
    """Build the proposal network: every size at every location (C4), or one size a level (FPN)."""
    sizes: Sequence[tuple[float, ...]] = (
        [config.anchor_sizes] if config.name == "c4" else [(size,) for size in config.anchor_sizes]
    )
    anchors = Anchors(sizes, config.aspect_ratios, strides)
    rpn = config.rpn
    return ProposalNetwork(
        anchors,
        Float32RPNHead(in_channels, anchors.num_anchors_per_location()[0], conv_depth=rpn.head_convs),
        fg_iou_thresh=rpn.foreground_iou,
        bg_iou_thresh=rpn.background_iou,
        batch_size_per_image=rpn.batch_per_image,
        positive_fraction=rpn.positive_fraction,
        pre_nms_top_n={"training": rpn.pre_nms_train, "testing": rpn.pre_nms_test},
        post_nms_top_n={"training": rpn.post_nms_train, "testing": rpn.post_nms_test},
        nms_thresh=rpn.nms_threshold,
    )
