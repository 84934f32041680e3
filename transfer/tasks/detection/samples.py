"""Pictures for the report: test images with what was found in them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from carryover.core.data.objects.dataset import DetectionDataset, DetectionImage
from carryover.transfer.tasks.detection.predictions import ImagePrediction
from carryover.transfer.tasks.detection.transforms import load_image
from carryover.transfer.tasks.pictures import COLORS, SHORT_EDGE, evenly

SCORE = 0.3


def draw_samples(
    dataset: DetectionDataset, predictions: Sequence[ImagePrediction], directory: Path, count: int
) -> list[Path]:
    """Draw `count` test images, evenly chosen among those with objects, as PNG files.

    Detections that score at least 0.3 are colored by class, annotated boxes thin and white.
    """
    by_id = {p.image_id: p for p in predictions}
    annotated = [i for i in dataset.images if len(i.annotation)]
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for source in (annotated[i] for i in evenly(len(annotated), count)):
        path = directory / f"{source.path.stem}.png"
        _draw(source, by_id[source.id], dataset.classes).save(path)
        paths.append(path)
    return paths


def _draw(source: DetectionImage, prediction: ImagePrediction, classes: Sequence[str]) -> Image.Image:
    # Small images are enlarged first, so that lines and letters keep their size.
    zoom = max(1.0, SHORT_EDGE / min(source.width, source.height))
    size = (round(source.width * zoom), round(source.height * zoom))
    pixels = np.asarray(load_image(source).resize(size, Image.Resampling.BICUBIC))
    canvas = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    shown = prediction.scores >= SCORE
    labels = prediction.labels[shown]
    colors = [COLORS[k % len(COLORS)] for k in labels]
    if prediction.masks is not None and shown.any():
        masks = [m for m, keep in zip(prediction.masks, shown) if keep]
        canvas = draw_segmentation_masks(canvas, _enlarged(masks, size), alpha=0.4, colors=colors)
    truth = torch.from_numpy(source.annotation.boxes * np.float32(zoom))
    if len(truth):
        canvas = draw_bounding_boxes(canvas, truth, colors="white", width=1)
    if shown.any():
        boxes = torch.from_numpy(prediction.boxes[shown] * np.float32(zoom))
        texts = [f"{classes[k]} {s:.2f}" for k, s in zip(labels, prediction.scores[shown])]
        canvas = draw_bounding_boxes(canvas, boxes, labels=texts, colors=colors, width=2)
    return Image.fromarray(canvas.numpy().transpose(1, 2, 0))


def _enlarged(masks: Sequence[dict[str, object]], size: tuple[int, int]) -> Tensor:
    decoded = [Image.fromarray(coco_mask.decode(m)).resize(size, Image.Resampling.NEAREST) for m in masks]
    return torch.from_numpy(np.stack([np.asarray(m) for m in decoded]).astype(bool))
