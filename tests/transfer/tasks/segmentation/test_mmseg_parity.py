"""The same recipe and checkpoint in mmsegmentation and in our FCN: features, logits, losses, rates."""

import pytest
import torch

from carryover.core.backbones.build import feature_maps
from carryover.core.backbones.inspection import load_backbone
from carryover.core.data.masks.dataset import IGNORED
from carryover.transfer.convert.mmcv_stub import install
from carryover.transfer.tasks.segmentation.torchvision.backbone import dilate
from carryover.transfer.tasks.segmentation.torchvision.inference import slide
from carryover.transfer.tasks.segmentation.torchvision.model import build_segmenter, losses
from tests.transfer.convert.backbones import write_backbone
from tests.transfer.tasks.segmentation.mmseg_names import mmseg_name
from tests.transfer.tasks.segmentation.scenes import CLASSES, recipe

pytestmark = pytest.mark.mmseg


def _pair(tmp_path, arch="resnet18", *more):
    """Our segmenter and mmseg's, of one recipe and checkpoint, with the same heads."""
    install()
    from carryover.transfer.convert import convert
    from carryover.transfer.tasks.segmentation.mmseg.model import build_model, model_settings

    config = recipe(tmp_path, "model.dropout=0", *more)
    checkpoint = write_backbone(tmp_path / "b.safetensors", arch)
    backbone, about = load_backbone(checkpoint)
    ours = build_segmenter(about.backbone, backbone.state_dict(), config.model, len(CLASSES), 0)
    receipt = convert(checkpoint, "mmseg", tmp_path / "b.pth")
    settings = model_settings(config, about.backbone, len(CLASSES), tmp_path / "b.pth", "BN")
    theirs, carried = build_model(settings, receipt, 1)
    assert carried == len(backbone.state_dict())
    heads = {
        mmseg_name(name): value
        for name, value in ours.state_dict().items()
        if not name.startswith("backbone.")
    }
    missing, unexpected = theirs.load_state_dict(heads, strict=False)
    assert not unexpected
    assert all(name.startswith("backbone.") for name in missing)
    return config, ours, theirs, backbone


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50"])
def test_backbone_features(tmp_path, arch):
    _, _, theirs, backbone = _pair(tmp_path, arch)
    dilate(backbone, 8)
    images = torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        expected = list(feature_maps(backbone.eval(), images).values())[1:]
        found = theirs.eval().backbone(images)
    for mine, yours in zip(expected, found, strict=True):
        assert mine.shape == yours.shape
        assert float((mine - yours).abs().max()) <= 1e-4


@pytest.mark.parametrize("align", ["true", "false"])
def test_logits_and_labels(tmp_path, align):
    keys = (f"model.align_corners={align}", "model.output_stride=16", "model.convs=1")
    _, ours, theirs, _ = _pair(tmp_path, "resnet18", *keys)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        mine = ours.eval()(images)["out"]
        yours = theirs.eval().predict(images)
    for logits, sample in zip(mine, yours, strict=True):
        assert float((logits - sample.seg_logits.data).abs().max()) <= 1e-4
        same = (logits.argmax(dim=0) == sample.pred_sem_seg.data[0]).float().mean()
        assert float(same) > 0.999


def test_a_sliding_window(tmp_path):
    keys = ("input.test_mode=slide", "input.test_stride=[32, 40]")
    _, ours, theirs, _ = _pair(tmp_path, "resnet18", *keys)
    images = torch.randn(1, 3, 70, 100)
    with torch.no_grad():
        mine = slide(ours.eval(), images, (48, 48), (32, 40))
        yours = theirs.eval().slide_inference(images, [{"img_shape": (70, 100), "ori_shape": (70, 100)}])
    assert float((mine - yours).abs().max()) <= 1e-4


def test_losses_and_gradients_in_training(tmp_path):
    config, ours, theirs, _ = _pair(tmp_path)
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    # In float64 up to the logits: float32 rounds some activations to the other side of a ReLU.
    ours, theirs = ours.double(), theirs.double()
    images = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    labels = torch.randint(0, len(CLASSES), (2, 48, 48))
    labels[:, :5] = IGNORED
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label[None])) for label in labels]
    mine = losses(ours.train()(images), labels, config.model)
    yours = theirs.train().loss(images, samples)
    assert mine["loss_seg"].item() == pytest.approx(yours["decode.loss_ce"].item(), rel=1e-6)
    assert mine["loss_aux"].item() == pytest.approx(yours["aux.loss_ce"].item(), rel=1e-6)
    sum(mine.values()).backward()
    (yours["decode.loss_ce"] + yours["aux.loss_ce"]).backward()
    for name in ("layer4.1.conv2.weight", "layer1.0.bn1.bias"):
        one = ours.get_parameter(f"backbone.{name}").grad
        other = theirs.get_parameter(f"backbone.{name}").grad
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_learning_rates(tmp_path):
    from mmengine.optim import PolyLR

    solver = recipe(tmp_path, "solver.max_iter=40").solver
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=solver.peak_lr)
    schedule = PolyLR(optimizer, eta_min=solver.final_lr, power=solver.power, begin=0, end=40, by_epoch=False)
    for iteration in range(40):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(solver.rate(iteration), rel=1e-6)
        optimizer.step()
        schedule.step()


def test_crops_and_scales_follow_the_same_rules(tmp_path):
    """mmseg's pipeline and ours on one image without randomness: the same labels, nearly the same pixels."""
    install()
    import numpy as np
    from PIL import Image

    from carryover.core.data.masks.dataset import SegmentationImage, index_code
    from carryover.transfer.tasks.segmentation.mmseg.data import as_mmseg, compose, training_pipeline
    from carryover.transfer.tasks.segmentation.transforms import train_example

    smooth = np.add.outer(np.arange(60), np.arange(80)).astype(np.uint8)
    Image.fromarray(np.stack([smooth, 2 * (smooth // 2), 200 - smooth], axis=2)).save(tmp_path / "i.png")
    Image.fromarray((smooth // 40).astype(np.uint8)).save(tmp_path / "m.png")
    source = SegmentationImage("i", tmp_path / "i.png", tmp_path / "m.png", 80, 60)
    keys = (
        "input.flip=false",
        "input.photometric=false",
        "input.ratio_range=[1, 1]",
        "input.cat_max_ratio=1",
    )
    # As large as the scaled image: one place to crop. Scaled up: nothing antialiases.
    shown = recipe(tmp_path, *keys, "input.scale=[160, 120]", "input.crop_size=[120, 160]").input
    code = index_code(len(CLASSES))
    mine = train_example(source, code, shown, np.random.default_rng(0))
    yours = compose(training_pipeline(shown, code))(as_mmseg(source))
    labels = yours["data_samples"].gt_sem_seg.data[0]
    assert mine.labels.shape == labels.shape
    assert float((mine.labels == labels).float().mean()) > 0.97
    theirs = yours["inputs"].flip(0)  # mmcv decodes to BGR
    assert float((mine.image.float() - theirs.float()).abs().max()) <= 2
