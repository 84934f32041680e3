"""The pretrained backbone inside an FCN: dilated instead of strided, every tensor where it was."""

from typing import Any

from torch import nn

from carryover.configs import UserError


def dilate(network: nn.Module, output_stride: int) -> None:
    """Trade the strides of a network's last stages for dilation, in place, until `output_stride` is left.

    Raises UserError for a network that cannot be dilated.
    """
    own: Any = getattr(network, "dilate", None)
    if own is not None:
        own(output_stride)
    elif output_stride != 32:
        raise UserError(
            f"model.output_stride {output_stride}: this backbone cannot be dilated; choose"
            " model.output_stride: 32, or model.name: upernet"
        )
