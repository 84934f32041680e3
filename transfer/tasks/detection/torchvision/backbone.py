"""The pretrained backbone inside a torchvision detector: norm, frozen stages, pyramid or C4 trunk."""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d
from torchvision.models.convnext import LayerNorm2d
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from carryover.configs import UserError, WorkError
from carryover.core.backbones.declared import Declared
from carryover.core.backbones.dense import SIMPLE_SCALES
from carryover.core.backbones.description import description_of
from carryover.core.backbones.relative_positions import without_tables
from carryover.transfer.tasks.detection.model_config import C4Config, FPNConfig, NewNorm, Norm
from carryover.transfer.tasks.detection.pyramid import FPN_STRIDES

C4_STRIDES = (16,)


class C4Trunk(nn.Module):
    """The backbone up to the stage of stride 16 (Faster R-CNN's "C4")."""

    def __init__(self, network: Declared) -> None:
        super().__init__()
        self.out_channels = network.widths[-2]
        self.body = network.trunk({network.stages[-2]: "0"})

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        features: OrderedDict[str, Tensor] = self.body(x)
        return features


class Res5Head(nn.Module):
    """The last stage as the head of every region, then the extra norm (MoCo's Res5ROIHeadsExtraNorm).

    Maps regions (n, C, 14, 14) of the stage before to (n, 2C, 7, 7), for boxes and masks alike.

    Attributes
    ----------
    stage
        The backbone's name of the stage, under which its module lies here too.
    """

    def __init__(self, network: Declared, extra_norm: nn.Module) -> None:
        super().__init__()
        self.stage = network.stages[-1]
        self.add_module(self.stage, getattr(network, self.stage))
        self.norm = extra_norm
        self.out_channels = network.feature_dim

    def forward(self, regions: Tensor) -> Tensor:
        out: Tensor = self.norm(self.get_submodule(self.stage)(regions))
        return out


class Pyramid(nn.Module):
    """A feature pyramid on a backbone's stages, as torchvision's BackboneWithFPN with any network as `body`.

    Maps images (B, 3, H, W) to maps (B, `out_channels`, H / s, W / s), s = 4, 8, 16, 32 and 64.
    """

    def __init__(self, network: Declared, channels: Sequence[int], config: FPNConfig) -> None:
        super().__init__()
        levels = description_of(cast(nn.Module, network)).levels
        self.body = network.trunk({levels[stride]: str(i) for i, stride in enumerate(FPN_STRIDES[:4])})
        normed = config.level_norm == "LN"
        self.level_norms = nn.ModuleList(
            LayerNorm2d(c, eps=1e-6) if normed else nn.Identity() for c in channels
        )
        self.fpn = FeaturePyramidNetwork(
            list(channels),
            config.fpn_dim,
            extra_blocks=LastLevelMaxPool(),
            norm_layer=norm_factory(config.fpn_norm),
        )
        self.out_channels = config.fpn_dim

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        stages: dict[str, Tensor] = self.body(x)
        levels = OrderedDict((name, norm(m)) for norm, (name, m) in zip(self.level_norms, stages.items()))
        maps: OrderedDict[str, Tensor] = self.fpn(levels)
        return maps


class SimplePyramid(nn.Module):
    """ViTDet's simple feature pyramid on a plain transformer's last map (Li et al. 2022, Sec. 3).

    Structure and names are those of Detectron2's `SimpleFeaturePyramid`: `simfp_2` to `simfp_5` enlarge the
    map by deconvolution 4 and 2 times, leave it, and halve it by max pooling (over patches of 8 pixels they
    enlarge it 2 times, leave it, halve it, and halve it twice); then a 1x1 and a 3x3 convolution follow, each
    normalized. Maps images (B, 3, H, W) to maps (B, `out_channels`, H / s, W / s), s as in `pyramid_of`.
    """

    def __init__(self, network: Declared, config: FPNConfig) -> None:
        super().__init__()
        self.body = network.trunk({network.stages[-1]: "0"})
        width, self.out_channels = network.widths[-1], config.fpn_dim
        make_norm = norm_factory("LN" if config.fpn_norm == "none" else config.fpn_norm)
        assert make_norm is not None
        assert network.patch_size is not None
        # All of them before any convolution: initial values are drawn in this order.
        scalings = [_scaling(width, scale, make_norm) for scale in SIMPLE_SCALES[network.patch_size]]
        for number, (layers, channels) in enumerate(scalings, start=2):
            convs = [
                nn.Sequential(nn.Conv2d(channels, config.fpn_dim, 1, bias=False), make_norm(config.fpn_dim)),
                nn.Sequential(
                    nn.Conv2d(config.fpn_dim, config.fpn_dim, 3, padding=1, bias=False),
                    make_norm(config.fpn_dim),
                ),
            ]
            self.add_module(f"simfp_{number}", nn.Sequential(*layers, *convs))

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        last = self.body(x)["0"]
        maps = [self.get_submodule(f"simfp_{number}")(last) for number in (2, 3, 4, 5)]
        maps.append(max_pool2d(maps[-1], kernel_size=1, stride=2))
        return OrderedDict((str(index), level) for index, level in enumerate(maps))


def _scaling(width: int, scale: float, make_norm: Callable[[int], nn.Module]) -> tuple[list[nn.Module], int]:
    """Return the layers that enlarge a map of that many channels `scale` times, and the channels after."""
    if scale < 1:
        factor = round(1 / scale)
        return [nn.MaxPool2d(factor, stride=factor)], width
    layers: list[nn.Module] = []
    for step in range(round(math.log2(scale))):
        layers += [make_norm(width), nn.GELU()] if step else []
        layers.append(nn.ConvTranspose2d(width, width // 2, 2, stride=2))
        width //= 2
    return layers, width


def fpn_backbone(network: Declared, config: FPNConfig) -> Pyramid | SimplePyramid:
    """Put a feature pyramid on a network: over its stages, or a simple one on a plain transformer."""
    described = description_of(cast(nn.Module, network))
    if not described.hierarchical:
        return SimplePyramid(network, config)
    channels = [described.width_of(described.levels[stride]) for stride in FPN_STRIDES[:4]]
    return Pyramid(network, channels, config)


def norm_factory(norm: Norm | NewNorm) -> Callable[[int], nn.Module] | None:
    """Return what makes a normalization of that many channels; None for "none"."""
    if norm == "none":
        return None
    if norm == "FrozenBN":
        return FrozenBatchNorm2d
    if norm == "LN":
        return partial(LayerNorm2d, eps=1e-6)
    return nn.BatchNorm2d if norm == "BN" else nn.SyncBatchNorm


def replace_norms(module: nn.Module, norm: Norm) -> None:
    """Turn every BatchNorm2d inside `module` into `norm`, keeping parameters and statistics, in place."""
    factory = norm_factory(norm)
    assert factory is not None
    for name, child in module.named_children():
        if not isinstance(child, nn.BatchNorm2d):
            replace_norms(child, norm)
        elif norm != "BN" and type(child) is not nn.BatchNorm2d:
            raise UserError(
                f"model.norm {norm}: the backbone's {type(child).__name__} is batch norm and activation"
                " in one; choose model.norm: BN"
            )
        elif norm != "BN":
            new = factory(child.num_features)
            new.load_state_dict(child.state_dict())
            setattr(module, name, new)


def freeze_stages(network: nn.Module, freeze_at: int) -> None:
    """Stop training the first `freeze_at` of stem and four levels, their statistics included."""
    assert isinstance(network, Declared)
    for part in network.parts[:freeze_at]:
        for name in part:
            _freeze(network, name)


def _freeze(network: nn.Module, name: str) -> None:
    parent, _, last = name.rpartition(".")
    part = network.get_submodule(name)
    if isinstance(part, nn.modules.batchnorm._BatchNorm):
        setattr(network.get_submodule(parent), last, _frozen(part))
    else:
        _freeze_norms(part)
        part.requires_grad_(False)


def detector_names(canonical: Mapping[str, Tensor], head_stage: str | None) -> dict[str, str]:
    """Map every canonical backbone name to its name in the detector's state dict.

    `head_stage` is the stage that is the head of every region; None in a detector with a pyramid.
    """
    head = "\0" if head_stage is None else f"{head_stage}."
    return {
        name: f"roi_heads.box_head.{name}" if name.startswith(head) else f"backbone.body.{name}"
        for name in canonical
        if not name.endswith("num_batches_tracked")
    }


def assert_carried(detector: nn.Module, canonical: Mapping[str, Tensor], config: C4Config | FPNConfig) -> int:
    """Prove that every backbone tensor of `detector` equals the checkpoint's, and count them.

    `num_batches_tracked` counters are not weights and are left out.

    Raises
    ------
    WorkError
        A tensor of the checkpoint is missing from the detector or differs from it, or the detector has a
        backbone tensor that the checkpoint does not account for (but tables of relative positions, which
        begin at zero); the tensor is named.
    """
    state = detector.state_dict()
    head = detector.get_submodule("roi_heads.box_head")
    stage = head.stage if isinstance(head, Res5Head) else None
    names = detector_names(canonical, stage)
    for source, target in names.items():
        if target not in state:
            raise WorkError(f"the detector has no '{target}' for the checkpoint's '{source}'")
        if not torch.equal(state[target].cpu(), canonical[source]):
            raise WorkError(
                f"the detector's '{target}' differs from the checkpoint's '{source}': it was not carried over"
            )
    prefixes = ("backbone.body.", *([] if stage is None else [f"roi_heads.box_head.{stage}."]))
    backbone = {n for n in state if n.startswith(prefixes) and not n.endswith("num_batches_tracked")}
    new = {name: state[name] for name in backbone - set(names.values())}
    if random := sorted(without_tables(new, "the detector")):
        raise WorkError(f"the checkpoint has nothing for the detector's '{random[0]}' ({len(random)} such)")
    return len(names)


def _freeze_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, _frozen(child))
        else:
            _freeze_norms(child)


def _frozen(norm: nn.modules.batchnorm._BatchNorm) -> FrozenBatchNorm2d:
    frozen = FrozenBatchNorm2d(norm.num_features, eps=norm.eps)
    frozen.load_state_dict(norm.state_dict())
    return frozen
