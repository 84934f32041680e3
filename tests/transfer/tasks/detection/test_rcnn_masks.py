"""Masks cut out of objects for training, and pasted into images after testing."""

import torch

from carryover.transfer.tasks.detection.torchvision.masks import mask_targets, paste_masks


def test_a_target_is_the_object_inside_the_region():
    masks = torch.zeros(2, 40, 60, dtype=torch.uint8)
    masks[1, :, 30:] = 1  # the right half of the image
    boxes = torch.tensor([[20.0, 0.0, 40.0, 20.0], [0.0, 0.0, 28.0, 28.0]])
    found = mask_targets(masks, boxes, torch.tensor([1, 1]), (40, 60), 28)
    assert found.shape == (2, 28, 28)
    assert not found[0, :, :14].any()
    assert found[0, :, 14:].all()
    assert not found[1].any()


def test_targets_do_not_change_with_the_size_the_image_was_resized_to():
    torch.manual_seed(0)
    masks = torch.zeros(1, 48, 64, dtype=torch.uint8)
    masks[0, 10:30, 12:47] = 1
    boxes = torch.tensor([[8.0, 4.0, 50.0, 40.0]])
    one = mask_targets(masks, boxes, torch.tensor([0]), (48, 64), 14)
    scaled = mask_targets(masks, boxes * 2.5, torch.tensor([0]), (120, 160), 14)
    assert torch.equal(one, scaled)
    assert 0.3 < one.float().mean() < 0.7


def test_no_region_no_target():
    found = mask_targets(torch.zeros(0, 9, 9), torch.zeros(0, 4), torch.zeros(0).long(), (9, 9), 28)
    assert found.shape == (0, 28, 28)


def test_a_full_mask_fills_the_pixels_whose_centers_lie_in_its_box():
    masks = torch.ones(1, 28, 28)
    pasted = paste_masks(masks, torch.tensor([[3.2, 4.6, 17.4, 12.4]]), 20, 30)[0]
    rows, columns = pasted.any(dim=1).nonzero().flatten(), pasted.any(dim=0).nonzero().flatten()
    assert (columns[0].item(), columns[-1].item()) == (3, 16)
    assert (rows[0].item(), rows[-1].item()) == (5, 11)
    assert pasted.sum() == 14 * 7


def test_a_box_that_leaves_the_image_is_cut():
    pasted = paste_masks(torch.ones(2, 28, 28), torch.tensor([[-5.0, -5, 4, 4], [40.0, 40, 60, 60]]), 20, 30)
    assert pasted[0].sum() == 16
    assert not pasted[1].any()


def test_nothing_to_paste():
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), 5, 6).shape == (0, 5, 6)
