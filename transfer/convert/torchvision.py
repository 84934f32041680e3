"""Canonical -> torchvision: a plain state dict for its classifiers and for the bodies of its detectors."""

from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torchvision
from pydantic import JsonValue
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone

from carryover.configs import UserError
from carryover.core.backbones.build import build_backbone
from carryover.core.backbones.resnet import STAGES
from carryover.core.backbones.verify import LoadedModel
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.formats.canonical import CanonicalMetadata
from carryover.transfer.convert.target import Target, require_plain_resnet, unchanged


def _require(config: BackboneConfig) -> None:
    if config.is_resnet:
        require_plain_resnet(config, "torchvision")
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
    if config.width == 1:
        yield _classifier(state, config)
    if config.is_resnet:
        yield _detector_body(state, config)


def _classifier(state: Mapping[str, Tensor], config: BackboneConfig) -> LoadedModel:
    model: Any = torchvision.models.get_model(config.arch, weights=None)
    heads = ("fc.", "classifier.")
    model.load_state_dict(dict(state), strict=False)
    model.eval()
    tensors = {name: value for name, value in model.state_dict().items() if not name.startswith(heads)}

    def stages(images: Tensor) -> dict[str, Tensor]:
        maps = {}
        if config.is_resnet:
            x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
            maps["stem"] = x
            for name in STAGES[1:]:
                maps[name] = x = getattr(model, name)(x)
            return maps
        x = images
        for index, block in enumerate(model.features):
            maps[f"features.{index}"] = x = block(x)
        return maps

    return LoadedModel(f"torchvision.models.{config.arch}", tensors, stages)


def _detector_body(state: Mapping[str, Tensor], config: BackboneConfig) -> LoadedModel:
    if config.width == 1:
        name = "resnet_fpn_backbone body"
        pyramid = resnet_fpn_backbone(
            backbone_name=config.arch, weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
        )
    else:
        # torchvision has no constructor for ResNets widened throughout; its FPN takes the widened class.
        name = "BackboneWithFPN body (widened ResNet)"
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


def _settings(about: CanonicalMetadata) -> dict[str, JsonValue]:
    if about.backbone.width > 1:
        return {
            "class": "carryover.core.backbones.resnet.ResNet",
            "arch": about.backbone.arch,
            "width": about.backbone.width,
        }
    return {
        "model": about.backbone.arch,
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
