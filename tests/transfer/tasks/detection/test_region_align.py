"""Pooling of regions against torchvision's kernel and against a function known in closed form."""

import pytest
import torch
from torchvision.ops import roi_align

from carryover.transfer.tasks.detection.torchvision.heads import RegionPool
from carryover.transfer.tasks.detection.torchvision.region_align import region_align

ORDINARY = [[0, 3.2, 4.1, 30.7, 22.9], [1, 10, 2, 18, 40], [0, 0, 0, 64, 48], [1, 33.3, 20.1, 35.0, 47.9]]
BEYOND_THE_EDGE = [
    [0, -20, -30, 10, 8],
    [1, 50, 40, 90, 75],
    [0, -100, -100, -60, -80],
    [1, 63, 47, 200, 300],
]
DEGENERATE = [[0, 5, 5, 5, 5], [1, 7, 9, 7.001, 30], [0, 12, 30, 40, 30.0005]]


@pytest.mark.parametrize("regions", [ORDINARY, BEYOND_THE_EDGE, DEGENERATE, ORDINARY + BEYOND_THE_EDGE])
@pytest.mark.parametrize(("size", "scale"), [(7, 0.25), (14, 0.125), (3, 0.5)])
def test_agrees_with_torchvision_forward_and_backward(regions, size, scale):
    torch.manual_seed(0)
    feature = torch.randn(2, 5, int(48 * scale), int(64 * scale))
    rois = torch.tensor(regions, dtype=torch.float32)
    weight = torch.randn(len(regions), 5, size, size)
    results = []
    for pool in (
        lambda x: region_align(x, rois, size, scale),
        lambda x: roi_align(x, rois, (size, size), scale, sampling_ratio=0, aligned=True),
    ):
        x = feature.clone().requires_grad_()
        pooled = pool(x)
        (pooled * weight).sum().backward()
        results.append((pooled.detach(), x.grad))
    (ours, our_gradient), (theirs, their_gradient) = results
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(our_gradient, their_gradient, atol=1e-4, rtol=1e-4)


def test_no_region_gives_no_cell():
    pooled = region_align(torch.randn(1, 4, 6, 6, requires_grad=True), torch.zeros(0, 5), 7, 0.25)
    assert pooled.shape == (0, 4, 7, 7)
    pooled.sum().backward()


def test_a_ramp_is_read_at_the_center_of_every_cell():
    # Averages of a linear function are its values at the middle; pixel (x, y) has its center at x + 1/2.
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    ramp = (3 * (x + 0.5) - 2 * (y + 0.5))[None, None]
    left, top, right, bottom = 16.0, 12.0, 80.0, 60.0  # pixels of the input, of which a feature has 4
    pooled = region_align(ramp, torch.tensor([[0, left, top, right, bottom]]), 4, 0.25)[0, 0]
    centers = (torch.arange(4) + 0.5) / 4
    expected_x = (left + centers * (right - left)) / 4
    expected_y = (top + centers * (bottom - top)) / 4
    torch.testing.assert_close(pooled, 3 * expected_x[None, :] - 2 * expected_y[:, None])


def test_bfloat16_maps_are_pooled_in_float32():
    feature = torch.randn(1, 3, 12, 16).bfloat16()
    pooled = region_align(feature, torch.tensor([[0, 3.0, 4.0, 30.0, 20.0]]), 7, 0.25)
    assert pooled.dtype == torch.float32


def test_regions_go_to_levels_by_their_size():
    # Eq. 1 of the FPN paper: level 4 (stride 16) for 224 pixels, one level less for half of that.
    pool = RegionPool(7, (4, 8, 16, 32))
    features = {
        str(i): torch.full((1, 1, 800 // s, 800 // s), float(i)) for i, s in enumerate((4, 8, 16, 32, 64))
    }
    sides = (20.0, 111.0, 113.0, 223.0, 225.0, 447.0, 449.0, 790.0)
    boxes = torch.tensor([[4.0, 4.0, 4 + s, 4 + s] for s in sides])
    pooled = pool(features, [boxes])
    assert pooled.mean(dim=(1, 2, 3)).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_pooled_regions_keep_their_order_over_images_and_levels():
    torch.manual_seed(0)
    pool = RegionPool(7, (4, 8, 16, 32))
    features = {str(i): torch.randn(2, 3, 256 // s, 256 // s) for i, s in enumerate((4, 8, 16, 32))}
    boxes = [torch.tensor([[0.0, 0, 250, 250], [5, 5, 30, 30]]), torch.tensor([[9.0, 9, 200, 180]])]
    together = pool(features, boxes)
    alone = [pool(features, [boxes[0][:1], boxes[1][:0]]), pool(features, [boxes[0][:0], boxes[1]])]
    torch.testing.assert_close(together[0], alone[0][0])
    torch.testing.assert_close(together[2], alone[1][0])
