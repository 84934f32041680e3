"""Backbone and head that mmsegmentation does not have: timm's networks, and DINOv2's linear head.

Imports mmsegmentation; importing this module registers `CarryoverTimm` and `CarryoverLinearHead`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor, nn

from carryover.core.backbones.build import build_backbone
from carryover.core.backbones.description import describe
from carryover.core.formats.backbone import BackboneConfig


@MODELS.register_module()
class CarryoverTimm(BaseModule):
    """A network of timm, giving the maps of some stages; `body` holds its tensors under timm's names.

    Parameters
    ----------
    network
        Fields of `core.formats.backbone.BackboneConfig`.
    stages
        Which maps, by name, in the network's order; None: all.
    frozen
        Whether it is trained; a frozen one stays in evaluation mode.
    """

    def __init__(
        self,
        network: Mapping[str, Any],
        stages: Sequence[str] | None = None,
        norm_cfg: Mapping[str, Any] | None = None,
        frozen: bool = False,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg=dict(init_cfg) if init_cfg else None)
        config = BackboneConfig.model_validate(dict(network))
        built: Any = build_backbone(config)
        if norm_cfg is not None and norm_cfg["type"] == "SyncBN":
            built.inner = nn.SyncBatchNorm.convert_sync_batchnorm(built.inner)
        names = describe(config).stages if stages is None else tuple(stages)
        self.body = built.trunk({name: name for name in names})
        self.frozen = frozen
        if frozen:
            self.body.requires_grad_(False)

    def train(self, mode: bool = True) -> "CarryoverTimm":
        super().train(mode and not self.frozen)
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return tuple(self.body(x).values())


@MODELS.register_module()
class CarryoverLinearHead(BaseDecodeHead):
    """Batch normalization and a linear classifier of every cell (DINOv2's `BNHead`)."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        assert self.in_channels == self.channels
        self.bn = nn.SyncBatchNorm(self.channels) if _synchronized(self) else nn.BatchNorm2d(self.channels)

    def forward(self, inputs: list[Tensor]) -> Tensor:
        logits: Tensor = self.cls_seg(self.bn(self._transform_inputs(inputs)))
        return logits


def _synchronized(head: Any) -> bool:
    return head.norm_cfg is not None and head.norm_cfg["type"] == "SyncBN"
