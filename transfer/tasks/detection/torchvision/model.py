"""Faster and Mask R-CNN around a pretrained backbone, assembled from torchvision's components.

With the same weights they give Detectron2's features, losses and detections (verified in the tests). What
remains different: images are taken as stored, whatever their EXIF orientation says; mask targets are cut from
bit masks at the original resolution, where Detectron2 rasterizes polygons; order and augmentation of the
images come from another random stream.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList

from carryover.core.backbones.build import build_backbone
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.training.device import random_states_kept
from carryover.transfer.tasks.detection.config import InputConfig
from carryover.transfer.tasks.detection.model_config import C4Config, FPNConfig
from carryover.transfer.tasks.detection.pyramid import pyramid_of, require_detectable
from carryover.transfer.tasks.detection.torchvision.backbone import (
    C4_STRIDES,
    C4Trunk,
    Res5Head,
    fpn_backbone,
    freeze_stages,
    norm_factory,
    replace_norms,
)
from carryover.transfer.tasks.detection.torchvision.heads import build_c4_heads, build_fpn_heads
from carryover.transfer.tasks.detection.torchvision.rpn import build_rpn


class NormalizeAndPad(nn.Module):
    """Turns resized uint8 images into one normalized batch; resizing was done when they were loaded.

    Takes the place of torchvision's GeneralizedRCNNTransform, which resizes on the device, without
    antialiasing, and resizes masks too.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], divisor: int, square: int | None = None
    ) -> None:
        super().__init__()
        self.divisor, self.square = divisor, square or 0
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        shapes = [(image.shape[-2], image.shape[-1]) for image in images]
        height, width = (
            -(-(self.square or max(shape[axis] for shape in shapes)) // self.divisor) * self.divisor
            for axis in (0, 1)
        )
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        # Zero after normalization: padding has the color of the mean, as in Detectron2.
        batch = torch.zeros((len(images), 3, height, width), device=mean.device)
        batch = batch.to(memory_format=torch.channels_last)
        for slot, image, (h, w) in zip(batch, images, shapes):
            slot[:, :h, :w] = (image.float() - mean) / std
        return ImageList(batch, shapes), targets

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Leave detections in pixels of the resized images; who loaded them knows the original sizes."""
        return result


def build_detector(
    backbone: BackboneConfig,
    weights: Mapping[str, Tensor],
    model: C4Config | FPNConfig,
    input_config: InputConfig,
    classes: int,
    seed: int,
) -> GeneralizedRCNN:
    """Build a detector around a pretrained backbone; everything new is initialized from `seed`.

    Parameters
    ----------
    backbone, weights
        What the checkpoint holds: its architecture and its tensors under torchvision's names.
    classes
        Number of object classes; label 0 of the detector is the background.

    Returns
    -------
    GeneralizedRCNN
        In training, maps (images, targets) to a dict of losses; in evaluation, images to detections. Images
        are resized uint8 tensors (3, H, W); targets hold `boxes` (n, 4), `labels` (n,) from 1 and, for masks,
        `masks` (n, H0, W0) at the original resolution.

    Raises
    ------
    UserError
        The backbone cannot carry a detector (no stages of strides 4 to 32; for C4, not a ResNet).
    """
    require_detectable(backbone, model)
    with random_states_kept():
        torch.manual_seed(seed)
        network = build_backbone(backbone)
        network.load_state_dict(weights, strict=False)
        replace_norms(network, model.norm)
        freeze_stages(network, model.freeze_at)
        body: nn.Module
        heads: nn.Module
        if isinstance(model, FPNConfig):
            body = fpn_backbone(network, model)
            pyramid = pyramid_of(backbone)
            rpn = build_rpn(model.fpn_dim, model, pyramid.strides)
            # The coarsest level gives proposals only; regions are cut from the four others.
            heads = build_fpn_heads(classes, model, pyramid.strides[:4])
            divisor = pyramid.divisor
        else:
            make_norm = norm_factory(model.norm if model.extra_norm else "none")
            extra_norm = make_norm(network.feature_dim) if make_norm else nn.Identity()
            res5 = Res5Head(network, extra_norm)
            body = C4Trunk(network)
            rpn = build_rpn(body.out_channels, model, C4_STRIDES)
            heads = build_c4_heads(res5, classes, model, C4_STRIDES[0])
            divisor = 1
        shown = input_config
        transform = NormalizeAndPad(shown.pixel_mean, shown.pixel_std, divisor, shown.square)
    return GeneralizedRCNN(body, rpn, heads, transform).to(memory_format=torch.channels_last)
