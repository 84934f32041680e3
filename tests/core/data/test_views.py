"""Batched views are torchvision's functionals, image by image, given the same parameters."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from carryover.core.data.augment import BRIGHTNESS, CONTRAST, HUE, SATURATION, ViewParameters, draw_view
from carryover.core.data.config import BlurConfig, TestViewConfig, ViewConfig
from carryover.core.data.draws import keys
from carryover.core.data.views import batch_views, center_view, image_views

B = 40
FUNCTIONALS = {
    BRIGHTNESS: F.adjust_brightness,
    CONTRAST: F.adjust_contrast,
    SATURATION: F.adjust_saturation,
    HUE: F.adjust_hue,
}


def images(height: int, width: int) -> Tensor:
    """Smooth noise, a constant image and a black one: hues, grays and divisions by zero all occur."""
    noise = torch.rand(B, 3, height, width, generator=torch.Generator().manual_seed(0)) * 255
    smooth = F.gaussian_blur(noise, [5, 5], [1.0]).mul(2).sub(127).clamp(0, 255).to(torch.uint8)
    smooth[0], smooth[1] = 77, 0
    return smooth


def torchvision_view(image: Tensor, config: ViewConfig, drawn: ViewParameters, row: int) -> Tensor:
    """The view of one image by torchvision's functionals, in the image's own dtype."""
    box = [int(side[row]) for side in (drawn.top, drawn.left, drawn.height, drawn.width)]
    view = F.resized_crop(image, *box, size=[config.size, config.size], antialias=True)
    if drawn.flip[row]:
        view = F.horizontal_flip(view)
    if drawn.jitter[row]:
        for operation in drawn.order[row].tolist():
            view = FUNCTIONALS[operation](view, float(drawn.factors[row, operation]))
    if drawn.grayscale[row]:
        view = F.rgb_to_grayscale(view, num_output_channels=3)
    if drawn.sigma[row] > 0:
        assert config.blur is not None
        view = F.gaussian_blur(view, [2 * config.blur.radius + 1] * 2, [float(drawn.sigma[row])])
    return F.solarize(view, 0.5) if drawn.solarize[row] else view


def torchvision_views(images: Tensor, config: ViewConfig, drawn: ViewParameters) -> Tensor:
    return torch.stack([torchvision_view(image, config, drawn, row) for row, image in enumerate(images)])


def neutral(n: int, height: int, width: int) -> ViewParameters:
    """Parameters that leave every image whole and as it is."""
    zero, no = np.zeros(n, np.int64), np.zeros(n, bool)
    return ViewParameters(
        top=zero,
        left=zero,
        height=np.full(n, height),
        width=np.full(n, width),
        flip=no,
        jitter=no,
        order=np.tile(np.arange(4), (n, 1)),
        factors=np.tile([1.0, 1.0, 1.0, 0.0], (n, 1)),
        grayscale=no,
        sigma=np.zeros(n),
        solarize=no,
    )


@pytest.mark.parametrize(
    ("shape", "size"),
    [((24, 24), 24), ((24, 24), 40), ((40, 40), 16), ((30, 44), 20), ((44, 30), 32), ((90, 120), 120)],
)
def test_whole_pipeline_agrees_with_torchvision(shape: tuple[int, int], size: int) -> None:
    config = ViewConfig(size=size, scale=(0.1, 1.0), solarize=0.3)
    pixels = images(*shape)
    drawn = draw_view(config, keys(0, np.arange(B)), np.full(B, shape[0]), np.full(B, shape[1]))
    ours = batch_views(pixels, config, drawn)
    theirs = torchvision_views(pixels.float() / 255, config, drawn)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("operation", [BRIGHTNESS, CONTRAST, SATURATION, HUE])
def test_each_color_operation_is_torchvisions(operation: int) -> None:
    pixels = images(16, 16)
    low, high = (-0.5, 0.5) if operation == HUE else (0.0, 2.5)
    factors = np.tile([1.0, 1.0, 1.0, 0.0], (B, 1))
    factors[:, operation] = np.linspace(low, high, B)
    drawn = dataclasses.replace(neutral(B, 16, 16), jitter=np.ones(B, bool), factors=factors)
    ours = batch_views(pixels, ViewConfig(size=16), drawn)
    for view, image, factor in zip(ours, pixels, factors[:, operation]):
        expected = FUNCTIONALS[operation](image.float() / 255, float(factor))
        torch.testing.assert_close(view, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("side", [20, 128])
def test_blur_is_torchvisions_with_each_images_own_sigma(side: int) -> None:
    """By products of matrices, and, for large images, by sums."""
    config = ViewConfig(size=side, blur=BlurConfig(sigma=(0.1, 2.0)))
    pixels = images(side, side)
    sigma = np.linspace(0.0, 2.0, B)
    ours = batch_views(pixels, config, dataclasses.replace(neutral(B, side, side), sigma=sigma))
    torch.testing.assert_close(ours[0], pixels[0].float() / 255)
    for view, image, s in zip(ours[1:], pixels[1:], sigma[1:]):
        expected = F.gaussian_blur(image.float() / 255, [13, 13], [float(s)])
        torch.testing.assert_close(view, expected, rtol=0, atol=2e-6)


def test_nothing_drawn_leaves_the_image() -> None:
    pixels = images(16, 16)
    views = batch_views(pixels, ViewConfig(size=16), neutral(B, 16, 16))
    torch.testing.assert_close(views, pixels.float() / 255, rtol=0, atol=1e-7)


def test_a_view_does_not_depend_on_its_batch() -> None:
    config = ViewConfig(size=16)
    pixels = images(20, 20)
    drawn = draw_view(config, keys(0, np.arange(B)), np.full(B, 20), np.full(B, 20))
    together = batch_views(pixels, config, drawn)
    for row in (0, 7, B - 1):
        one = slice(row, row + 1)
        torch.testing.assert_close(
            batch_views(pixels[one], config, drawn.rows(one)), together[one], atol=1e-6, rtol=0
        )


def test_the_images_given_are_left_as_they_are() -> None:
    pixels = images(16, 16)
    before = pixels.clone()
    drawn = draw_view(ViewConfig(size=16), keys(0, np.arange(B)), np.full(B, 16), np.full(B, 16))
    batch_views(pixels, ViewConfig(size=16), drawn)
    image_views(list(pixels), ViewConfig(size=16), drawn)
    assert torch.equal(pixels, before)


def test_views_made_image_by_image_are_torchvisions_from_the_eight_bit_crop_on() -> None:
    config = ViewConfig(size=16, solarize=0.3)
    pixels = [image[:, : 20 + i % 3, : 24 - i % 5] for i, image in enumerate(images(24, 24))]
    sides = np.array([image.shape[1:] for image in pixels])
    drawn = draw_view(config, keys(0, np.arange(B)), sides[:, 0], sides[:, 1])
    ours = image_views(pixels, config, drawn)
    assert ours.dtype == torch.uint8
    for row, image in enumerate(pixels):
        box = [int(side[row]) for side in (drawn.top, drawn.left, drawn.height, drawn.width)]
        crop = F.resized_crop(image, *box, size=[16, 16], antialias=True).float() / 255
        whole = dataclasses.replace(neutral(B, 16, 16), **recoloring(drawn))
        exact = torchvision_view(crop, config, whole, row) * 255
        # Half a level of the one rounding at the end.
        torch.testing.assert_close(ours[row].float(), exact, rtol=0, atol=0.501)


def recoloring(drawn: ViewParameters) -> dict[str, np.ndarray]:
    names = ("flip", "jitter", "order", "factors", "grayscale", "sigma", "solarize")
    return {name: getattr(drawn, name) for name in names}


def test_the_test_view_is_resize_and_center_crop() -> None:
    image = images(40, 30)[2]
    view = center_view(image, TestViewConfig(resize=20, size=16))
    expected = F.center_crop(F.resize(image, [20], antialias=True), [16, 16])
    assert torch.equal(view, expected)
