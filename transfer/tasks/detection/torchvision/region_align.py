"""ROIAlign as a sparse linear map: several times faster than torchvision's kernel on a CPU."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align


def region_align(feature: Tensor, regions: Tensor, size: int, scale: float) -> Tensor:
    """Average bilinear samples in the size x size cells of each region, in float32.

    What `torchvision.ops.roi_align(aligned=True, sampling_ratio=0)` computes, and on a GPU what computes it.
    On a CPU that kernel walks channels one number at a time; here every cell is a weighted sum of pixels, all
    channels at once.

    Parameters
    ----------
    feature
        (images, channels, H, W).
    regions
        (n, 5): image, then x1, y1, x2, y2 in pixels of the input, of which one feature pixel has 1 / `scale`.

    Returns
    -------
    Tensor
        (n, channels, size, size).
    """
    feature = feature.float()
    if feature.device.type != "cpu" or len(regions) == 0:
        pooled: Tensor = roi_align(feature, regions, (size, size), scale, sampling_ratio=0, aligned=True)
        return pooled
    channels, height, width = feature.shape[1:]
    # Channels last: a pixel's channels lie together, and the weighted sums run along them.
    pixels = feature.permute(0, 2, 3, 1).reshape(-1, channels)
    corners = regions[:, 1:].detach() * scale - 0.5
    cell = (corners[:, 2:] - corners[:, :2]) / size
    samples = cell.ceil().clamp(min=0).long()
    most = samples.amax(dim=1).clamp(min=1)
    image = regions[:, 0].long() * (height * width)
    order, pooled_groups = [], []
    # Regions that need equally many samples a cell are summed together, so that few weights are zero.
    for count in most.unique().tolist():
        group = torch.where(most == count)[0]
        x, x_weight = _taps(corners[group, 0], cell[group, 0], samples[group, 0], count, size, width)
        y, y_weight = _taps(corners[group, 1], cell[group, 1], samples[group, 1], count, size, height)
        index = (y * width)[:, :, None, :, None] + x[:, None, :, None, :]
        index = index + image[group, None, None, None, None]
        weight = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]
        cells = F.embedding_bag(
            index.flatten(0, 2).flatten(1),
            pixels,
            mode="sum",
            per_sample_weights=weight.flatten(0, 2).flatten(1),
        )
        order.append(group)
        pooled_groups.append(cells.view(len(group), size, size, channels))
    pooled = torch.cat(pooled_groups)[torch.cat(order).argsort()]
    return pooled.permute(0, 3, 1, 2)


def _taps(
    start: Tensor, cell: Tensor, samples: Tensor, count: int, size: int, length: int
) -> tuple[Tensor, Tensor]:
    """Return which pixels each cell reads along one axis, and with what weight: (n, size, 2 count) each.

    A sample more than a pixel outside the map counts as zero, one nearer as the pixel at the edge; a region
    without extent has no samples, and so is zero.
    """
    step = torch.arange(count)
    divisor = samples.clamp(min=1)[:, None]
    place = (step + 0.5) / divisor
    position = start[:, None, None] + cell[:, None, None] * (torch.arange(size)[:, None] + place[:, None, :])
    counted = (step < samples[:, None])[:, None, :] & (position >= -1.0) & (position <= length)
    position = position.clamp(0, length - 1)
    low = position.floor().long()
    high = (low + 1).clamp(max=length - 1)
    fraction = position - low
    share = counted / divisor[:, :, None]
    return torch.cat([low, high], dim=-1), torch.cat([(1 - fraction) * share, fraction * share], dim=-1)
