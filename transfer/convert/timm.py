"""Canonical -> timm: a safetensors file that `timm.create_model(..., checkpoint_path=...)` loads strictly."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import JsonValue
from safetensors.torch import load_file
from torch import Tensor

from carryover.configs import UserError
from carryover.core.backbones.description import describe
from carryover.core.backbones.resnet import STAGES
from carryover.core.backbones.timm_network import options_of
from carryover.core.backbones.verify import LoadedModel
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.formats.canonical import CanonicalMetadata, save_canonical
from carryover.transfer.convert.target import Target, quiet, require_resnet, unchanged


def _require(config: BackboneConfig) -> None:
    if config.family == "timm":
        return
    require_resnet(config, "timm", "canonical")
    if config.stride_in_1x1:
        raise UserError(
            f"{config.label} strides in its 1x1 convolutions, which timm's ResNet cannot; convert to"
            " detectron2, mmseg or torchvision instead"
        )
    if config.width != 1:
        raise UserError(
            f"'conv1.weight' has {64 * config.width} output channels ({config.label}); timm's stem has 64 "
            "channels and no setting for more: convert to detectron2 or mmseg instead"
        )


def _write(path: Path, tensors: Mapping[str, Tensor], about: CanonicalMetadata) -> None:
    save_canonical(path, tensors, about)


def _read(path: Path) -> Mapping[str, Tensor]:
    return load_file(path)


def _version() -> tuple[str | None, str]:
    try:
        import timm
    except ImportError as error:
        return None, str(error)
    return f"timm {timm.__version__}", ""


def _load(path: Path, config: BackboneConfig) -> Iterator[LoadedModel]:
    import timm

    with quiet("timm.models._helpers"):
        model: Any = timm.create_model(
            config.arch.removeprefix("timm/"),
            pretrained=False,
            checkpoint_path=str(path),
            **(options_of(config) if config.family == "timm" else {"num_classes": 0}),
        )
    model.eval()
    if config.family == "timm":
        yield LoadedModel(f"timm {config.label}", model.state_dict(), _all_stages(model, config), model)
        return

    def stages(images: Tensor) -> dict[str, Tensor]:
        maps = {"stem": model.maxpool(model.act1(model.bn1(model.conv1(images))))}
        intermediate = model.forward_intermediates(images, indices=[1, 2, 3, 4], intermediates_only=True)
        return maps | dict(zip(STAGES[1:], intermediate, strict=True))

    yield LoadedModel(f"timm {config.arch}", model.state_dict(), stages)


def _all_stages(model: Any, config: BackboneConfig) -> Callable[[Tensor], dict[str, Tensor]]:
    names = describe(config).stages

    def stages(images: Tensor) -> dict[str, Tensor]:
        maps = model.forward_intermediates(images, intermediates_only=True)
        return dict(zip(names, maps, strict=True))

    return stages


def _settings(about: CanonicalMetadata) -> dict[str, JsonValue]:
    name = about.backbone.arch.removeprefix("timm/")
    own = options_of(about.backbone) if about.backbone.family == "timm" else {"num_classes": 0}
    return {"model_name": name, **own}


TARGET = Target(
    name="timm",
    suffixes=(".safetensors",),
    require=_require,
    rename=unchanged,
    rename_back=unchanged,
    write=_write,
    read=_read,
    version=_version,
    load=_load,
    settings=_settings,
)
