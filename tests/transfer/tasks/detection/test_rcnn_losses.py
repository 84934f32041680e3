"""The losses of both stages, written out in float64."""

import math

import torch

from carryover.transfer.tasks.detection.model_config import FPNConfig
from carryover.transfer.tasks.detection.torchvision.heads import box_losses, mask_loss
from carryover.transfer.tasks.detection.torchvision.rpn import build_rpn


def test_classification_averages_over_all_regions_and_boxes_count_positives_only():
    torch.manual_seed(0)
    logits = torch.randn(5, 3, dtype=torch.float64)
    deltas = torch.randn(5, 12, dtype=torch.float64)
    targets = torch.randn(5, 4, dtype=torch.float64)
    labels = torch.tensor([0, 2, 0, 1, 0])
    classification = -sum(
        logits[i, k] - math.log(sum(math.exp(v) for v in logits[i])) for i, k in enumerate(labels)
    )
    boxes = sum(
        abs(deltas[1, 8 + j] - targets[1, j]) + abs(deltas[3, 4 + j] - targets[3, j]) for j in range(4)
    )
    found = box_losses(logits, deltas, labels, targets)
    torch.testing.assert_close(found["loss_classifier"], classification / 5)
    torch.testing.assert_close(found["loss_box_reg"], boxes / 5)


def test_only_background_leaves_no_box_loss_but_a_gradient_path():
    deltas = torch.randn(4, 8, requires_grad=True)
    found = box_losses(torch.randn(4, 2), deltas, torch.zeros(4, dtype=torch.long), torch.randn(4, 4))
    assert found["loss_box_reg"].item() == 0
    found["loss_box_reg"].backward()
    assert not deltas.grad.any()


def test_mask_loss_is_that_of_the_true_class():
    logits = torch.tensor([[[[9.0]], [[0.3]]], [[[-1.2]], [[9.0]]]], dtype=torch.float64)
    truth = torch.tensor([[[True]], [[False]]])
    found = mask_loss(logits, torch.tensor([1, 0]), truth)
    expected = (math.log(1 + math.exp(-0.3)) + math.log(1 + math.exp(-1.2))) / 2
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_mask_loss_without_positive_regions_is_zero():
    logits = torch.zeros(0, 3, 28, 28, requires_grad=True)
    loss = mask_loss(logits, torch.zeros(0, dtype=torch.long), torch.zeros(0, 28, 28))
    assert loss.item() == 0
    loss.backward()


def test_proposal_losses_are_divided_by_the_whole_sample():
    # Two anchors exist where a sample could hold 256: Detectron2 still divides by 256 an image.
    rpn = build_rpn(8, FPNConfig(name="fpn"), (4, 8, 16, 32, 64))
    objectness = torch.tensor([[0.7], [-0.2]], dtype=torch.float64)
    deltas = torch.tensor([[0.1, -0.2, 0.3, 0.0], [5.0, 5.0, 5.0, 5.0]], dtype=torch.float64)
    labels = [torch.tensor([1.0, 0.0], dtype=torch.float64)]
    classification, boxes = rpn.compute_loss(objectness, deltas, labels, [torch.zeros(2, 4).double()])
    expected = (math.log(1 + math.exp(-0.7)) + math.log(1 + math.exp(-0.2))) / 256
    torch.testing.assert_close(classification.item(), expected)
    torch.testing.assert_close(boxes.item(), 0.6 / 256)
