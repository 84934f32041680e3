"""One network in torchvision's and Detectron2's pyramids: the same features, losses and detections."""

import pytest
import torch

from carryover.core.backbones.build import build_backbone
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.formats.metrics_log import read_metrics
from carryover.transfer.tasks.detection.config import InputConfig
from carryover.transfer.tasks.detection.model_config import FPNConfig, FPNRPNConfig
from carryover.transfer.tasks.detection.pyramid import as_trained
from carryover.transfer.tasks.detection.torchvision.model import build_detector
from carryover.transfer.tasks.evaluate import evaluate
from tests.core.backbones.makers_networks import randomized
from tests.interrupting import in_two_parts
from tests.transfer.convert.timm_backbones import write_timm
from tests.transfer.tasks.detection import runs
from tests.transfer.tasks.detection import test_rcnn_parity as parity

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2", reason="Detectron2 is not importable: put it on PYTHONPATH")

VITDET = {
    "masks": True,
    "fpn_norm": "LN",
    "head_norm": "LN",
    "box_convs": 2,
    "box_conv_dim": 32,
    "box_fcs": 1,
    "mask_convs": 2,
    "mask_dim": 32,
}
# Maps of 6 x 8 patches and more: windows of 4 and 14 are padded, tables of 84 patches interpolated.
WINDOWS = {**VITDET, "window_size": 4, "relative_positions": True}
NETWORKS = {
    "Detectron2's own ViT": ("vit_tiny_patch16_224", VITDET, 2),
    "Detectron2's own ViT, patches of 14": ("vit_small_patch14_dinov2", VITDET, 1),
    "Detectron2's own ViT, patches of 8": ("vit_small_patch8_224", VITDET, 1),
    "windows, patches of 8": ("vit_small_patch8_224", {**WINDOWS, "window_size": 14}, 1),
    "windows and relative positions": ("vit_tiny_patch16_224", WINDOWS, 2),
    "windows of 14, patches of 14": ("vit_small_patch14_dinov2", {**WINDOWS, "window_size": 14}, 1),
    "windows alone": ("vit_tiny_patch16_224", {**WINDOWS, "relative_positions": False}, 1),
    "relative positions alone": ("vit_tiny_patch16_224", {**WINDOWS, "window_size": 0}, 1),
    "registers": ("vit_small_patch14_reg4_dinov2", {}, 1),
    "rotary positions": ("vit_small_patch16_dinov3", {}, 1),
    "convnext": ("convnext_atto", {"level_norm": "LN"}, 1),
    "swin": ("swin_tiny_patch4_window7_224", {"level_norm": "LN"}, 1),
    "resnext": ("resnext50_32x4d", {"norm": "BN"}, 1),
}


@pytest.fixture(params=NETWORKS, scope="module")
def pair(request):
    from tests.transfer.tasks.detection.detectron2_twin import give_weights, twin

    name, more, convs = NETWORKS[request.param]
    limits = FPNRPNConfig(**parity.RPN_LIMITS, head_convs=convs)
    plain = {"name": "fpn", "norm": "BN", "fpn_dim": 32, "box_fc_dim": 64, "rpn": limits}
    sizes = {"anchor_sizes": (16, 32, 64, 128, 256), "roi": parity.SMALL_ROI}
    config = FPNConfig.model_validate(plain | sizes | more)
    about = BackboneConfig(arch=f"timm/{name}", input_size=56 if "dinov2" in name else None)
    network = randomized(build_backbone(about))
    trained, weights, _ = as_trained(about, network.state_dict(), config, InputConfig())
    if VITDET.items() <= more.items():
        # LayerScale is folded for Detectron2: here it is one.
        weights = {n: torch.ones_like(v) if n.endswith("gamma") else v for n, v in weights.items()}
    ours = build_detector(trained, weights, config, InputConfig(), parity.CLASSES, seed=1)
    for parameter_name, parameter in ours.named_parameters():
        if "predictor" in parameter_name or "rpn.head" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.05)
        if "rel_pos" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.5)
    theirs = twin(config, about, parity.CLASSES)
    give_weights(ours, theirs, config)
    return config, ours, theirs


def test_features_agree(pair):
    parity.test_features_agree(pair)


def test_detections_agree(pair):
    parity.test_detections_agree(pair)


def test_losses_agree_when_the_same_regions_are_drawn(pair):
    parity.test_losses_agree_when_the_same_regions_are_drawn(pair)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto"])
def test_a_detection_run_learns_and_resumes_exactly(name, shapes, tmp_path, monkeypatch) -> None:
    source = write_timm(tmp_path / "source.safetensors", name)
    keys = ("backend=detectron2", "model.norm=BN", "model.fpn_norm=none", "log_every=1")
    recipe = runs.recipe("demo_faster_fpn", shapes, *keys)
    record = evaluate(recipe, source, tmp_path / "whole")
    losses = [row["loss"] for row in read_metrics(tmp_path / "whole" / "metrics.jsonl")]
    assert losses[-1] < losses[0]
    assert (record.facts.get("prefix_tokens") is not None) == name.startswith("vit")
    assert record.facts["conversion_difference"] <= 1e-4
    in_two_parts(lambda: evaluate(recipe, source, tmp_path / "parts"), 3, monkeypatch)
    runs.assert_same_files(tmp_path / "whole", tmp_path / "parts")
