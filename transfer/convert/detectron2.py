"""Canonical -> Detectron2: one `.pkl` that serves C4 and FPN models, exactly; ViTs and others of timm.

Detectron2 loads it through its own suffix matching: `res5.0.conv1.weight` is found both as
`backbone.bottom_up.res5.0.conv1.weight` (FPN) and as `roi_heads.res5.0.conv1.weight` (C4). The file says so
itself (`matching_heuristics`), and names its author: a `.pkl` without `__author__` is taken for Caffe2.
"""

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn.functional import relu

from carryover.configs import UserError, WorkError
from carryover.core.backbones.imported import Imported
from carryover.core.backbones.importers import EMBEDDED_KEY
from carryover.core.backbones.naming import from_detectron2, to_detectron2
from carryover.core.backbones.reading import read_contents
from carryover.core.backbones.resnet import STAGES
from carryover.core.backbones.verify import LoadedModel
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.formats.canonical import CanonicalMetadata, metadata_text
from carryover.transfer.convert import detectron2_timm, detectron2_vit
from carryover.transfer.convert.held import Held, held_under, held_whole
from carryover.transfer.convert.target import Target, quiet, require_resnet

AUTHOR = "carryover"
_STAGES = dict(zip(("res2", "res3", "res4", "res5"), STAGES[1:]))
_EXTRA_NORM = "res5.norm."
_BASIC = ("resnet18", "resnet34")


class _PortablePickler(pickle.Pickler):
    """Rebuilds arrays through `numpy.ndarray`, the one name that numpy 1 and numpy 2 have in common."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is np.ndarray:
            return np.ndarray, ((0,), value.dtype), value.__reduce__()[2]
        return NotImplemented


def resnet_settings(config: BackboneConfig) -> dict[str, JsonValue]:
    """Return the configuration keys that make Detectron2 build this backbone.

    STRIDE_IN_1X1 must be the backbone's, or the same weights compute other features.
    """
    assert config.depth is not None and config.groups is not None
    base, (groups, width) = 64 * config.width, config.groups
    return {
        "MODEL.RESNETS.DEPTH": config.depth,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": base,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": base if config.arch in _BASIC else 4 * base,
        "MODEL.RESNETS.WIDTH_PER_GROUP": width,
        "MODEL.RESNETS.NUM_GROUPS": groups,
        "MODEL.RESNETS.STRIDE_IN_1X1": config.stride_in_1x1,
        "MODEL.RESNETS.RES5_DILATION": 1,
    }


def model_settings(about: CanonicalMetadata) -> dict[str, JsonValue]:
    """The keys that build the backbone, and those that feed it the pixels it was trained on (in 0..255)."""
    return {
        **backbone_settings(about.backbone),
        "INPUT.FORMAT": about.channel_order,
        "MODEL.PIXEL_MEAN": [round(255 * mean, 6) for mean in about.pixel_mean],
        "MODEL.PIXEL_STD": [round(255 * std, 6) for std in about.pixel_std],
    }


def backbone_settings(config: BackboneConfig) -> dict[str, JsonValue]:
    """`resnet_settings`, or how Detectron2's own ViT, or carryover's backbone in Detectron2, is told."""
    if not detectron2_timm.is_timms(config):
        return resnet_settings(config)
    if detectron2_vit.own_vit(config) is not None:
        return {"detectron2.modeling.ViT": detectron2_vit.vit_settings(config)}
    return {"MODEL.BACKBONE.NAME": detectron2_vit.BUILDER, "import": detectron2_timm.NETWORKS}


def backbone_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every backbone tensor of a Detectron2 R-CNN under torchvision's names.

    Knows FPN models (`backbone.bottom_up`) and C4 models (`backbone` and `roi_heads.res5`, without the extra
    norm after res5). Raises WorkError for a tensor of the backbone that no plain ResNet has.
    """
    rcnn: Any = model
    if (own := detectron2_timm.tensors_of(rcnn.backbone)) is not None:
        return own
    trunk = rcnn.backbone.bottom_up if hasattr(rcnn.backbone, "bottom_up") else rcnn.backbone
    named = dict(trunk.state_dict())
    if res5 := getattr(rcnn.roi_heads, "res5", None):
        named |= {f"res5.{name}": value for name, value in res5.state_dict().items()}
    tensors = {}
    for name, value in named.items():
        if name.startswith(_EXTRA_NORM):
            continue
        source = from_detectron2(name)
        if source is None:
            raise WorkError(f"Detectron2 model: backbone tensor '{name}' is no tensor of a plain ResNet")
        tensors[source] = value
    return tensors


def _require(config: BackboneConfig) -> None:
    if detectron2_timm.is_timms(config):
        detectron2_timm.require_dense(config)
        return
    require_resnet(config, "detectron2", "timm or torchvision")
    if config.width != 1 and config.arch in _BASIC:
        raise UserError(
            f"'conv1.weight' has {64 * config.width} output channels ({config.label}); Detectron2 builds "
            "ResNet-18 and 34 with 64 only (it widens ResNets of bottlenecks)"
        )


def _hold(imported: Imported) -> Held:
    config = imported.metadata.backbone
    if not detectron2_timm.is_timms(config):
        return held_whole(imported)
    if detectron2_vit.own_vit(config) is not None:
        return held_under(detectron2_vit.PREFIX, detectron2_vit.hold(imported))
    return held_under(detectron2_timm.PREFIX, held_whole(imported))


def _write(path: Path, tensors: Mapping[str, Tensor], about: CanonicalMetadata) -> None:
    record = {
        "model": {name: value.numpy() for name, value in tensors.items()},
        "__author__": AUTHOR,
        "matching_heuristics": True,
        EMBEDDED_KEY: metadata_text(about),
    }
    with path.open("wb") as file:
        _PortablePickler(file, protocol=4).dump(record)


def _read(path: Path) -> Mapping[str, Tensor]:
    contents = read_contents(path)
    if contents.entries.get("__author__") is None or "matching_heuristics" not in contents.entries:
        raise WorkError(
            "detectron2 file: without '__author__' and 'matching_heuristics' Detectron2 takes it for Caffe2's"
        )
    return {name.removeprefix("model."): value for name, value in contents.tensors.items()}


def _version() -> tuple[str | None, str]:
    try:
        with quiet():
            import detectron2
            import detectron2.checkpoint
            import detectron2.modeling
    except ImportError as error:
        return None, str(error)
    return f"detectron2 {detectron2.__version__}", ""


def _load(path: Path, config: BackboneConfig) -> Iterator[LoadedModel]:
    if detectron2_timm.is_timms(config):
        for name, model in detectron2_timm.models(config):
            _load_with_detectron2(model, path)
            yield detectron2_timm.loaded(name, model.eval(), config)
        return
    for layout, build in (("FPN", _fpn_model), ("C4", _c4_model)):
        model = build(config)
        _load_with_detectron2(model, path)
        model.eval()
        yield LoadedModel(
            f"Faster R-CNN {config.label} {layout}", backbone_tensors(model), _stages_of(model, config)
        )


def _stages_of(model: Any, config: BackboneConfig) -> Any:
    is_fpn = hasattr(model.backbone, "bottom_up")
    trunk = model.backbone.bottom_up if is_fpn else model.backbone

    def stages(images: Tensor) -> dict[str, Tensor]:
        features = {name: value for name, value in trunk(images).items() if name in _STAGES}
        if not is_fpn:
            features["res5"] = model.roi_heads.res5(features["res4"])
        if config.family == "timm":
            # timm's first map is that before the max pooling.
            first = {"act1": relu(trunk.stem.conv1(images))}
        else:
            first = {"stem": trunk.stem(images)}
        return first | {_STAGES[name]: value for name, value in features.items()}

    return stages


def _load_with_detectron2(model: Any, path: Path) -> None:
    from detectron2.checkpoint import DetectionCheckpointer

    with quiet("detectron2", "fvcore", "fvcore.common.checkpoint"):
        DetectionCheckpointer(model).load(str(path))


def _config(config: BackboneConfig) -> Any:
    from detectron2.config import get_cfg

    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.NORM = "BN"
    for key, value in resnet_settings(config).items():
        cfg.merge_from_list([key, value])
    return cfg


def _fpn_model(config: BackboneConfig) -> Any:
    from detectron2.modeling import build_model

    cfg = _config(config)
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = list(_STAGES)
    cfg.MODEL.FPN.IN_FEATURES = list(_STAGES)
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 2
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    return build_model(cfg)


def _c4_model(config: BackboneConfig) -> Any:
    from detectron2.modeling import build_model
    from detectron2.modeling.backbone.resnet import BasicBlock, ResNet

    cfg = _config(config)
    # An RPN on res4 alone, as in every C4 model; the earlier stages come out for the comparison.
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4"]
    cfg.MODEL.ROI_HEADS.NAME = "Res5ROIHeads"
    model: Any = build_model(cfg)
    if config.arch in _BASIC:
        # Res5ROIHeads hard-codes three bottlenecks; ResNet-18 and 34 need their own basic blocks there.
        blocks = 2 if config.arch == "resnet18" else 3
        out = 8 * cfg.MODEL.RESNETS.RES2_OUT_CHANNELS
        model.roi_heads.res5 = nn.Sequential(
            *ResNet.make_stage(
                BasicBlock,
                blocks,
                stride_per_block=[2] + [1] * (blocks - 1),
                in_channels=out // 2,
                out_channels=out,
                norm="BN",
            )
        )
    return model


TARGET = Target(
    name="detectron2",
    suffixes=(".pkl",),
    require=_require,
    rename=to_detectron2,
    rename_back=from_detectron2,
    write=_write,
    read=_read,
    version=_version,
    load=_load,
    settings=model_settings,
    hold=_hold,
)
