"""CutMix pastes patches of the shuffled batch, drawn as torchvision draws them."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from carryover.core.data.config import CutMixConfig
from carryover.pretrain.cutmix import draw_cutmix, paste

N = 8000


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_areas_are_those_of_torchvisions_cutmix(alpha: float) -> None:
    mix = draw_cutmix(CutMixConfig(alpha=alpha), 0, 0, torch.arange(N), 32)
    torch.manual_seed(0)
    transform = v2.CutMix(alpha=alpha, num_classes=2)
    theirs = np.array([transform.make_params([torch.zeros(3, 32, 32)])["lam_adjusted"] for _ in range(4000)])
    error = theirs.std() * np.sqrt(1 / N + 1 / len(theirs))
    assert abs(mix.kept.mean().item() - theirs.mean()) < 4 * error
    assert abs(mix.kept.std().item() - theirs.std()) < 4 * error


def test_a_patch_is_its_partners_and_the_rest_is_its_own() -> None:
    views = torch.rand(6, 3, 16, 16)
    mix = draw_cutmix(CutMixConfig(), 1, 2, torch.arange(10, 16), 16)
    assert sorted(mix.partner.tolist()) == list(range(6))
    mixed = paste(views, mix)
    for row in range(6):
        left, top, right, bottom = mix.box[row].tolist()
        expected = views[row].clone()
        expected[:, top:bottom, left:right] = views[mix.partner[row], :, top:bottom, left:right]
        assert torch.equal(mixed[row], expected)
        assert mix.kept[row].item() == pytest.approx(1 - (right - left) * (bottom - top) / 256)


def test_boxes_depend_on_seed_step_and_image_alone() -> None:
    config, index = CutMixConfig(), torch.arange(8)
    one = draw_cutmix(config, 0, 5, index, 32)
    assert torch.equal(one.box[2:], draw_cutmix(config, 0, 5, index[2:], 32).box)
    assert not torch.equal(one.box, draw_cutmix(config, 0, 6, index, 32).box)
    assert not torch.equal(one.box, draw_cutmix(config, 1, 5, index, 32).box)
