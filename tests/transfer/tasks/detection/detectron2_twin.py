"""Build the Detectron2 model that one of our detectors should equal, and give it the same weights."""

import re
from pathlib import Path

import torch
from torch import nn

from carryover.core.formats.backbone import BackboneConfig
from carryover.transfer.tasks.detection.config import DetectionConfig
from carryover.transfer.tasks.detection.detectron2.config import Surroundings, build_cfg
from carryover.transfer.tasks.detection.model_config import C4Config, FPNConfig

DATA = {
    "kind": "coco",
    "root": "none",
    "train": {"annotations": "train.json", "images": "train"},
    "test": {"annotations": "test.json", "images": "test"},
}
STAGES = {"layer1": "res2", "layer2": "res3", "layer3": "res4", "layer4": "res5"}


def twin(config: C4Config | FPNConfig, arch: str | BackboneConfig, classes: int):
    """The model that the Detectron2 backend builds for one of our recipes, with random weights."""
    from detectron2.modeling import build_model

    # The model takes nothing from the rest of a recipe, which has to have some data and some schedule.
    recipe = DetectionConfig.model_validate(
        {"backend": "detectron2", "data": DATA, "model": config, "solver": {"max_iter": 2, "warmup_iters": 1}}
    )
    around = Surroundings(classes, "a_train", "a_test", "bitmask", Path("none"), Path("none"), "cpu", 1)
    about = arch if isinstance(arch, BackboneConfig) else BackboneConfig(arch=arch)
    return build_model(build_cfg(recipe, about, around))


def give_weights(ours: nn.Module, theirs: nn.Module, config: C4Config | FPNConfig) -> None:
    """Copy every tensor of our detector into Detectron2's; fails unless it fills it completely."""
    state = {}
    trunk = next((t for t in ("net.body", "bottom_up.body", "net") if _has(theirs.backbone, t)), None)
    for name, value in ours.state_dict().items():
        if trunk is not None and name.startswith(
            ("backbone.body.", "backbone.simfp", "backbone.level_norms")
        ):
            state.update(_of_timm(name.removeprefix("backbone."), value, trunk, theirs))
        else:
            state.update(_translated(name, value, config))
    expected = {n for n in theirs.state_dict() if not n.startswith(("proposal_generator.anchor", "pixel_"))}
    assert set(state) == expected, sorted(set(state) ^ expected)[:10]
    theirs.load_state_dict(state, strict=False)


def _has(module: nn.Module, name: str) -> bool:
    return name in dict(module.named_modules())


def _of_timm(name: str, value: torch.Tensor, trunk: str, theirs: nn.Module) -> dict[str, torch.Tensor]:
    """Names of a network of timm, of the norms of its levels, and of a simple feature pyramid."""
    if m := re.fullmatch(r"(simfp_\d\.\d)\.([01])\.(weight|bias)", name):
        return {f"backbone.{m[1]}.{'norm.' if m[2] == '1' else ''}{m[3]}": value}
    if name.startswith("simfp"):
        return {f"backbone.{name}": value}
    if m := re.match(r"level_norms\.(\d)\.(.*)", name):
        return {f"backbone.bottom_up.level_norms.res{int(m[1]) + 2}.{m[2]}": value}
    name = name.removeprefix("body.")
    if trunk == "net" and (name.startswith(("norm.", "fc_norm.")) or name.endswith(".gamma")):
        # Detectron2's own ViT has no norm after its last block, and no LayerScale (here one).
        return {}
    if trunk == "net" and name == "pos_embed":
        # It keeps a position for the class token, which it leaves out.
        theirs_is = theirs.state_dict()["backbone.net.pos_embed"]
        value = torch.cat([theirs_is[:, :1], value], dim=1)
    return {f"backbone.{trunk}.{name}": value}


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
        renamed = name.removeprefix("rpn.head.")
        several = config.rpn.head_convs > 1
        renamed = re.sub(r"conv\.(\d)\.0", r"conv.conv\1" if several else "conv", renamed)
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
