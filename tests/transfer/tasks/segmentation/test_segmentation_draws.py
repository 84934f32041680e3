"""What a segmenter is shown: which images, scaled, cropped, mirrored and disturbed how."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from carryover.core.data.masks.dataset import IGNORED, SegmentationDataset, SegmentationImage, index_code
from carryover.core.data.steps import Draw
from carryover.transfer.tasks.segmentation.config import InputConfig
from carryover.transfer.tasks.segmentation.data import Steps, TrainingImages
from carryover.transfer.tasks.segmentation.photometric import distort
from carryover.transfer.tasks.segmentation.torchvision.model import batch_of
from carryover.transfer.tasks.segmentation.transforms import fitted, train_example

PLAIN = InputConfig(
    scale=(64, 48), ratio_range=(1, 1), crop_size=(32, 40), cat_max_ratio=1, flip=False, photometric=False
)


@pytest.fixture
def source(tmp_path) -> SegmentationImage:
    """An image whose pixels are its labels, so that the two can be told to move together."""
    labels = np.random.default_rng(0).integers(0, 4, (6, 8), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    return _written(tmp_path, labels)


def _written(folder: Path, labels: np.ndarray) -> SegmentationImage:
    image, mask = folder / "image.png", folder / "mask.png"
    Image.fromarray(np.stack([labels * 50] * 3, axis=2)).save(image)
    Image.fromarray(labels).save(mask)
    return SegmentationImage("a", image, mask, labels.shape[1], labels.shape[0])


class TestTransforms:
    @pytest.mark.parametrize("flip", [False, True])
    def test_image_and_mask_move_together(self, source, flip):
        config = PLAIN.model_copy(update={"flip": flip})
        for seed in range(8):
            example = train_example(source, index_code(4), config, np.random.default_rng(seed))
            assert example.image.shape == (3, 32, 40)
            assert torch.equal(example.image[0], example.labels * 50)

    def test_half_of_the_images_are_mirrored(self, source):
        config = PLAIN.model_copy(update={"flip": True, "crop_size": (48, 64)})
        whole = train_example(
            source, index_code(4), PLAIN.model_copy(update={"crop_size": (48, 64)}), np.random.default_rng(0)
        ).labels
        seen = [
            train_example(source, index_code(4), config, np.random.default_rng(s)).labels for s in range(64)
        ]
        mirrored = sum(torch.equal(labels, whole.flip(1)) for labels in seen)
        assert mirrored + sum(torch.equal(labels, whole) for labels in seen) == 64
        assert 20 <= mirrored <= 44

    def test_scales_span_the_ratio_range(self, source):
        config = PLAIN.model_copy(update={"ratio_range": (0.5, 2.0), "crop_size": (512, 512)})
        heights = [
            train_example(source, index_code(4), config, np.random.default_rng(s)).labels.shape[0]
            for s in range(64)
        ]
        assert 24 <= min(heights) < 30
        assert 85 < max(heights) <= 96

    def test_crops_of_one_class_are_drawn_again(self, tmp_path):
        labels = np.zeros((200, 200), dtype=np.uint8)
        labels[:20, :20] = 1
        source = _written(tmp_path, labels)
        plain = PLAIN.model_copy(update={"scale": (200, 200), "crop_size": (24, 24)})
        mixed = {}
        for ratio in (1.0, 0.75):
            config = plain.model_copy(update={"cat_max_ratio": ratio})
            crops = [
                train_example(source, index_code(2), config, np.random.default_rng(s)).labels
                for s in range(60)
            ]
            mixed[ratio] = sum(len(torch.unique(c)) > 1 for c in crops)
        assert mixed[0.75] > mixed[1.0]

    def test_what_a_crop_lacks_is_the_mean_color_and_ignored(self, source):
        config = PLAIN.model_copy(update={"crop_size": (50, 80)})
        example = train_example(source, index_code(4), config, np.random.default_rng(0))
        assert example.labels.shape == (48, 64)
        images, labels = batch_of([example, example], config, torch.device("cpu"))
        assert images.shape == (2, 3, 50, 80)
        assert (labels[:, 48:] == IGNORED).all()
        assert (labels[:, :, 64:] == IGNORED).all()
        assert (images[:, :, 48:] == 0).all()
        expected = (example.image[0].float() - config.pixel_mean[0]) / config.pixel_std[0]
        assert torch.allclose(images[0, 0, :48, :64], expected)

    @pytest.mark.mmseg
    def test_sizes_are_rounded_as_mmcv_does(self):
        from mmcv.image.geometric import rescale_size

        rng = np.random.default_rng(0)
        for _ in range(200):
            size = tuple(rng.integers(20, 3000, 2).tolist())
            scale = tuple(rng.integers(20, 3000, 2).tolist())
            assert fitted(size, scale) == rescale_size(size, scale)

    def test_distortion_changes_colors_within_bounds_and_nothing_else(self):
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        kept = pixels.copy()
        seen = [distort(pixels, np.random.default_rng(s)) for s in range(40)]
        assert (pixels == kept).all()
        assert all(s.shape == pixels.shape and s.dtype == np.uint8 for s in seen)
        # One in 32 draws nothing at all; contrast and saturation leave black what is black.
        assert sum((s != pixels).any() for s in seen) > 30
        gray = np.full((4, 4, 3), 128, dtype=np.uint8)
        for seed in range(40):
            changed = distort(gray, np.random.default_rng(seed)).astype(int)
            assert np.ptp(changed, axis=2).max() <= 1
            assert 128 * 0.5 - 32 * 1.5 - 2 <= changed.min() <= changed.max() <= 255


class TestDraws:
    def test_every_image_is_seen_once_a_pass(self):
        steps = list(Steps(images=7, size=3, seed=1, start=0, stop=14))
        order = [draw.index for draw in chain.from_iterable(steps)]
        assert len(order) == 42
        for i in range(6):
            assert sorted(order[7 * i : 7 * i + 7]) == list(range(7))
        assert order[:7] != order[7:14]

    def test_a_resumed_run_draws_what_it_would_have_drawn(self):
        whole = list(Steps(images=7, size=3, seed=1, start=0, stop=14))
        assert list(Steps(images=7, size=3, seed=1, start=5, stop=14)) == whole[5:]

    def test_ranks_share_a_step(self):
        whole = list(Steps(images=9, size=4, seed=2, start=0, stop=3))
        parts = [list(Steps(9, 4, 2, 0, 3, rank, 2)) for rank in range(2)]
        for step, one, other in zip(whole, *parts, strict=True):
            assert sorted(one + other, key=lambda d: d.position) == step

    def test_augmentation_is_the_places(self, source):
        dataset = SegmentationDataset("d", tuple("abcd"), (source,), index_code(4))
        config = PLAIN.model_copy(update={"flip": True, "photometric": True})
        images = TrainingImages(dataset, config, seed=3)
        one, again, other = (images[Draw(0, 5, p)] for p in (1, 1, 2))
        assert torch.equal(one.image, again.image)
        assert not torch.equal(one.image, other.image)
