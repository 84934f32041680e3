"""Testing an FCN: whole images or a sliding window, scored at every image's own size."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from carryover.core.data.masks.dataset import SegmentationImage
from carryover.core.training.device import copied_to
from carryover.transfer.tasks.segmentation.config import InputConfig
from carryover.transfer.tasks.segmentation.torchvision.model import DilatedFCN, normalized
from carryover.transfer.tasks.segmentation.transforms import pixels_for_test


@torch.inference_mode()
def segment(model: DilatedFCN, source: SegmentationImage, config: InputConfig) -> np.ndarray:
    """Return the label of every pixel of an image, (height, width) uint8, at its own size.

    In float32, whatever the precision of the training, as in mmseg. Of equal logits the first class counts.
    """
    model.eval()
    device = next(model.parameters()).device
    pixels = normalized(copied_to(pixels_for_test(source, config), device), config)[None]
    height, width = pixels.shape[-2:]
    # Whole patches: what is added has the color of the mean, and is cut off again.
    pixels = F.pad(pixels, (0, -width % model.divisor, 0, -height % model.divisor))
    if config.test_stride is None:
        logits = model(pixels)["out"]
    else:
        logits = slide(model, pixels, config.crop_size, config.test_stride)
    logits = model.resized(logits[..., :height, :width], (source.height, source.width))
    return logits[0].argmax(dim=0).to(torch.uint8).cpu().numpy()


def slide(model: DilatedFCN, pixels: Tensor, window: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Average the logits (1, C, H, W) of overlapping windows, (height, width) pixels large and apart.

    The last window of a row or column is moved back so that it ends with the image (mmseg's slide mode).
    """
    height, width = pixels.shape[-2:]
    total: Tensor | None = None
    times = pixels.new_zeros((1, 1, height, width))
    for top in _starts(height, window[0], stride[0]):
        for left in _starts(width, window[1], stride[1]):
            inside = (..., slice(top, top + window[0]), slice(left, left + window[1]))
            logits = model(pixels[inside])["out"]
            if total is None:
                total = logits.new_zeros((1, logits.shape[1], height, width))
            total[inside] += logits
            times[inside] += 1
    assert total is not None
    return total / times


def _starts(length: int, window: int, stride: int) -> list[int]:
    steps = -(-max(length - window, 0) // stride) + 1
    return [max(min(i * stride, length - window), 0) for i in range(steps)]
