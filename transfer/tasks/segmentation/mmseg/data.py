"""A recipe's images in mmsegmentation's own pipelines, drawn as the torchvision backend draws them."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mmseg.datasets.transforms  # noqa: F401 (registers them)
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.dataset import Compose
from mmseg.registry import TRANSFORMS
from torch.utils.data import Dataset

from carryover.core.data.masks.dataset import IGNORED, MaskCode, SegmentationDataset, SegmentationImage
from carryover.core.data.steps import Draw
from carryover.transfer.tasks.segmentation.config import InputConfig
from carryover.transfer.tasks.segmentation.transforms import load_image, load_truth


class LoadPicture(BaseTransform):
    """Decodes the image as everything else here does (`core.data.pictures`), to BGR, mmseg's order."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        pixels = np.asarray(load_image(results["source"]))[:, :, ::-1]
        results["img"] = np.ascontiguousarray(pixels)
        results["img_shape"] = results["ori_shape"] = pixels.shape[:2]
        return results


class LoadTruth(BaseTransform):
    """Decodes the mask by the data set's own code, where mmseg's LoadAnnotations knows indices only."""

    def __init__(self, code: MaskCode) -> None:
        self.code = code

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        results["gt_seg_map"] = load_truth(results["source"], self.code)
        results["seg_fields"] = ["gt_seg_map"]
        return results


class MmsegTrainingImages(Dataset[dict[str, Any]]):
    """Loads one `Draw` through mmseg's training pipeline."""

    def __init__(self, dataset: SegmentationDataset, config: InputConfig, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        self.metainfo = {"classes": dataset.classes}
        self.pipeline = compose(training_pipeline(config, dataset.code))

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        with _seeded(self.seed, draw):
            loaded: dict[str, Any] = self.pipeline(as_mmseg(self.dataset.images[draw.index]))
        return loaded


def as_mmseg(source: SegmentationImage) -> dict[str, Any]:
    """Return what mmseg's pipelines start from."""
    return {"img_path": str(source.path), "source": source, "reduce_zero_label": False}


def compose(steps: Sequence[Any]) -> Compose:
    """Build transforms by mmseg's registry, whatever the process's default scope is."""
    return Compose([TRANSFORMS.build(step) if isinstance(step, dict) else step for step in steps])


def training_pipeline(config: InputConfig, code: MaskCode) -> list[Any]:
    """Return mmseg's training transforms of a recipe; the preprocessor pads crops that come out too small."""
    steps: list[Any] = [
        LoadPicture(),
        LoadTruth(code),
        {
            "type": "RandomResize",
            "scale": config.scale,
            "ratio_range": config.ratio_range,
            "keep_ratio": True,
        },
        {
            "type": "RandomCrop",
            "crop_size": config.crop_size,
            "cat_max_ratio": config.cat_max_ratio,
            "ignore_index": IGNORED,
        },
    ]
    if config.flip:
        steps.append({"type": "RandomFlip", "prob": 0.5})
    if config.photometric:
        steps.append({"type": "PhotoMetricDistortion"})
    return [*steps, {"type": "PackSegInputs"}]


def pipeline_for_test(config: InputConfig) -> list[Any]:
    """Return mmseg's test transforms of a recipe."""
    resize = {"type": "Resize", "scale": config.test_scale, "keep_ratio": True}
    return [LoadPicture(), *([] if config.test_scale is None else [resize]), {"type": "PackSegInputs"}]


@contextmanager
def _seeded(seed: int, draw: Draw) -> Iterator[None]:
    """Seed the global generators, from which mmseg's transforms draw, by this image's place."""
    state, plain = np.random.get_state(), random.getstate()  # noqa: NPY002 (mmcv's generator)
    sequence = np.random.SeedSequence([seed, draw.iteration, draw.position])
    np.random.seed(int(sequence.generate_state(1)[0]))  # noqa: NPY002
    random.seed(int(sequence.generate_state(2)[1]))
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
        random.setstate(plain)
