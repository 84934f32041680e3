"""Networks of timm in Detectron2: which are its own ViT, which carryover's backbone (torch only)."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from carryover.configs import UserError
from carryover.core.backbones.dense import SIMPLE_SCALES
from carryover.core.backbones.description import describe
from carryover.core.backbones.relative_positions import without_tables
from carryover.core.backbones.verify import LoadedModel
from carryover.core.formats.backbone import BackboneConfig
from carryover.transfer.convert.detectron2_vit import own_vit

NETWORKS = "carryover.transfer.convert.detectron2_networks"
PREFIX = "body."


def is_timms(config: BackboneConfig) -> bool:
    """Return whether Detectron2's own ResNet is none of this network, which is one of timm's."""
    return config.family == "timm" and config.groups is None


def require_dense(config: BackboneConfig) -> None:
    """Raise UserError for a network of timm that carries no detector."""
    described = describe(config)
    if not described.hierarchical and described.patch_size is None:
        raise UserError(
            f"detectron2 is given networks with stages of strides 4 to 32 or plain transformers, not"
            f" {config.label}; convert to timm or torchvision instead"
        )
    if not described.hierarchical and described.patch_size not in SIMPLE_SCALES:
        raise UserError(
            f"{config.label}: Detectron2's pyramids take patches of 8, 14 or 16 pixels, not of"
            f" {described.patch_size}; convert to timm, torchvision or mmseg instead"
        )


def tensors_of(backbone: Any) -> dict[str, Tensor] | None:
    """Return the tensors of a network of timm in a backbone of Detectron2's by timm's names; None: none.

    Tables of relative positions, which its ViT adds, are left out. Raises WorkError where they are not zero.
    """
    net: Any = getattr(backbone, "net", None)
    inside: Any = getattr(backbone, "bottom_up", None) if net is None else net
    if hasattr(inside, "body"):
        return dict(inside.body.state_dict())
    return None if net is None else without_tables(net.state_dict(), "Detectron2's ViT")


def models(config: BackboneConfig) -> Iterator[tuple[str, nn.Module]]:
    """Yield the pyramids of Detectron2 that take a file's network, before they have loaded it."""
    from carryover.transfer.convert import detectron2_networks as networks

    told = networks.Told(config)
    if own_vit(config) is not None:
        yield f"Detectron2's ViT {config.label}", networks.simple_pyramid(told, networks.plain_vit(told))
        yield f"ViT {config.label} in carryover's detectors", networks.build(told)
    else:
        kind = "feature pyramid" if describe(config).hierarchical else "simple feature pyramid"
        yield f"{config.label} under Detectron2's {kind}", networks.build(told)


def loaded(name: str, pyramid: Any, config: BackboneConfig) -> LoadedModel:
    """Return a pyramid that has loaded a file, with the maps of its network."""
    tensors = tensors_of(pyramid)
    assert tensors is not None
    inside = getattr(pyramid, "net", None) or pyramid.bottom_up
    if hasattr(inside, "body"):
        network = inside.body.inner
        return LoadedModel(name, tensors, network.feature_maps, network)

    def stages(images: Tensor) -> dict[str, Tensor]:
        found: list[Tensor] = []
        hooks = [
            block.register_forward_hook(lambda module, inputs, output: found.append(output))
            for block in inside.blocks
        ]
        try:
            inside(images)
        finally:
            for hook in hooks:
                hook.remove()
        return dict(zip(describe(config).stages, (m.permute(0, 3, 1, 2) for m in found), strict=True))

    return LoadedModel(name, tensors, stages)
