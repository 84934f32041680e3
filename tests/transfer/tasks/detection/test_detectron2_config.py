"""Recipes in Detectron2's terms: what every self-supervised recipe states, and what its own files say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from carryover.configs import load
from carryover.core.formats.backbone import BackboneConfig
from carryover.transfer.tasks.detection.detectron2.config import (
    Surroundings,
    build_cfg,
    norm_in_words,
    settings,
)
from tests.transfer.tasks.detection.test_detection_config import PUBLISHED

RESNET50 = BackboneConfig(arch="resnet50")
EIGHT_GPUS = Surroundings(
    classes=80,
    train="ours_train",
    test="ours_test",
    mask_format="polygon",
    weights=Path("backbone.pkl"),
    out=Path("run"),
    device="cpu",
    processes=8,
)
ONE = replace(EIGHT_GPUS, processes=1)
# What a self-supervised recipe changes in the library's own model of that name.
RUN = {"DATASETS.TRAIN", "DATASETS.TEST", "MODEL.DEVICE", "MODEL.WEIGHTS", "OUTPUT_DIR", "SEED"}
SELF_SUPERVISED = {
    "INPUT.FORMAT",
    "MODEL.BACKBONE.FREEZE_AT",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "MODEL.RESNETS.NORM",
    "MODEL.RESNETS.STRIDE_IN_1X1",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.PRECISE_BN.ENABLED",
}
NEW_NORMS = {"MODEL.FPN.NORM", "MODEL.ROI_BOX_HEAD.NORM", "MODEL.ROI_MASK_HEAD.NORM"}


def recipe(name: str, *overrides: str) -> Any:
    return load("transfer", name, ["backend=detectron2", *overrides])


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_every_self_supervised_recipe_states(name):
    found = settings(recipe(name), RESNET50, EIGHT_GPUS)
    stated = {
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
        "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.RESNETS.DEPTH": 50,
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "TEST.PRECISE_BN.ENABLED": True,
        "TEST.PRECISE_BN.NUM_ITER": 200,
        "SOLVER.IMS_PER_BATCH": 16,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    }
    assert {key: found[key] for key in stated} == stated
    detector, steps, iterations, rate, warmup, _, norm = PUBLISHED[name]
    assert (found["SOLVER.STEPS"], found["SOLVER.MAX_ITER"]) == (list(steps), iterations)
    assert (found["SOLVER.BASE_LR"], found["SOLVER.WARMUP_ITERS"]) == (rate, warmup)
    assert found["MODEL.RESNETS.NORM"] == norm
    assert found["MODEL.MASK_ON"] is detector.startswith("Mask")
    if detector.endswith("C4"):
        assert found["MODEL.ROI_HEADS.NAME"] == "Res5ROIHeadsExtraNorm"
        assert found["MODEL.RPN.PRE_NMS_TOPK_TEST"] == 6000
    else:
        assert found["MODEL.FPN.NORM"] == found["MODEL.ROI_BOX_HEAD.NORM"] == "SyncBN"


def test_four_convolutions_and_one_linear_layer():
    found = settings(recipe("coco_fpn_4conv_12ep"), RESNET50, EIGHT_GPUS)
    assert (found["MODEL.ROI_BOX_HEAD.NUM_CONV"], found["MODEL.ROI_BOX_HEAD.NUM_FC"]) == (4, 1)
    assert found["INPUT.MIN_SIZE_TRAIN_SAMPLING"] == "range"
    assert found["INPUT.MIN_SIZE_TRAIN"] == [640, 800]


def test_rate_and_iterations_are_rescaled_together():
    found = settings(recipe("voc0712_c4_24k", "solver.ims_per_batch=4"), RESNET50, EIGHT_GPUS)
    assert found["SOLVER.IMS_PER_BATCH"] == 4
    assert found["SOLVER.BASE_LR"] == pytest.approx(0.005)
    assert (found["SOLVER.MAX_ITER"], found["SOLVER.STEPS"]) == (96000, [72000, 88000])
    assert (found["SOLVER.WARMUP_ITERS"], found["SOLVER.CHECKPOINT_PERIOD"]) == (400, 9600)


@pytest.mark.parametrize(
    ("backbone", "stem", "res2", "width"),
    [
        (BackboneConfig(arch="resnet18"), 64, 64, 64),
        (BackboneConfig(arch="resnet34"), 64, 64, 64),
        (BackboneConfig(arch="resnet50", width=2), 128, 512, 128),
        (BackboneConfig(arch="resnet50", width=4), 256, 1024, 256),
    ],
)
def test_widths_go_together(backbone, stem, res2, width):
    found = settings(recipe("coco_fpn_1x"), backbone, EIGHT_GPUS)
    keys = ("STEM_OUT_CHANNELS", "RES2_OUT_CHANNELS", "WIDTH_PER_GROUP")
    assert tuple(found[f"MODEL.RESNETS.{key}"] for key in keys) == (stem, res2, width)


def test_one_process_has_nothing_to_synchronize_and_says_so():
    for name in ("voc0712_c4_24k", "coco_fpn_1x"):
        found = settings(recipe(name), RESNET50, ONE)
        assert found["MODEL.RESNETS.NORM"] == "BN"
        assert found.get("MODEL.FPN.NORM", "BN") == "BN"
    assert norm_in_words(recipe("voc0712_c4_24k").model, 1) == "naiveSyncBN (BN in one process)"
    assert norm_in_words(recipe("voc0712_c4_24k").model, 8) == "naiveSyncBN"
    frozen = recipe("voc0712_c4_24k", "model.norm=FrozenBN").model
    assert norm_in_words(frozen, 1) == "FrozenBN"


@pytest.mark.detectron2
class TestWithDetectron2:
    @pytest.mark.parametrize(
        ("name", "file", "more"),
        [
            ("coco_fpn_1x", "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", NEW_NORMS),
            ("coco_c4_1x", "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml", {"MODEL.ROI_HEADS.NAME"}),
            (
                "voc0712_c4_24k",
                "PascalVOC-Detection/faster_rcnn_R_50_C4.yaml",
                # 24,000 iterations instead of 18,000.
                {"MODEL.ROI_HEADS.NAME", "SOLVER.MAX_ITER", "SOLVER.STEPS"},
            ),
        ],
    )
    def test_recipes_are_detectron2s_own_models_but_for_what_they_change(self, name, file, more):
        config = recipe(name)
        around = replace(EIGHT_GPUS, classes=20 if name.startswith("voc") else 80)
        differing = _differing(build_cfg(config, RESNET50, around), _published(file))
        assert differing == RUN | SELF_SUPERVISED | more

    @pytest.mark.parametrize("name", PUBLISHED)
    def test_the_loops_rate_is_that_of_detectron2s_scheduler(self, name):
        import torch
        from detectron2.solver import build_lr_scheduler

        solver = recipe(name).solver
        cfg = build_cfg(recipe(name), RESNET50, EIGHT_GPUS)
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
        scheduler = build_lr_scheduler(cfg, optimizer)
        around = [w + d for w in (solver.warmup, *solver.milestones) for d in (-1, 0, 1)]
        for iteration in sorted({0, 1, solver.warmup // 2, *around, solver.iterations - 1}):
            theirs = scheduler._multiplier(iteration / cfg.SOLVER.MAX_ITER)
            ours = solver.rate(iteration) / solver.peak_lr
            assert ours == pytest.approx(theirs, rel=1e-6), iteration


def _published(file: str) -> Any:
    import detectron2
    from detectron2.config import get_cfg

    package = Path(detectron2.__file__).parent
    found = [f / file for f in (package / "model_zoo" / "configs", package.parent / "configs")]
    path = next((p for p in found if p.is_file()), None)
    if path is None:
        pytest.skip("this Detectron2 came without its configuration files")
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    return cfg


def _differing(one: Any, two: Any) -> set[str]:
    first, second = dict(_flat(one)), dict(_flat(two))
    assert first.keys() == second.keys()
    return {key for key in first if first[key] != second[key]}


def _flat(node: Any, prefix: str = ""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, _as_list(value)


def _as_list(value: Any) -> Any:
    return [_as_list(part) for part in value] if isinstance(value, list | tuple) else value
