"""Heads that Detectron2 lacks: res5 of basic blocks, the norm after res5, levels of any stride.

Imports Detectron2; importing this module registers them under their names.
"""

import math
from typing import Any

from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.backbone.resnet import BasicBlock, ResNet
from detectron2.modeling.roi_heads import Res5ROIHeads, StandardROIHeads
from torch import nn

_BASIC_BLOCKS = {18: 2, 34: 3}


class Res5ROIHeadsOfBackbone(Res5ROIHeads):
    """`Res5ROIHeads` whose res5 is the backbone's own last stage, whatever its depth.

    Detectron2 hard-codes three bottlenecks there, which is right from ResNet-50 on. BACKBONE.FREEZE_AT 5
    freezes res5 too, which the backbone of a C4 detector does not have.
    """

    @classmethod
    def _build_res5_block(cls, cfg: Any) -> tuple[Any, int]:
        blocks: Any
        blocks, channels = _res5(cfg) or super()._build_res5_block(cfg)
        if cfg.MODEL.BACKBONE.FREEZE_AT >= 5:
            for block in blocks:
                block.freeze()
        return blocks, channels


class Res5ROIHeadsExtraNorm(Res5ROIHeadsOfBackbone):
    """A normalization after res5, as in MoCo's detection code (its class has this name too)."""

    @classmethod
    def _build_res5_block(cls, cfg: Any) -> tuple[nn.Sequential, int]:
        blocks, channels = super()._build_res5_block(cfg)
        blocks.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))
        return blocks, channels


class StandardROIHeadsOfStrides(StandardROIHeads):
    """`StandardROIHeads` on levels whose strides need not be powers of two (patches of 14 pixels).

    Regions go to levels as on those of strides 4, 8, 16 and 32, and are cut out by the strides as they are.
    """

    @classmethod
    def _init_box_head(cls, cfg: Any, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        made: dict[str, Any] = super()._init_box_head(cfg, _in_powers_of_two(input_shape))
        _cut_by(made["box_pooler"], cfg, input_shape)
        return made

    @classmethod
    def _init_mask_head(cls, cfg: Any, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        made: dict[str, Any] = super()._init_mask_head(cfg, _in_powers_of_two(input_shape))
        if made:
            _cut_by(made["mask_pooler"], cfg, input_shape)
        return made


def _in_powers_of_two(shapes: dict[str, ShapeSpec]) -> dict[str, ShapeSpec]:
    return {
        name: ShapeSpec(channels=shape.channels, stride=2 ** round(math.log2(shape.stride)))
        for name, shape in shapes.items()
    }


def _cut_by(pooler: Any, cfg: Any, shapes: dict[str, ShapeSpec]) -> None:
    for level, name in zip(pooler.level_poolers, cfg.MODEL.ROI_HEADS.IN_FEATURES, strict=True):
        level.spatial_scale = 1.0 / shapes[name].stride


def _res5(cfg: Any) -> tuple[nn.Sequential, int] | None:
    """Return the res5 of a ResNet of basic blocks and its channels; None for a ResNet of bottlenecks."""
    resnets = cfg.MODEL.RESNETS
    blocks = _BASIC_BLOCKS.get(resnets.DEPTH)
    if blocks is None:
        return None
    channels = 8 * resnets.RES2_OUT_CHANNELS
    stage = ResNet.make_stage(
        BasicBlock,
        blocks,
        stride_per_block=[2] + [1] * (blocks - 1),
        in_channels=channels // 2,
        out_channels=channels,
        norm=resnets.NORM,
    )
    return nn.Sequential(*stage), channels


for _heads in (Res5ROIHeadsOfBackbone, Res5ROIHeadsExtraNorm, StandardROIHeadsOfStrides):
    # MoCo's code registers one of these names as well; whoever imported it first keeps it in one process.
    if _heads.__name__ not in ROI_HEADS_REGISTRY:
        ROI_HEADS_REGISTRY.register(_heads)
