"""The FCN: torchvision's own where it has one, a dilated backbone whose tensors are the checkpoint's."""

import pytest
import torch
from torch import nn
from torchvision.models.segmentation import fcn_resnet50

from carryover.configs import UserError, WorkError
from carryover.core.backbones.build import build_backbone, feature_maps
from carryover.core.data.masks.dataset import IGNORED
from carryover.core.formats.backbone import BackboneConfig
from carryover.transfer.tasks.segmentation.config import SolverConfig
from carryover.transfer.tasks.segmentation.maps import require_segmentable
from carryover.transfer.tasks.segmentation.model_config import AuxiliaryConfig, FCNConfig
from carryover.transfer.tasks.segmentation.torchvision.backbone import dilate
from carryover.transfer.tasks.segmentation.torchvision.backend import prove
from carryover.transfer.tasks.segmentation.torchvision.inference import slide
from carryover.transfer.tasks.segmentation.torchvision.model import ConvHead, build_segmenter, losses

SMALL = FCNConfig(name="fcn", channels=8, auxiliary=AuxiliaryConfig(channels=8))


def _weights(arch: str, width: int = 1):
    torch.manual_seed(1)
    about = BackboneConfig.model_validate({"arch": arch, "width": width})
    return about, build_backbone(about).state_dict()


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50"])
@pytest.mark.parametrize(("output_stride", "sizes"), [(8, (8, 8)), (16, (4, 4)), (32, (4, 2))])
def test_dilation_trades_stride_for_reach_and_keeps_every_tensor(arch, output_stride, sizes):
    about, weights = _weights(arch)
    model = build_segmenter(about, weights, SMALL.model_copy(update={"output_stride": output_stride}), 5, 0)
    assert prove(model, weights) == len(weights)
    maps = model.eval().backbone(torch.randn(1, 3, 64, 64))
    assert [tuple(maps[name].shape[-2:]) for name in ("aux", "out")] == [(s, s) for s in sizes]
    logits = model(torch.randn(1, 3, 64, 64))
    assert {k: tuple(v.shape) for k, v in logits.items()} == {"out": (1, 5, 64, 64)}


def test_the_dilated_resnet_50_is_torchvisions_fcn():
    about, weights = _weights("resnet50")
    config = FCNConfig(name="fcn", channels=512, convs=1, concat_input=False)
    ours = build_segmenter(about, weights, config, 4, 0).eval()
    theirs = fcn_resnet50(weights=None, weights_backbone=None, num_classes=4, aux_loss=True).eval()
    # torchvision's heads are sequences of the same layers in the same order.
    state = {k: v for k, v in ours.state_dict().items() if k.startswith("backbone.")}
    for mine, yours in (("classifier", "classifier"), ("aux_classifier", "aux_classifier")):
        tensors = [v for k, v in ours.state_dict().items() if k.startswith(f"{mine}.")]
        names = [k for k in theirs.state_dict() if k.startswith(f"{yours}.")]
        state |= dict(zip(names, tensors, strict=True))
    theirs.load_state_dict(state)
    # In float64: the two lay their tensors out differently, and an untrained network has large logits.
    images = torch.randn(2, 3, 65, 97, dtype=torch.float64)
    with torch.no_grad():
        found, expected = ours.double()(images)["out"], theirs.double()(images)["out"]
    assert torch.allclose(found, expected.float(), rtol=1e-5, atol=1e-5)


def test_a_wide_backbone_has_wide_heads():
    about, weights = _weights("resnet18", width=2)
    model = build_segmenter(about, weights, SMALL, 3, 0)
    assert isinstance(model.classifier, ConvHead)
    first = model.classifier.convs[0]
    assert isinstance(first, nn.Sequential)
    assert first[0].in_channels == 1024


def test_new_layers_come_from_the_seed_alone():
    about, weights = _weights("resnet18")
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, again, other = (build_segmenter(about, weights, SMALL, 3, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[k], again[k]) for k in one)
    assert not torch.equal(one["classifier.convs.0.0.weight"], other["classifier.convs.0.0.weight"])


def test_the_auxiliary_head_is_for_training_only_and_may_be_left_out():
    about, weights = _weights("resnet18")
    images = torch.randn(2, 3, 64, 64)
    assert set(build_segmenter(about, weights, SMALL, 3, 0)(images)) == {"out", "aux"}
    assert set(build_segmenter(about, weights, SMALL, 3, 0).eval()(images)) == {"out"}
    none = build_segmenter(about, weights, SMALL.model_copy(update={"auxiliary": None}), 3, 0)
    assert set(none(images)) == {"out"}


class TestProof:
    def test_a_tensor_that_was_not_carried_is_named(self):
        about, weights = _weights("resnet18")
        model = build_segmenter(about, weights, SMALL, 3, 0)
        with torch.no_grad():
            model.get_parameter("backbone.layer3.0.conv1.weight").add_(1e-7)
        with pytest.raises(WorkError, match=r"'layer3\.0\.conv1\.weight' arrived with other values"):
            prove(model, weights)

    def test_a_tensor_that_the_checkpoint_lacks_is_named(self):
        about, weights = _weights("resnet18")
        model = build_segmenter(about, {k: v for k, v in weights.items() if k != "conv1.weight"}, SMALL, 3, 0)
        with pytest.raises(WorkError, match=r"'conv1\.weight'"):
            prove(model, weights)

    @pytest.mark.parametrize(
        ("about", "message"),
        [
            ({"arch": "mobilenet_v2", "stem": "cifar"}, "'cifar' stem"),
            ({"arch": "resnet18", "stem": "cifar"}, "'cifar' stem"),
        ],
    )
    def test_backbones_without_stages_are_refused(self, about, message):
        with pytest.raises(UserError, match=message):
            require_segmentable(BackboneConfig.model_validate(about))


def test_a_loss_averages_over_all_pixels_and_weighs_the_auxiliary_head():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 4, 5))
    labels[0, 0] = IGNORED
    found = losses({"out": logits, "aux": logits}, labels, SMALL)
    log = logits.log_softmax(dim=1)
    counted = [(n, y, x) for n in range(2) for y in range(4) for x in range(5) if labels[n, y, x] != IGNORED]
    expected = -sum(log[n, labels[n, y, x], y, x] for n, y, x in counted) / 40
    assert float(found["loss_seg"]) == pytest.approx(float(expected), rel=1e-6)
    assert float(found["loss_aux"]) == pytest.approx(0.4 * float(expected), rel=1e-6)


def test_the_rate_falls_from_the_first_to_the_last():
    solver = SolverConfig(max_iter=11, base_lr=0.01, min_lr=1e-4)
    rates = [solver.rate(t) for t in range(11)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[5] == pytest.approx(1e-4 + (0.01 - 1e-4) * 0.5**0.9)
    assert rates[10] == pytest.approx(1e-4)
    assert rates == sorted(rates, reverse=True)
    assert SolverConfig(max_iter=1).rate(0) == pytest.approx(0.01)


def test_dilated_features_are_those_of_the_strided_network_up_to_layer2():
    about, weights = _weights("resnet18")
    resnet = build_backbone(about)
    resnet.load_state_dict(weights)
    resnet.eval()
    images = torch.randn(1, 3, 64, 64)
    before = feature_maps(resnet, images)
    dilate(resnet, 8)
    after = feature_maps(resnet, images)
    for stage in ("stem", "layer1", "layer2"):
        assert torch.equal(before[stage], after[stage])
    assert after["layer3"].shape[-1] == 2 * before["layer3"].shape[-1]


class TestSlidingWindow:
    class _Pointwise(nn.Module):
        """Logits of a pixel that depend on that pixel alone: then windows must not matter."""

        def __init__(self) -> None:
            super().__init__()
            self.seen: list[tuple[int, ...]] = []

        def forward(self, x):
            self.seen.append(tuple(x.shape[-2:]))
            return {"out": torch.stack([x.sum(dim=1), -x[:, 0]], dim=1)}

    @pytest.mark.parametrize("size", [(50, 70), (32, 32), (20, 90), (33, 64)])
    def test_windows_cover_every_pixel(self, size):
        model = self._Pointwise()
        pixels = torch.randn(1, 3, *size)
        found = slide(model, pixels, (32, 32), (20, 24))
        assert torch.allclose(found, model(pixels)["out"], atol=1e-6)
        assert all(h <= 32 and w <= 32 for h, w in model.seen[:-1])

    def test_overlaps_are_averaged(self):
        calls = iter((torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4)))

        class Changing(nn.Module):
            def forward(self, x):
                return {"out": next(calls)}

        found = slide(Changing(), torch.zeros(1, 3, 4, 6), (4, 4), (4, 2))
        assert found[0, 0, 0].tolist() == [0, 0, 0.5, 0.5, 1, 1]
