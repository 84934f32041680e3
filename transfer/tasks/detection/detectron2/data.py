"""Our data sets as Detectron2's: registered for the time of a run, augmented by Detectron2's own transforms.

Imports Detectron2.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from torch.utils.data import Dataset

from carryover.core.data.objects.dataset import DetectionDataset, DetectionImage, Segmentation, to_rle
from carryover.core.data.steps import Draw
from carryover.transfer.tasks.detection.config import InputConfig
from carryover.transfer.tasks.detection.transforms import load_image

MaskFormat = Literal["polygon", "bitmask"]


@contextmanager
def registered(
    name: str, dataset: DetectionDataset, images: Sequence[DetectionImage], with_masks: bool
) -> Iterator[None]:
    """Register images of a data set in Detectron2's catalogs under `name`, and take them out again after."""

    def dicts() -> list[dict[str, Any]]:
        return [image_dict(image, with_masks) for image in images]

    DatasetCatalog.register(name, dicts)
    MetadataCatalog.get(name).set(thing_classes=list(dataset.classes), evaluator_type="coco")
    try:
        yield
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def image_dict(image: DetectionImage, with_masks: bool) -> dict[str, Any]:
    """One image in Detectron2's standard form; an object without any mask is left out where masks count."""
    objects = []
    for number, (box, label, crowd) in enumerate(
        zip(image.annotation.boxes, image.annotation.labels, image.annotation.iscrowd)
    ):
        entry = {
            "bbox": box.tolist(),
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": int(label),
            "iscrowd": int(crowd),
        }
        if with_masks and image.annotation.masks is not None:
            mask = _usable(image.annotation.masks[number], image)
            if not mask:
                continue
            entry["segmentation"] = mask
        objects.append(entry)
    return {
        "file_name": str(image.path),
        "image_id": image.id,
        "height": image.height,
        "width": image.width,
        "annotations": objects,
    }


def mask_format(images: Sequence[DetectionImage], shown: InputConfig | None = None) -> MaskFormat:
    """Return the format of training masks: polygons, as in Detectron2, unless one has run lengths.

    Large-scale jitter cuts masks off, which Detectron2 does to polygons with a library of its own (shapely),
    and to pixels by itself.
    """
    if shown is not None and shown.jitter is not None:
        return "bitmask"
    for image in images:
        masks, crowds = image.annotation.masks or (), image.annotation.iscrowd
        if any(isinstance(mask, dict) for mask, crowd in zip(masks, crowds) if not crowd):
            return "bitmask"
    return "polygon"


class TrainInputs(Dataset[dict[str, Any]]):
    """Loads one `Draw` as Detectron2's DatasetMapper does, but for two things.

    Images are read by the rule of `core.data.pictures`, and what is random about one is decided by (seed,
    iteration, position) alone, so that a resumed run sees the same.
    """

    def __init__(self, images: Sequence[DetectionImage], cfg: Any, jitter: InputConfig | None = None) -> None:
        self.images = images
        self.with_masks = cfg.MODEL.MASK_ON
        self.mask_format = cfg.INPUT.MASK_FORMAT
        self.seed = cfg.SEED
        usual = detection_utils.build_augmentation(cfg, is_train=True)
        self.jittered = jitter is not None
        self.augmentations = T.AugmentationList(usual if jitter is None else _large_scale(jitter))

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        source = self.images[draw.index]
        content = image_dict(source, self.with_masks)
        if self.jittered and self.with_masks:
            for entry in content["annotations"]:
                entry["segmentation"] = to_rle(entry["segmentation"], source.height, source.width)
        seen = T.AugInput(np.asarray(load_image(source)))
        with _numpy_seeded(self.seed, draw.iteration, draw.position):
            transforms = self.augmentations(seen)
        shape = seen.image.shape[:2]
        annotations = [
            detection_utils.transform_instance_annotations(entry, transforms, shape)
            for entry in content.pop("annotations")
            if not entry["iscrowd"]
        ]
        instances = detection_utils.annotations_to_instances(annotations, shape, self.mask_format)
        if self.jittered and instances.has("gt_masks"):
            # What is left of an object after the crop.
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        content["instances"] = detection_utils.filter_empty_instances(instances)
        return content | {"image": _to_tensor(seen.image)}


def _large_scale(shown: InputConfig) -> list[Any]:
    """Return ViTDet's augmentations: flip, large-scale jitter, and a crop that pads nothing."""
    assert shown.jitter is not None and shown.square is not None
    side, (low, high) = shown.square, shown.jitter
    return [
        *([T.RandomFlip(horizontal=True)] if shown.flip else []),
        T.ResizeScale(min_scale=low, max_scale=high, target_height=side, target_width=side),
        T.FixedSizeCrop(crop_size=(side, side), pad=False),
    ]


class TestInputs(Dataset[dict[str, Any]]):
    """Loads test images, in order: resized, and with the size that detections are scaled back to."""

    __test__ = False  # not a pytest class

    def __init__(self, images: Sequence[DetectionImage], cfg: Any) -> None:
        self.images = images
        self.augmentations = T.AugmentationList(detection_utils.build_augmentation(cfg, is_train=False))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        source = self.images[index]
        seen = T.AugInput(np.asarray(load_image(source)))
        self.augmentations(seen)
        return {"image": _to_tensor(seen.image), "height": source.height, "width": source.width}


def _usable(mask: Segmentation, image: DetectionImage) -> Segmentation:
    if isinstance(mask, dict):
        return to_rle(mask, image.height, image.width)
    return [polygon for polygon in mask if len(polygon) >= 6 and len(polygon) % 2 == 0]


def _to_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


@contextmanager
def _numpy_seeded(*key: int) -> Iterator[None]:
    """Seed numpy's global random state, the only one that Detectron2's augmentations draw from."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(np.random.SeedSequence(key).generate_state(4))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
