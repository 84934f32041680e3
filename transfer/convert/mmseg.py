"""Canonical -> mmsegmentation: a `.pth` for `init_cfg=dict(type="Pretrained", ...)` of its plain ResNet.

Networks of timm other than ResNets go into a backbone of carryover's, which `mmseg_networks` registers.
mmseg's own `VisionTransformer` and `SwinTransformer` interpolate positions and mask windows otherwise, so
that they compute the same at one size of image only.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor

from carryover.configs import UserError
from carryover.core.backbones.description import describe
from carryover.core.backbones.imported import Imported
from carryover.core.backbones.importers import EMBEDDED_KEY
from carryover.core.backbones.resnet import STAGES
from carryover.core.backbones.verify import LoadedModel
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.formats.canonical import CanonicalMetadata, metadata_text
from carryover.transfer.convert.held import Held, held_under, held_whole
from carryover.transfer.convert.mmcv_stub import install
from carryover.transfer.convert.target import Target, quiet, require_resnet, unchanged

NETWORKS = "carryover.transfer.convert.mmseg_networks"
PREFIX = "body."


def resnet_settings(config: BackboneConfig) -> dict[str, JsonValue]:
    """Return the `backbone=dict(...)` that makes mmseg build this very network.

    The type is the plain ResNet: the stock configurations' ResNetV1c has a deep stem that no checkpoint
    with torchvision's fits. Dilations and strides are the segmenter's to set; they take no tensors.
    """
    base = 64 * config.width
    assert config.depth is not None and config.groups is not None
    groups, width = config.groups
    grouped: dict[str, JsonValue] = {"type": "ResNet"}
    if (groups, width) != (1, base):
        grouped = {"type": "ResNeXt", "groups": groups, "base_width": width}
    return {
        **grouped,
        "depth": config.depth,
        "stem_channels": base,
        "base_channels": base,
        "num_stages": 4,
        "out_indices": [0, 1, 2, 3],
        "style": "caffe" if config.stride_in_1x1 else "pytorch",
        "deep_stem": False,
        "avg_down": False,
    }


def is_timms(config: BackboneConfig) -> bool:
    """Return whether mmseg's own ResNet and ResNeXt are none of this network, which is one of timm's."""
    return config.family == "timm" and config.groups is None


def _settings(about: CanonicalMetadata) -> dict[str, JsonValue]:
    if is_timms(about.backbone):
        return {"type": "CarryoverTimm", "network": about.backbone.stated(), "import": NETWORKS}
    return resnet_settings(about.backbone)


def _hold(imported: Imported) -> Held:
    held = held_whole(imported)
    return held_under(PREFIX, held) if is_timms(imported.metadata.backbone) else held


def _require(config: BackboneConfig) -> None:
    if is_timms(config):
        _require_dense(config)
        return
    require_resnet(config, "mmseg", "timm or torchvision")


def _require_dense(config: BackboneConfig) -> None:
    described = describe(config)
    if not described.hierarchical and described.patch_size is None:
        raise UserError(
            "mmseg is given networks with stages of strides 4 to 32 or plain transformers, not"
            f" {config.label}; convert to timm or torchvision instead"
        )


def _write(path: Path, tensors: Mapping[str, Tensor], about: CanonicalMetadata) -> None:
    torch.save({"meta": {}, EMBEDDED_KEY: metadata_text(about), "state_dict": dict(tensors)}, path)


def _read(path: Path) -> Mapping[str, Tensor]:
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    return state


def _version() -> tuple[str | None, str]:
    try:
        install()
        with quiet():
            import mmseg.models
    except (ImportError, AssertionError) as error:
        # mmseg asserts the version of mmcv.
        return None, str(error)
    return f"mmseg {mmseg.__version__}", ""


def _load(path: Path, config: BackboneConfig) -> Iterator[LoadedModel]:
    install()
    import mmseg.models  # noqa: F401 (registers ResNet)
    from mmengine.logging import MMLogger
    from mmseg.registry import MODELS

    if is_timms(config):
        import carryover.transfer.convert.mmseg_networks  # noqa: F401 (registers the backbone)

        own: dict[str, Any] = {"type": "CarryoverTimm", "network": config.stated()}
    else:
        own = resnet_settings(config)
    settings: dict[str, Any] = {
        **own,
        "norm_cfg": {"type": "BN", "requires_grad": True},
        "init_cfg": {"type": "Pretrained", "checkpoint": str(path)},
    }
    model: Any = MODELS.build(settings)
    # mmengine tells of every parameter; what counts is checked tensor by tensor later.
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        model.init_weights()
    finally:
        logger.setLevel(level)
    model.eval()

    if is_timms(config):
        names = describe(config).stages
        yield LoadedModel(
            f"mmseg CarryoverTimm {config.label}",
            model.body.state_dict(),
            lambda images: dict(zip(names, model(images), strict=True)),
            model.body.inner,
        )
        return

    def stages(images: Tensor) -> dict[str, Tensor]:
        first = model.relu(model.norm1(model.conv1(images)))
        # timm's first map is that before the max pooling.
        maps = {"act1": first} if config.family == "timm" else {"stem": model.maxpool(first)}
        return maps | dict(zip(STAGES[1:], model(images), strict=True))

    yield LoadedModel(f"mmseg {settings['type']}-{config.depth}", model.state_dict(), stages)


TARGET = Target(
    name="mmseg",
    suffixes=(".pth",),
    require=_require,
    rename=unchanged,
    rename_back=unchanged,
    write=_write,
    read=_read,
    version=_version,
    load=_load,
    settings=_settings,
    hold=_hold,
)
