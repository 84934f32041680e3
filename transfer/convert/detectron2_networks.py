"""Backbones that Detectron2 does not have: timm's networks under its pyramids, its ViT at any image size.

Imports Detectron2; importing this module registers `build_carryover_backbone`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from detectron2.layers import Conv2d, FrozenBatchNorm2d, get_norm
from detectron2.layers.batch_norm import LayerNorm
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid, ViT
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from carryover.core.backbones.build import build_backbone
from carryover.core.backbones.declared import Declared
from carryover.core.backbones.dense import SIMPLE_SCALES
from carryover.core.backbones.description import describe
from carryover.core.formats.backbone import BackboneConfig
from carryover.transfer.convert.detectron2_vit import BUILDER, own_vit, vit_settings

LAST = "last_feat"
_LEVELS = {4: "res2", 8: "res3", 16: "res4", 32: "res5"}


@dataclass(frozen=True)
class Told:
    """Section of a recipe on a backbone, in Detectron2's terms.

    Attributes
    ----------
    norm, pyramid_norm, level_norm
        Of the network's batch normalizations, of the pyramid's convolutions ("": none), and of the maps that
        a feature pyramid takes ("LN" or "").
    freeze_at
        How many parts of the network are not trained.
    square
        Sides of the square that images are padded to; 0: none.
    """

    config: BackboneConfig
    channels: int = 256
    norm: str = "BN"
    pyramid_norm: str = ""
    level_norm: str = ""
    drop_path: float | None = None
    freeze_at: int = 0
    square: int = 0


class TimmBackbone(Backbone):
    """A network of timm, giving the maps of some stages; `body` holds its tensors under timm's names."""

    def __init__(self, network: Declared, names: Mapping[str, str], level_norm: str = "") -> None:
        super().__init__()
        self.body = network.trunk(names)
        at = {stage: index for index, stage in enumerate(network.stages)}
        widths = {name: network.widths[at[stage]] for stage, name in names.items()}
        self._out_features = list(names.values())
        self._out_feature_channels = widths
        self._out_feature_strides = {name: network.strides[at[stage]] for stage, name in names.items()}
        normed = {name: LayerNorm(width) for name, width in widths.items()} if level_norm else {}
        self.level_norms = nn.ModuleDict(normed)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = self.body(x)
        return {n: self.level_norms[n](m) if n in self.level_norms else m for n, m in maps.items()}


class TimmPositionsViT(ViT):
    """Detectron2's ViT, its positions interpolated as timm does it (bicubic with antialiasing)."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.patch_embed(x)
        positions = self.pos_embed[:, 1:] if self.pretrain_use_cls_token else self.pos_embed
        grid = [x.shape[1], x.shape[2]]
        x = x + resample_abs_pos_embed(positions, grid, num_prefix_tokens=0).view(1, *grid, -1)
        for block in self.blocks:
            x = block(x)
        return {self._out_features[0]: x.permute(0, 3, 1, 2)}


class PatchPyramid(SimpleFeaturePyramid):
    """Detectron2's simple feature pyramid on patches of any size, which pads images to whole patches.

    Detectron2 builds it for strides that are powers of two; of patches of 14 pixels they are 3.5 to 28. It
    halves a map once: a quarter, for the last level over patches of 8 pixels, is added. Its own
    `padding_constraints` misspells the divisibility, so that without a square nothing is padded.
    """

    def __init__(self, net: Any, channels: int, norm: str, square: int = 0) -> None:
        patch: int = net._out_feature_strides[LAST]
        scales = SIMPLE_SCALES[patch]
        net._out_feature_strides = {LAST: 4 * int(scales[0])}
        theirs = [scale for scale in scales if scale >= 0.5]
        super().__init__(net, LAST, channels, theirs, LastLevelMaxPool(), norm=norm, square_pad=square)
        net._out_feature_strides = {LAST: patch}
        width = net._out_feature_channels[LAST]
        for number, scale in enumerate(scales[len(theirs) :], start=2 + len(theirs)):
            self._add_level(number, round(1 / scale), width, channels, norm)
        strides = [patch / scale for scale in scales]
        self._out_features = [f"p{number}" for number in range(2, 7)]
        self._out_feature_strides = dict(zip(self._out_features, [*strides, 2 * strides[-1]]))
        self._out_feature_channels = dict.fromkeys(self._out_features, channels)
        self._size_divisibility = int(strides[-1])

    def _add_level(self, number: int, factor: int, width: int, channels: int, norm: str) -> None:
        bare = norm == ""
        layers = nn.Sequential(
            nn.MaxPool2d(factor, stride=factor),
            Conv2d(width, channels, 1, bias=bare, norm=get_norm(norm, channels)),
            Conv2d(channels, channels, 3, padding=1, bias=bare, norm=get_norm(norm, channels)),
        )
        self.add_module(f"simfp_{number}", layers)
        self.stages.append(layers)

    @property
    def size_divisibility(self) -> int:
        divisibility: int = self._size_divisibility
        return divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {"size_divisibility": self._size_divisibility, "square_size": self._square_pad}


def plain_vit(told: Told, kind: type[ViT] = ViT) -> ViT:
    """Build Detectron2's own ViT for a network that it can be."""
    shape = own_vit(told.config)
    assert shape is not None
    vit = kind(
        **vit_settings(told.config),
        drop_path_rate=told.drop_path or 0.0,
        norm_layer=partial(nn.LayerNorm, eps=shape.eps),
        out_feature=LAST,
    )
    for part in [vit.patch_embed, vit.blocks][: told.freeze_at]:
        part.requires_grad_(False)
    return vit


def simple_pyramid(told: Told, net: Any) -> PatchPyramid:
    """Put a simple feature pyramid on the last map of a plain transformer."""
    return PatchPyramid(net, told.channels, told.pyramid_norm or "LN", told.square)


def build(told: Told) -> Any:
    """Build the pyramid of a network of timm: over its stages, or a simple one on a plain transformer."""
    if own_vit(told.config) is not None:
        return simple_pyramid(told, plain_vit(told, TimmPositionsViT))
    config = told.config
    if told.drop_path is not None:
        config = config.model_copy(update={"drop_path": told.drop_path})
    network = _network(told, config)
    described = describe(config)
    if not described.hierarchical:
        return simple_pyramid(told, TimmBackbone(network, {network.stages[-1]: LAST}))
    names = {described.levels[stride]: name for stride, name in _LEVELS.items()}
    bottom_up = TimmBackbone(network, names, told.level_norm)
    return FPN(bottom_up, list(names.values()), told.channels, told.pyramid_norm, LastLevelMaxPool())


def _network(told: Told, config: BackboneConfig) -> Any:
    network: Any = build_backbone(config)
    if told.norm in ("SyncBN", "naiveSyncBN"):
        network.inner = nn.SyncBatchNorm.convert_sync_batchnorm(network.inner)
    if told.norm == "FrozenBN":
        network.inner = FrozenBatchNorm2d.convert_frozen_batchnorm(network.inner)
    for part in network.parts[: told.freeze_at]:
        for name in part:
            parent, _, last = name.rpartition(".")
            module = network.get_submodule(name)
            frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(module)
            if frozen is not module:
                setattr(network.get_submodule(parent) if parent else network.inner, last, frozen)
            frozen.requires_grad_(False)
    return network


def _from_cfg(cfg: Any, input_shape: Any) -> Any:
    """Build what `cfg.MODEL.CARRYOVER` says."""
    node = cfg.MODEL.CARRYOVER
    told = Told(
        config=BackboneConfig.model_validate_json(node.BACKBONE),
        channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.RESNETS.NORM,
        pyramid_norm=cfg.MODEL.FPN.NORM,
        level_norm=node.LEVEL_NORM,
        drop_path=None if node.DROP_PATH < 0 else node.DROP_PATH,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        square=node.SQUARE,
    )
    return build(told)


if BUILDER not in BACKBONE_REGISTRY:
    _from_cfg.__name__ = BUILDER
    BACKBONE_REGISTRY.register(_from_cfg)
