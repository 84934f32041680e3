"""The pretrained backbone inside a torchvision detector: norm, frozen stages, pyramid or C4 trunk."""

from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from carryover.configs import UserError, WorkError
from carryover.core.backbones.build import STAGES, ResNet
from carryover.core.formats.backbone import BackboneConfig
from carryover.transfer.tasks.detection.model_config import C4Config, FPNConfig, NewNorm, Norm

FPN_STRIDES = (4, 8, 16, 32, 64)
C4_STRIDES = (16,)


class C4Trunk(nn.Module):
    """The backbone up to layer3, a map of stride 16 (Faster R-CNN's "C4")."""

    def __init__(self, resnet: ResNet) -> None:
        super().__init__()
        # layer4 downsamples: what it takes in is what layer3 gives out.
        self.out_channels = resnet.layer4[0].conv1.in_channels
        self.body = IntermediateLayerGetter(resnet, {"layer3": "0"})

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        features: OrderedDict[str, Tensor] = self.body(x)
        return features


class Res5Head(nn.Module):
    """layer4 as the head of every region, then the extra norm (MoCo's Res5ROIHeadsExtraNorm).

    Maps regions (n, C, 14, 14) of layer3 to (n, 2C, 7, 7), for boxes and masks alike.
    """

    def __init__(self, resnet: ResNet, extra_norm: nn.Module) -> None:
        super().__init__()
        self.layer4 = resnet.layer4
        self.norm = extra_norm
        self.out_channels = resnet.feature_dim

    def forward(self, regions: Tensor) -> Tensor:
        out: Tensor = self.norm(self.layer4(regions))
        return out


def require_detectable(backbone: BackboneConfig) -> None:
    """Raise UserError for a backbone that has no stages of strides 4 to 32."""
    if not backbone.is_resnet:
        raise UserError(f"{backbone.label}: detectors are built on ResNets only")
    if backbone.stem != "imagenet":
        raise UserError(
            f"{backbone.label} with the '{backbone.stem}' stem: a detector needs stages of strides 4, 8, 16"
            " and 32, so a backbone pretrained with stem 'imagenet'"
        )


def fpn_backbone(resnet: ResNet, config: FPNConfig) -> BackboneWithFPN:
    """Put a feature pyramid of strides 4 to 64 on `resnet` (torchvision's names: `body`, `fpn`)."""
    width = resnet.feature_dim // 8
    return BackboneWithFPN(
        resnet,
        return_layers={f"layer{i + 1}": str(i) for i in range(4)},
        in_channels_list=[width, 2 * width, 4 * width, 8 * width],
        out_channels=config.fpn_dim,
        extra_blocks=LastLevelMaxPool(),
        norm_layer=norm_factory(config.fpn_norm),
    )


def norm_factory(norm: Norm | NewNorm) -> Callable[[int], nn.Module] | None:
    """Return what makes a normalisation of that many channels; None for "none"."""
    if norm == "none":
        return None
    if norm == "FrozenBN":
        return FrozenBatchNorm2d
    return nn.BatchNorm2d if norm == "BN" else nn.SyncBatchNorm


def replace_norms(module: nn.Module, norm: Norm) -> None:
    """Turn every BatchNorm2d inside `module` into `norm`, keeping parameters and statistics, in place."""
    factory = norm_factory(norm)
    assert factory is not None
    for name, child in module.named_children():
        if not isinstance(child, nn.BatchNorm2d):
            replace_norms(child, norm)
        elif norm != "BN":
            new = factory(child.num_features)
            new.load_state_dict(child.state_dict())
            setattr(module, name, new)


def freeze_stages(resnet: ResNet, freeze_at: int) -> None:
    """Stop training the first `freeze_at` of stem, layer1 ... layer4, their statistics included."""
    for stage in STAGES[:freeze_at]:
        if stage == "stem":
            parts: tuple[nn.Module, ...] = (resnet.conv1,)
            if isinstance(resnet.bn1, nn.modules.batchnorm._BatchNorm):
                resnet.bn1 = _frozen(resnet.bn1)
        else:
            parts = (getattr(resnet, stage),)
            _freeze_norms(parts[0])
        for part in parts:
            part.requires_grad_(False)


def detector_names(canonical: Mapping[str, Tensor], config: C4Config | FPNConfig) -> dict[str, str]:
    """Map every canonical backbone name to its name in the detector's state dict."""
    head = "layer4." if config.name == "c4" else "\0"
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
        backbone tensor that the checkpoint does not account for; the tensor is named.
    """
    state = detector.state_dict()
    names = detector_names(canonical, config)
    for source, target in names.items():
        if target not in state:
            raise WorkError(f"the detector has no '{target}' for the checkpoint's '{source}'")
        if not torch.equal(state[target].cpu(), canonical[source]):
            raise WorkError(
                f"the detector's '{target}' differs from the checkpoint's '{source}': it was not carried over"
            )
    prefixes = ("backbone.body.", "roi_heads.box_head.layer4.")
    backbone = {n for n in state if n.startswith(prefixes) and not n.endswith("num_batches_tracked")}
    if random := sorted(backbone - set(names.values())):
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
