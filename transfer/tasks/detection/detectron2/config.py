"""A detection recipe in Detectron2's own terms: every key that its defaults do not say already."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue

from carryover.core.formats.backbone import BackboneConfig
from carryover.transfer.convert.detectron2 import resnet_settings
from carryover.transfer.convert.detectron2_timm import is_timms
from carryover.transfer.convert.detectron2_vit import BUILDER
from carryover.transfer.tasks.detection.config import DetectionConfig, InputConfig, SolverConfig
from carryover.transfer.tasks.detection.model_config import C4Config, FPNConfig
from carryover.transfer.tasks.detection.pyramid import attending, pyramid_of

C4_HEADS = "Res5ROIHeadsOfBackbone"
EXTRA_NORM_HEADS = "Res5ROIHeadsExtraNorm"
PATCH_HEADS = "StandardROIHeadsOfStrides"
_STAGES = ["res2", "res3", "res4", "res5"]
_PYRAMID = ["p2", "p3", "p4", "p5", "p6"]
_SYNCHRONIZED = ("SyncBN", "naiveSyncBN")


@dataclass(frozen=True)
class Surroundings:
    """Settings of the run, rather than of the recipe.

    Attributes
    ----------
    classes
        Number of object classes.
    train, test
        The names under which the data sets are registered.
    mask_format
        "polygon", or "bitmask" where masks are stored as run lengths.
    weights, out
        The converted backbone, and the run's directory.
    device, processes
        As torch writes it, and how many train together.
    """

    classes: int
    train: str
    test: str
    mask_format: Literal["polygon", "bitmask"]
    weights: Path
    out: Path
    device: str
    processes: int


def build_cfg(config: DetectionConfig, backbone: BackboneConfig, around: Surroundings) -> Any:
    """Build Detectron2's configuration of a recipe around a backbone, frozen."""
    from detectron2.config import get_cfg

    import carryover.transfer.tasks.detection.detectron2.heads

    cfg = get_cfg()
    if is_timms(backbone):
        import carryover.transfer.convert.detectron2_networks  # noqa: F401 (registers the backbone)

        _add_network(cfg, config, backbone)
    cfg.merge_from_list([part for setting in settings(config, backbone, around).items() for part in setting])
    cfg.freeze()
    return cfg


def settings(config: DetectionConfig, backbone: BackboneConfig, around: Surroundings) -> dict[str, JsonValue]:
    """Return the keys of Detectron2's configuration that differ from its defaults, or must not."""
    return {
        **({} if is_timms(backbone) else resnet_settings(backbone)),
        **_detector(config.model, around),
        **(_of_timm(backbone) if is_timms(backbone) else {}),
        **_input(config.input, around),
        **_solver(config, around),
        "DATASETS.TRAIN": [around.train],
        "DATASETS.TEST": [around.test],
        "DATALOADER.NUM_WORKERS": config.workers,
        "TEST.DETECTIONS_PER_IMAGE": config.model.roi.detections_per_image,
        "TEST.PRECISE_BN.ENABLED": config.precise_bn > 0,
        "TEST.PRECISE_BN.NUM_ITER": config.precise_bn or 200,
        "MODEL.DEVICE": around.device,
        "MODEL.WEIGHTS": str(around.weights),
        "SEED": config.seed,
        "OUTPUT_DIR": str(around.out),
    }


def _add_network(cfg: Any, config: DetectionConfig, backbone: BackboneConfig) -> None:
    """Add a section that states which network of timm is built, and how."""
    from detectron2.config import CfgNode

    model = config.model
    assert isinstance(model, FPNConfig)
    cfg.MODEL.CARRYOVER = CfgNode(
        {
            "BACKBONE": json.dumps(attending(backbone, model, config.input).stated(), sort_keys=True),
            "LEVEL_NORM": "" if model.level_norm == "none" else model.level_norm,
            # Below zero: timm's own.
            "DROP_PATH": -1.0 if model.drop_path is None else model.drop_path,
            "SQUARE": config.input.square or 0,
        }
    )


def _of_timm(backbone: BackboneConfig) -> dict[str, JsonValue]:
    heads = PATCH_HEADS if pyramid_of(backbone).simple else "StandardROIHeads"
    return {"MODEL.BACKBONE.NAME": BUILDER, "MODEL.ROI_HEADS.NAME": heads}


def built_norm(norm: str, processes: int) -> str:
    """Return Detectron2's name of a normalization.

    In a single process there is nothing to synchronize: SyncBN and naiveSyncBN are BN there.
    """
    if norm == "none":
        return ""
    return "BN" if processes == 1 and norm in _SYNCHRONIZED else norm


def norm_in_words(config: C4Config | FPNConfig, processes: int) -> str:
    """Return what the record says of the normalization: the recipe's, and what it came to."""
    built = built_norm(config.norm, processes)
    return config.norm if built == config.norm else f"{config.norm} ({built} in one process)"


def _detector(config: C4Config | FPNConfig, around: Surroundings) -> dict[str, JsonValue]:
    rpn, roi = config.rpn, config.roi
    shared: dict[str, JsonValue] = {
        "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
        "MODEL.MASK_ON": config.masks,
        "MODEL.RESNETS.NORM": built_norm(config.norm, around.processes),
        "MODEL.BACKBONE.FREEZE_AT": config.freeze_at,
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [list(config.aspect_ratios)],
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": rpn.pre_nms_train,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": rpn.pre_nms_test,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": rpn.post_nms_train,
        "MODEL.RPN.POST_NMS_TOPK_TEST": rpn.post_nms_test,
        "MODEL.RPN.NMS_THRESH": rpn.nms_threshold,
        "MODEL.RPN.IOU_THRESHOLDS": [rpn.background_iou, rpn.foreground_iou],
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE": rpn.batch_per_image,
        "MODEL.RPN.POSITIVE_FRACTION": rpn.positive_fraction,
        "MODEL.RPN.CONV_DIMS": [-1] * rpn.head_convs,
        "MODEL.ROI_HEADS.NUM_CLASSES": around.classes,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": roi.batch_per_image,
        "MODEL.ROI_HEADS.POSITIVE_FRACTION": roi.positive_fraction,
        "MODEL.ROI_HEADS.IOU_THRESHOLDS": [roi.foreground_iou],
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": roi.score_threshold,
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": roi.nms_threshold,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": config.mask_dim,
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    }
    if isinstance(config, C4Config):
        return shared | _c4(config)
    return shared | _fpn(config, around.processes)


def _c4(config: C4Config) -> dict[str, JsonValue]:
    return {
        "MODEL.BACKBONE.NAME": "build_resnet_backbone",
        "MODEL.RESNETS.OUT_FEATURES": ["res4"],
        "MODEL.ANCHOR_GENERATOR.SIZES": [list(config.anchor_sizes)],
        "MODEL.RPN.IN_FEATURES": ["res4"],
        "MODEL.ROI_HEADS.NAME": EXTRA_NORM_HEADS if config.extra_norm else C4_HEADS,
        "MODEL.ROI_HEADS.IN_FEATURES": ["res4"],
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
        # The mask is read off res5 itself.
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 0,
    }


def _fpn(config: FPNConfig, processes: int) -> dict[str, JsonValue]:
    head_norm = built_norm(config.head_norm, processes)
    levels: list[JsonValue] = [*_PYRAMID]
    return {
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.RESNETS.OUT_FEATURES": [*_STAGES],
        "MODEL.FPN.IN_FEATURES": [*_STAGES],
        "MODEL.FPN.OUT_CHANNELS": config.fpn_dim,
        "MODEL.FPN.NORM": built_norm(config.fpn_norm, processes),
        "MODEL.ANCHOR_GENERATOR.SIZES": [[size] for size in config.anchor_sizes],
        "MODEL.RPN.IN_FEATURES": levels,
        "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
        # The coarsest level gives proposals only.
        "MODEL.ROI_HEADS.IN_FEATURES": levels[:-1],
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
        "MODEL.ROI_BOX_HEAD.NUM_CONV": config.box_convs,
        "MODEL.ROI_BOX_HEAD.CONV_DIM": config.box_conv_dim,
        "MODEL.ROI_BOX_HEAD.NUM_FC": config.box_fcs,
        "MODEL.ROI_BOX_HEAD.FC_DIM": config.box_fc_dim,
        "MODEL.ROI_BOX_HEAD.NORM": head_norm,
        "MODEL.ROI_MASK_HEAD.NUM_CONV": config.mask_convs,
        "MODEL.ROI_MASK_HEAD.NORM": head_norm,
    }


def _input(config: InputConfig, around: Surroundings) -> dict[str, JsonValue]:
    return {
        "INPUT.FORMAT": config.channel_order,
        "INPUT.MASK_FORMAT": around.mask_format,
        "INPUT.MIN_SIZE_TRAIN": list(config.min_sizes_train),
        "INPUT.MIN_SIZE_TRAIN_SAMPLING": config.min_size_sampling,
        "INPUT.MAX_SIZE_TRAIN": config.max_size_train,
        "INPUT.MIN_SIZE_TEST": config.min_size_test,
        "INPUT.MAX_SIZE_TEST": config.max_size_test,
        "INPUT.RANDOM_FLIP": "horizontal" if config.flip else "none",
        "MODEL.PIXEL_MEAN": list(config.pixel_mean),
        "MODEL.PIXEL_STD": list(config.pixel_std),
    }


def _solver(config: DetectionConfig, around: Surroundings) -> dict[str, JsonValue]:
    """Everything at the batch of the run: the recipe has scaled rate and iterations together."""
    solver: SolverConfig = config.solver
    return {
        "SOLVER.IMS_PER_BATCH": solver.ims_per_batch,
        "SOLVER.BASE_LR": solver.peak_lr,
        "SOLVER.MAX_ITER": solver.iterations,
        "SOLVER.STEPS": list(solver.milestones),
        "SOLVER.GAMMA": solver.gamma,
        "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
        "SOLVER.WARMUP_METHOD": "linear",
        "SOLVER.WARMUP_ITERS": solver.warmup,
        "SOLVER.WARMUP_FACTOR": solver.warmup_factor,
        "SOLVER.MOMENTUM": solver.momentum,
        "SOLVER.NESTEROV": False,
        "SOLVER.WEIGHT_DECAY": solver.weight_decay,
        "SOLVER.WEIGHT_DECAY_NORM": solver.weight_decay_norm,
        "SOLVER.CHECKPOINT_PERIOD": max(1, solver.iterations // config.checkpoints),
    }
