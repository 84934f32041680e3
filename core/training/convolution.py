"""Convolutions of small maps as matrix products, on CPUs whose matrix unit the library leaves idle there.

oneDNN feeds AMX one row of the output at a time. In a network's last stages a row is 2 to 8 pixels, and most
of each tile stays empty: a ResNet-18's weight gradients at 4 x 4 pixels take four times as long as the same
product does as one matrix. Here the patches are laid out as rows (im2col), and all pixels of the batch are
one matrix's. Where maps are larger the library is faster, since patches are k x k times the image.

oneDNN's weight gradients in bf16 are wrong where a part of the kernel meets the border at every pixel (3 x 3
with stride 2 on a map of 1 x 1): there it returns what the memory held before, seen with torch 2.14.1 on
AVX512_BF16 and AVX512. Such parts are cut away first, on every CPU; their gradient is 0.
"""

from functools import cache

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.functional import conv2d, pad

# Measured by benchmarks/convolution.py: up to how many output pixels an image the products are faster.
_PIXELS_OF_WEIGHT_GRADIENT = 64
_PIXELS_OF_ALL = 16
# Below this many channels a product is too small to be faster than the library's forward pass.
_CHANNELS_OF_ALL = 256


@cache
def has_idle_matrix_unit() -> bool:
    """Return whether this CPU multiplies bf16 matrices in AMX tiles."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def use_products(module: nn.Module) -> None:
    """Compute the convolutions in `module` as matrix products where that is faster: on a CPU with AMX.

    In place: names of parameters and states stay as they are. Only what is computed in bf16 on the CPU
    changes, and that by rounding; but weight gradients that the library gets wrong become right, on any CPU.
    Inside `torch.compile` there are no products.
    """
    if not all(parameter.device.type == "cpu" for parameter in module.parameters()):
        return
    for part in module.modules():
        if type(part) is nn.Conv2d and _is_plain(part):
            part.__class__ = Conv2d


class Conv2d(nn.Conv2d):
    """torch's convolution, square, without groups, dilation or bias; in bf16 partly by matrix products."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
        if input.device.type != "cpu" or dtype != torch.bfloat16 or input.dim() != 4:
            return super()._conv_forward(input, weight, bias)
        kernel, stride, padding = self.kernel_size[0], self.stride[0], int(self.padding[0])
        height, width = _sides(input, kernel, stride, padding)
        rows = _met(input.shape[-2], height, kernel, stride, padding)
        columns = _met(input.shape[-1], width, kernel, stride, padding)
        if (rows.stop - rows.start, columns.stop - columns.start) != (kernel, kernel):
            inner = weight[..., rows.start : rows.stop, columns.start : columns.stop]
            borders = (
                *_border(input.shape[-1], width, columns, stride, padding),
                *_border(input.shape[-2], height, rows, stride, padding),
            )
            return conv2d(pad(input, borders), inner, bias, stride)
        all_of_it = extent(self.in_channels, kernel, height * width)
        # torch.compile is left torch's convolution: of the products it made other code, and on a CPU with AMX
        # the loss was nan at the second step.
        if all_of_it is None or torch.compiler.is_compiling() or not has_idle_matrix_unit():
            return super()._conv_forward(input, weight, bias)
        return product_conv2d(input.to(dtype), weight.to(dtype), stride, padding, all_of_it)


def extent(channels: int, kernel: int, pixels: int) -> bool | None:
    """Return how much of a convolution is faster as matrix products.

    True: all of it; False: its weight's gradient alone; None: nothing. `channels` are the input's, `pixels`
    the output's of one image.
    """
    few = pixels <= _PIXELS_OF_WEIGHT_GRADIENT
    if kernel == 1:
        return few
    return pixels <= _PIXELS_OF_ALL and channels >= _CHANNELS_OF_ALL if few else None


def product_conv2d(x: Tensor, weight: Tensor, stride: int, padding: int, all_of_it: bool = True) -> Tensor:
    """Return the convolution of x (B, C, H, W) with weight (O, C, k, k): (B, O, H', W').

    The weight's gradient is a matrix product; with `all_of_it` so are the convolution itself and, at stride
    1, the input's gradient. Memory beside the results: B H' W' k k C numbers, one such matrix at a time.
    """
    made: Tensor = _Product.apply(x, weight, stride, padding, all_of_it)
    return made


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, stride: int, padding: int, all_of_it: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding, ctx.all_of_it = stride, padding, all_of_it  # type: ignore[attr-defined]
        if all_of_it:
            return _by_product(x, weight, stride, padding)
        return conv2d(x, weight, None, stride, padding)

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        stride, padding, kernel = ctx.stride, ctx.padding, weight.shape[-1]
        upstream = upstream.contiguous(memory_format=torch.channels_last)
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            if ctx.all_of_it and stride == 1:
                turned = weight.flip(2, 3).transpose(0, 1)
                of_x = _by_product(upstream, turned, 1, kernel - 1 - padding)
            else:
                of_x = _gradient_of_input(upstream, x, weight, stride, padding)
        if ctx.needs_input_grad[1]:
            out = upstream.shape[1]
            patches = _patches(x, kernel, stride, padding)
            # In this order, (O, k, k, C), it is channels_last as the parameter is: nothing to reorder.
            of_weight = (_rows(upstream).t() @ patches).view(out, kernel, kernel, -1).permute(0, 3, 1, 2)
        return of_x, of_weight, None, None, None


def _gradient_of_input(upstream: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    # Not `torch.nn.grad.conv2d_input`: without the input itself it loses the memory format where k is 1.
    backward = torch.ops.aten.convolution_backward
    pair, none = [stride, stride], [0, 0]
    only_input = [True, False, False]
    of_x: Tensor = backward(
        upstream, x, weight, None, pair, [padding, padding], [1, 1], False, none, 1, only_input
    )[0]
    return of_x


def _by_product(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    kernel = weight.shape[-1]
    height, width = _sides(x, kernel, stride, padding)
    flat = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
    made = _patches(x, kernel, stride, padding) @ flat.t()
    return made.view(len(x), height, width, len(weight)).permute(0, 3, 1, 2)


def _met(side: int, made: int, kernel: int, stride: int, padding: int) -> range:
    """Return which positions of a kernel, along one side, meet a pixel of the image for any output."""
    met = [at for at in range(kernel) if any(0 <= out * stride + at - padding < side for out in range(made))]
    return range(met[0], met[-1] + 1)


def _border(side: int, made: int, met: range, stride: int, padding: int) -> tuple[int, int]:
    """Return how far an image is padded (less than 0: cut) for the part of a kernel that meets it."""
    before = padding - met.start
    return before, (made - 1) * stride + len(met) - side - before


def _sides(x: Tensor, kernel: int, stride: int, padding: int) -> tuple[int, int]:
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side in x.shape[-2:])
    return height, width


def _patches(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Return what each output pixel looks at, a row each: (B H' W', k k C)."""
    rows = x.permute(0, 2, 3, 1)
    if padding:
        rows = pad(rows, (0, 0, padding, padding, padding, padding))
    windows = rows.unfold(1, kernel, stride).unfold(2, kernel, stride)
    return windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, kernel * kernel * x.shape[1])


def _rows(x: Tensor) -> Tensor:
    """Return every pixel of (B, C, H, W) as a row: (B H W, C)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _is_plain(part: nn.Conv2d) -> bool:
    if isinstance(part.padding, str) or part.padding_mode != "zeros" or part.bias is not None:
        return False
    square = all(len(set(pair)) == 1 for pair in (part.kernel_size, part.stride, part.padding))
    # A wider border than the kernel's reach has no counterpart in the input's gradient.
    return square and part.groups == 1 and part.dilation == (1, 1) and part.padding[0] < part.kernel_size[0]
