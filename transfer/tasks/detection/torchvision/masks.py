"""Between image and region: training targets cut out of objects, detections and masks put back."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from carryover.core.data.objects.dataset import DetectionImage
from carryover.core.training.device import copied_to
from carryover.transfer.tasks.detection.predictions import ImagePrediction, encode_masks


def mask_targets(
    masks: Tensor, boxes: Tensor, objects: Tensor, image_shape: tuple[int, int], side: int
) -> Tensor:
    """Cut each region's object mask out at the resolution of the mask head.

    Masks stay at the image's original resolution and the boxes are scaled to it: resizing the masks with the
    image would blur their outline, which Detectron2 avoids by keeping polygons.

    Parameters
    ----------
    masks
        (objects, H, W) uint8, at the original resolution (mirrored when the image was).
    boxes, objects
        (n, 4) in pixels of the resized image of `image_shape` (height, width), and (n,) indices into `masks`.

    Returns
    -------
    Tensor
        (n, side, side) bool: at least half of the cell is object.
    """
    if len(boxes) == 0:
        return torch.zeros((0, side, side), dtype=torch.bool, device=boxes.device)
    height, width = masks.shape[-2:]
    ratios = torch.tensor([width / image_shape[1], height / image_shape[0]], dtype=boxes.dtype)
    scale = copied_to(ratios, boxes.device).repeat(2)
    regions = torch.cat([objects[:, None].to(boxes.dtype), boxes * scale], dim=1)
    cut = roi_align(masks[:, None].float(), regions, (side, side), 1.0, sampling_ratio=0, aligned=True)
    targets: Tensor = cut[:, 0] >= 0.5
    return targets


def paste_masks(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Lay mask probabilities over their boxes in the image, and threshold at one half.

    Sampled bilinearly at pixel centers, as in Detectron2 (torchvision's own pasting first rounds the boxes
    to whole pixels).

    Parameters
    ----------
    masks, boxes
        (n, side, side) probabilities and (n, 4) boxes in pixels of an image of `height` x `width`.

    Returns
    -------
    Tensor
        (n, height, width) bool.
    """
    pasted = torch.zeros((len(masks), height, width), dtype=torch.bool, device=masks.device)
    corners = boxes.tolist()
    for index, (x0, y0, x1, y1) in enumerate(corners):
        # One pixel around the box: bilinear sampling reaches half a mask cell beyond it.
        margin_x, margin_y = 1 + (x1 - x0) / masks.shape[-1], 1 + (y1 - y0) / masks.shape[-2]
        left, right = max(0, int(x0 - margin_x)), min(width, int(x1 + margin_x) + 1)
        top, bottom = max(0, int(y0 - margin_y)), min(height, int(y1 + margin_y) + 1)
        if right <= left or bottom <= top or x1 <= x0 or y1 <= y0:
            continue
        x = (torch.arange(left, right, device=masks.device) + 0.5 - x0) / (x1 - x0) * 2 - 1
        y = (torch.arange(top, bottom, device=masks.device) + 0.5 - y0) / (y1 - y0) * 2 - 1
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        sampled = F.grid_sample(masks[index][None, None].float(), grid[None].float(), align_corners=False)
        pasted[index, top:bottom, left:right] = sampled[0, 0] >= 0.5
    return pasted


def to_original(
    detections: dict[str, Tensor], shape: tuple[int, int], source: DetectionImage
) -> ImagePrediction:
    """Scale detections in a resized image of `shape` (height, width) to the original, clipped to it.

    What is left without area is dropped; masks are pasted at the original resolution.
    """
    height, width = source.height, source.width
    scale = detections["boxes"].new_tensor([width / shape[1], height / shape[0]]).repeat(2)
    edge = detections["boxes"].new_tensor([width, height]).repeat(2)
    boxes = torch.minimum((detections["boxes"] * scale).clamp(min=0), edge)
    solid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    boxes = boxes[solid]
    masks = None
    if "masks" in detections:
        pasted = paste_masks(detections["masks"][solid], boxes, height, width)
        masks = encode_masks(pasted.cpu().numpy())
    return ImagePrediction(
        image_id=source.id,
        boxes=boxes.cpu().numpy().astype(np.float32),
        scores=detections["scores"][solid].cpu().numpy().astype(np.float32),
        labels=detections["labels"][solid].cpu().numpy() - 1,
        masks=masks,
    )
