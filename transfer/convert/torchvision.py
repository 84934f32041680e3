"""Canonical -> torchvision: a plain state dict for its classifiers and for the bodies of its detectors."""

from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torchvision
from pydantic import JsonValue
from torch import Tensor, nn
from torchvision.models import list_models
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone

from carryover.configs import UserError
from carryover.core.backbones.build import build_backbone
from carryover.core.backbones.resnet import STAGES
from carryover.core.backbones.timm_network import options_of
from carryover.core.backbones.verify import LoadedModel
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.formats.canonical import CanonicalMetadata
from carryover.transfer.convert.target import Target, require_resnet, unchanged


def _require(config: BackboneConfig) -> None:
    if config.is_resnet:
        require_resnet(config, "torchvision", "canonical")
    elif config.stem != "imagenet":
        raise UserError(
            f"{config.label} with the {config.stem} stem: torchvision's first stride is 2, not 1: it "
            "would compute other features; pretrain with `stem: imagenet` to carry a backbone there"
        )


def _write(path: Path, tensors: Mapping[str, Tensor], about: CanonicalMetadata) -> None:
    torch.save(dict(tensors), path)


def _read(path: Path) -> Mapping[str, Tensor]:
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _version() -> tuple[str | None, str]:
    return f"torchvision {metadata.version('torchvision')}", ""


def _load(path: Path, config: BackboneConfig) -> Iterator[LoadedModel]:
    state = _read(path)
    if (name := _own_name(config)) is not None:
        yield _classifier(state, config, name)
    if config.is_resnet:
        yield _detector_body(state, config)
    elif config.family == "timm":
        yield _trunk(state, config)


def _own_name(config: BackboneConfig) -> str | None:
    """Return what torchvision calls a network that it builds itself; None for one that it does not."""
    if config.width != 1 or config.stride_in_1x1:
        return None
    name = config.arch.removeprefix("timm/")
    return name if config.family != "timm" or (config.groups is not None and name in list_models()) else None


def _trunk(state: Mapping[str, Tensor], config: BackboneConfig) -> LoadedModel:
    """Return timm's network under the pyramids of carryover's torchvision detectors."""
    network = build_backbone(config)
    network.load_state_dict(dict(state), strict=True)
    network.eval()
    body = network.trunk({stage: stage for stage in network.stages})
    kind = "simple feature pyramid" if network.patch_size else "feature pyramid"
    return LoadedModel(f"{config.label} under torchvision's {kind}", body.state_dict(), body, network)


def _classifier(state: Mapping[str, Tensor], config: BackboneConfig, name: str) -> LoadedModel:
    model: Any = torchvision.models.get_model(name, weights=None)
    heads = ("fc.", "classifier.")
    model.load_state_dict(dict(state), strict=False)
    model.eval()
    tensors = {name: value for name, value in model.state_dict().items() if not name.startswith(heads)}

    def stages(images: Tensor) -> dict[str, Tensor]:
        maps = {}
        if config.groups is not None:
            x = model.relu(model.bn1(model.conv1(images)))
            # timm's first map is that before the max pooling.
            if config.family == "timm":
                maps["act1"] = x
            x = model.maxpool(x)
            if config.family != "timm":
                maps["stem"] = x
            for stage in STAGES[1:]:
                maps[stage] = x = getattr(model, stage)(x)
            return maps
        x = images
        for index, block in enumerate(model.features):
            maps[f"features.{index}"] = x = block(x)
        return maps

    return LoadedModel(f"torchvision.models.{name}", tensors, stages)


def _detector_body(state: Mapping[str, Tensor], config: BackboneConfig) -> LoadedModel:
    if _own_name(config) is not None:
        name = "resnet_fpn_backbone body"
        pyramid = resnet_fpn_backbone(
            backbone_name=config.arch, weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
        )
    else:
        # torchvision has no constructor for these ResNets; its FPN takes carryover's class.
        name = f"BackboneWithFPN body (carryover's ResNet{', widened' if config.width > 1 else ''})"
        network = build_backbone(config)
        layers = {stage: str(index) for index, stage in enumerate(STAGES[1:])}
        pyramid = BackboneWithFPN(network, layers, list(network.widths[1:]), out_channels=256)
    body: Any = pyramid.body
    body.load_state_dict(dict(state), strict=True)
    body.eval()

    def stages(images: Tensor) -> dict[str, Tensor]:
        stem = images
        for module in ("conv1", "bn1", "relu", "maxpool"):
            stem = body[module](stem)
        return {"stem": stem} | dict(zip(STAGES[1:], body(images).values(), strict=True))

    return LoadedModel(name, body.state_dict(), stages)


def _options(config: BackboneConfig) -> dict[str, JsonValue]:
    return {"model_name": config.arch.removeprefix("timm/"), **options_of(config)}


def _settings(about: CanonicalMetadata) -> dict[str, JsonValue]:
    if about.backbone.family == "timm" and _own_name(about.backbone) is None:
        return {"library": "timm", **_options(about.backbone)}
    if _own_name(about.backbone) is None:
        return {
            "class": "carryover.core.backbones.resnet.ResNet",
            "arch": about.backbone.arch,
            "width": about.backbone.width,
            "stride_in_1x1": about.backbone.stride_in_1x1,
        }
    return {
        "model": _own_name(about.backbone),
        "weights": None,
        "load_state_dict": "strict=False (the file has no head)",
    }


TARGET = Target(
    name="torchvision",
    suffixes=(".pth", ".pt"),
    require=_require,
    rename=unchanged,
    rename_back=unchanged,
    write=_write,
    read=_read,
    version=_version,
    load=_load,
    settings=_settings,
)
