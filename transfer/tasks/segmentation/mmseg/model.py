"""A recipe's segmenter in mmsegmentation's own settings, and the model built from them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from carryover.configs import WorkError
from carryover.core.backbones.resnet import dilations
from carryover.core.backbones.verify import prove_carried
from carryover.core.data.masks.dataset import IGNORED
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.formats.receipt import Receipt
from carryover.core.training.device import random_states_kept
from carryover.transfer.convert.mmcv_stub import install
from carryover.transfer.convert.mmseg import is_timms, resnet_settings
from carryover.transfer.convert.target import quiet
from carryover.transfer.tasks.segmentation.config import SegmentationConfig
from carryover.transfer.tasks.segmentation.maps import (
    as_trained,
    divisor_of,
    is_plain,
    stages_of,
    widths_of,
)
from carryover.transfer.tasks.segmentation.model_config import (
    FCNConfig,
    LinearHeadConfig,
    ModelConfig,
    UPerNetConfig,
)


def model_settings(
    config: SegmentationConfig, backbone: BackboneConfig, classes: int, converted: Path, norm: str
) -> dict[str, Any]:
    """Return mmseg's `model=dict(...)` of a recipe.

    Parameters
    ----------
    converted
        The backbone's file, as `carryover convert --to mmseg` writes it; it is loaded as `init_cfg`.
    norm
        "BN" or "SyncBN": mmseg's SyncBN is for several GPUs only.
    """
    model, shown = config.model, config.input
    norm_cfg = {"type": norm, "requires_grad": True}
    stages = stages_of(backbone, model)
    widths = widths_of(backbone, stages)
    shared = {
        "num_classes": classes,
        "norm_cfg": norm_cfg,
        "align_corners": model.align_corners,
        "dropout_ratio": model.dropout,
        "ignore_index": IGNORED,
    }
    if isinstance(model, FCNConfig):
        head: dict[str, Any] = {
            "type": "FCNHead",
            "in_channels": widths[3],
            "in_index": 3,
            "num_convs": model.convs,
            "concat_input": model.concat_input,
            "channels": model.channels,
        }
    elif isinstance(model, LinearHeadConfig):
        head = {
            "type": "CarryoverLinearHead",
            "in_channels": widths,
            # A backbone of mmseg's own gives all four stages.
            "in_index": list(range(len(widths)))
            if is_timms(backbone)
            else [4 - len(widths) + i for i in range(len(widths))],
            "input_transform": "resize_concat",
            "channels": sum(widths),
        }
    else:
        head = {
            "type": "UPerHead",
            "in_channels": widths,
            "in_index": [0, 1, 2, 3],
            "pool_scales": model.pool_scales,
            "channels": model.channels,
        }
    test: dict[str, Any] = {"mode": shown.test_mode}
    if shown.test_stride is not None:
        test |= {"crop_size": shown.crop_size, "stride": shown.test_stride}
    settings = {
        "type": "EncoderDecoder",
        "data_preprocessor": {
            "type": "SegDataPreProcessor",
            "mean": list(shown.pixel_mean),
            "std": list(shown.pixel_std),
            # mmcv decodes to BGR.
            "bgr_to_rgb": True,
            "pad_val": 0,
            "seg_pad_val": IGNORED,
            "size": shown.crop_size,
            # Test images are padded to whole patches, and the padding is cut off again.
            "test_cfg": {"size_divisor": divisor_of(backbone)} if divisor_of(backbone) > 1 else None,
        },
        "pretrained": None,
        "backbone": {
            **_backbone(model, backbone, stages),
            "norm_cfg": norm_cfg,
            "init_cfg": {"type": "Pretrained", "checkpoint": str(converted)},
        },
        "decode_head": head | shared | {"loss_decode": _cross_entropy(1.0)},
        "train_cfg": {},
        "test_cfg": test,
    }
    if is_plain(backbone) and isinstance(model, UPerNetConfig):
        settings["neck"] = {
            "type": "Feature2Pyramid",
            "embed_dim": widths[0],
            "rescales": [4, 2, 1, 0.5],
            "norm_cfg": norm_cfg,
        }
    if (auxiliary := model.auxiliary) is not None:
        settings["auxiliary_head"] = {
            "type": "FCNHead",
            "in_channels": widths[2],
            "in_index": 2,
            "channels": auxiliary.channels,
            "num_convs": auxiliary.convs,
            "concat_input": False,
            "loss_decode": _cross_entropy(auxiliary.weight),
            **shared,
        }
    return settings


def _backbone(model: ModelConfig, backbone: BackboneConfig, stages: Sequence[str]) -> dict[str, Any]:
    if is_timms(backbone):
        network = as_trained(backbone, model).stated()
        return {"type": "CarryoverTimm", "network": network, "stages": list(stages), "frozen": model.frozen}
    spread = dilations(model.output_stride if isinstance(model, FCNConfig) else 32)
    return {
        **resnet_settings(backbone),
        "strides": tuple(1 if d > 1 else s for d, s in zip(spread, (1, 2, 2, 2))),
        "dilations": spread,
        "contract_dilation": True,
        "norm_eval": model.frozen,
        "frozen_stages": 4 if model.frozen else -1,
    }


def build_model(settings: dict[str, Any], receipt: Receipt, seed: int) -> tuple[nn.Module, int]:
    """Build a model with mmseg and load its backbone; return it and the number of verified tensors.

    Everything new is initialized from `seed`. Raises WorkError naming the tensors that did not arrive.
    """
    install()
    with quiet():
        import mmseg.models  # noqa: F401 (registers the segmenters)

        import carryover.transfer.convert.mmseg_networks  # noqa: F401 (registers backbone and head)
    from mmengine.config import ConfigDict
    from mmengine.logging import MMLogger
    from mmengine.registry import DefaultScope
    from mmseg.registry import MODELS

    # mmengine logs every parameter; the tensors are verified one by one below.
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        with (
            random_states_kept(),
            quiet(),
            DefaultScope.overwrite_default_scope("mmseg"),
        ):
            torch.manual_seed(seed)
            model: Any = MODELS.build(ConfigDict(settings))
            model.init_weights()
    finally:
        logger.setLevel(level)
    return model, prove(model, receipt)


def prove(model: Any, receipt: Receipt) -> int:
    """Prove that a live model's backbone is the receipt's, and count its tensors; raises WorkError if not."""
    kind, expected = type(model.backbone).__name__, receipt.settings["type"]
    if kind != expected:
        raise WorkError(f"mmseg built a {kind} for a backbone, expected a {expected}")
    carried = model.backbone.body if kind == "CarryoverTimm" else model.backbone
    return prove_carried(receipt, carried.state_dict(), f"mmseg {type(model.decode_head).__name__}")


def _cross_entropy(weight: float) -> dict[str, Any]:
    return {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": weight}
