"""Random views image by image: torchvision's functionals on uint8, as the loader's processes make them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from pretrain.augment import BRIGHTNESS, CONTRAST, HUE, SATURATION, ViewParameters
from pretrain.data_config import TestViewConfig, ViewConfig

_JITTER = {
    BRIGHTNESS: F.adjust_brightness,
    CONTRAST: F.adjust_contrast,
    SATURATION: F.adjust_saturation,
    HUE: F.adjust_hue,
}


def image_view(image: Tensor, config: ViewConfig, drawn: ViewParameters, row: int) -> Tensor:
    """Make the view of one image (3, H, W) that row `row` of `drawn` describes, (3, size, size).

    Of uint8 images as of float images in [0, 1]; the view has the image's dtype.
    """
    box = [int(side[row]) for side in (drawn.top, drawn.left, drawn.height, drawn.width)]
    size = [config.size, config.size]
    view = F.resized_crop(image, *box, size=size, antialias=True)
    if image.dtype == torch.uint8:
        # Eight bits would be cut off after every operation, which darkens the view by one level or more.
        in_floats = _recolour(view.float().div_(255), config, drawn, row)
        return in_floats.mul(255).round_().to(torch.uint8)
    return _recolour(view, config, drawn, row)


def _recolour(view: Tensor, config: ViewConfig, drawn: ViewParameters, row: int) -> Tensor:
    """Apply everything but the crop to a float view."""
    if drawn.flip[row]:
        view = F.horizontal_flip(view)
    if drawn.jitter[row]:
        for operation in drawn.order[row].tolist():
            view = _JITTER[operation](view, float(drawn.factors[row, operation]))
    if drawn.grayscale[row]:
        view = F.rgb_to_grayscale(view, num_output_channels=3)
    if drawn.sigma[row] > 0:
        assert config.blur is not None
        view = F.gaussian_blur(view, [2 * config.blur.radius + 1] * 2, [float(drawn.sigma[row])])
    if drawn.solarize[row]:
        view = F.solarize(view, 0.5)
    return view


def image_views(images: Sequence[Tensor], config: ViewConfig, drawn: ViewParameters) -> Tensor:
    """Make one view of each image (3, H_i, W_i), together (b, 3, size, size)."""
    return torch.stack([image_view(image, config, drawn, row) for row, image in enumerate(images)])


def centre_view(images: Tensor, config: TestViewConfig) -> Tensor:
    """Resize the shorter side of images (..., 3, H, W) and take the centre, (..., 3, size, size)."""
    return F.center_crop(F.resize(images, [config.resize], antialias=True), [config.size, config.size])
