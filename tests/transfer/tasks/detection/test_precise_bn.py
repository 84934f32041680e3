"""Batch statistics measured anew."""

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from carryover.transfer.tasks.detection.torchvision.precise_bn import recalibrate


class Detector(nn.Module):
    """Something that is called like one."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, images, targets):
        return {"loss": self.norm(torch.stack(images)).sum()}


def test_statistics_become_those_of_all_batches_together():
    torch.manual_seed(0)
    batches = [[torch.randn(3, 4, 5) * 3 + 50 for _ in range(n)] for n in (2, 5, 1)]
    detector = Detector(nn.BatchNorm2d(3))
    assert recalibrate(detector, [(b, []) for b in batches]) == 1
    everything = torch.stack([image for b in batches for image in b]).double()
    expected = everything.var(dim=(0, 2, 3), correction=0), everything.mean(dim=(0, 2, 3))
    torch.testing.assert_close(detector.norm.running_var.double(), expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(detector.norm.running_mean.double(), expected[1], rtol=1e-6, atol=1e-5)


def test_the_number_of_layers_is_told_and_frozen_ones_are_left_alone():
    detector = Detector(FrozenBatchNorm2d(3))
    before = detector.norm.running_mean.clone()
    assert recalibrate(detector, [([torch.randn(3, 4, 5)], [])]) == 0
    assert torch.equal(detector.norm.running_mean, before)


def test_weights_do_not_change_and_nothing_stays_attached():
    detector = Detector(nn.BatchNorm2d(3))
    weight = detector.norm.weight.clone()
    recalibrate(detector, [([torch.randn(3, 4, 5)], [])])
    assert torch.equal(detector.norm.weight, weight)
    assert not detector.norm._forward_pre_hooks
