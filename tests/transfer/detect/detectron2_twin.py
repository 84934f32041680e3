"""Build the Detectron2 model that one of our detectors should equal, and give it the same weights."""

import re

import torch
from torch import nn

from transfer.detect.model_config import C4Config, FPNConfig

STAGES = {"layer1": "res2", "layer2": "res3", "layer3": "res4", "layer4": "res5"}


def twin(config: C4Config | FPNConfig, depth: int, classes: int, pixel_mean, pixel_std):
    """Detectron2's model for one of our recipes, with random weights, on the CPU."""
    from detectron2.config import get_cfg
    from detectron2.layers import get_norm
    from detectron2.modeling import build_model

    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.MASK_ON = config.masks
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = list(pixel_mean), list(pixel_std)
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.DEPTH = depth
    if depth < 50:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [list(config.aspect_ratios)]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = classes
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = config.roi.batch_per_image
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = config.roi.score_threshold
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = config.rpn.pre_nms_train
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = config.rpn.pre_nms_test
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = config.rpn.post_nms_train
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = config.rpn.post_nms_test
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = config.rpn.batch_per_image
    cfg.INPUT.MASK_FORMAT = "bitmask"
    if isinstance(config, FPNConfig):
        _fpn(cfg, config)
        return build_model(cfg)
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [list(config.anchor_sizes)]
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = config.mask_dim
    model = build_model(cfg)
    if config.extra_norm:
        model.roi_heads.res5.add_module("norm", get_norm("BN", cfg.MODEL.RESNETS.RES2_OUT_CHANNELS * 8))
    return model


def _fpn(cfg, config: FPNConfig) -> None:
    levels = list(STAGES.values())
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = levels
    cfg.MODEL.FPN.IN_FEATURES = levels
    cfg.MODEL.FPN.NORM = "" if config.fpn_norm == "none" else "BN"
    cfg.MODEL.FPN.OUT_CHANNELS = config.fpn_dim
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[size] for size in config.anchor_sizes]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_BOX_HEAD.NUM_CONV = config.box_convs
    cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = config.box_conv_dim
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = config.box_fcs
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = config.box_fc_dim
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = config.mask_convs
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = config.mask_dim
    norm = "" if config.head_norm == "none" else "BN"
    cfg.MODEL.ROI_BOX_HEAD.NORM = cfg.MODEL.ROI_MASK_HEAD.NORM = norm


def give_weights(ours: nn.Module, theirs: nn.Module, config: C4Config | FPNConfig) -> None:
    """Copy every tensor of our detector into Detectron2's; fails unless it fills it completely."""
    state = {}
    for name, value in ours.state_dict().items():
        state.update(_translated(name, value, config))
    expected = {n for n in theirs.state_dict() if not n.startswith(("proposal_generator.anchor", "pixel_"))}
    assert set(state) == expected, sorted(set(state) ^ expected)[:10]
    theirs.load_state_dict(state, strict=False)


def _translated(name: str, value: torch.Tensor, config) -> dict[str, torch.Tensor]:
    body = "backbone.bottom_up." if isinstance(config, FPNConfig) else "backbone."
    if name.startswith("backbone.body."):
        return {body + _resnet(name.removeprefix("backbone.body.")): value}
    if name.startswith("roi_heads.box_head.layer4."):
        inner = _resnet(name.removeprefix("roi_heads.box_head.")).removeprefix("res5.")
        return {f"roi_heads.res5.{inner}": value}
    if name.startswith("roi_heads.box_head.norm."):
        return {name.replace("box_head.norm", "res5.norm"): value}
    if m := re.match(r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.(\d)\.(.*)", name):
        kind = "lateral" if m[1] == "inner" else "output"
        return {f"backbone.fpn_{kind}{int(m[2]) + 2}.{'norm.' if m[3] == '1' else ''}{m[4]}": value}
    if name.startswith("rpn.head."):
        renamed = name.removeprefix("rpn.head.").replace("conv.0.0", "conv")
        renamed = renamed.replace("cls_logits", "objectness_logits").replace("bbox_pred", "anchor_deltas")
        return {f"proposal_generator.rpn_head.{renamed}": value}
    if m := re.match(r"roi_heads\.(box|mask)_head\.(\d+)\.(\d)\.(.*)", name):
        layer = f"conv{int(m[2]) + 1}" if m[1] == "box" else f"mask_fcn{int(m[2]) + 1}"
        return {f"roi_heads.{m[1]}_head.{layer}.{'norm.' if m[3] == '1' else ''}{m[4]}": value}
    if m := re.match(r"roi_heads\.box_head\.(\d+)\.(weight|bias)", name):
        number = (int(m[1]) - config.box_convs - 1) // 2 + 1
        return {f"roi_heads.box_head.fc{number}.{m[2]}": value}
    if name.startswith("roi_heads.box_predictor.cls_score"):
        return {name: torch.cat([value[1:], value[:1]])}  # their background is the last class, ours the first
    if name.startswith("roi_heads.box_predictor.bbox_pred"):
        return {name: value[4:]}
    if name.startswith("roi_heads.mask_predictor.conv5_mask"):
        return {name.replace("mask_predictor.conv5_mask", "mask_head.deconv"): value}
    if name.startswith("roi_heads.mask_predictor.mask_fcn_logits"):
        return {name.replace("mask_predictor.mask_fcn_logits", "mask_head.predictor"): value[1:]}
    raise AssertionError(f"no counterpart known for {name}")


def _resnet(name: str) -> str:
    """torchvision's name of a ResNet tensor in Detectron2's scheme."""
    if name.startswith("conv1."):
        return "stem." + name
    if name.startswith("bn1."):
        return name.replace("bn1.", "stem.conv1.norm.")
    stage, rest = name.split(".", 1)
    rest = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", rest)
    rest = rest.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
    return f"{STAGES[stage]}.{rest}"
