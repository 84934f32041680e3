"""Detection recipes: what is published, what scales together, what is refused."""

import pytest

from carryover.configs import UserError, load

PUBLISHED = {
    # name: (detector, steps, iterations, peak rate, warm-up, short edges in training, norm)
    "voc07_c4": ("Faster R-CNN C4", (9500,), 12500, 0.02, 100, (480, 800), "SyncBN"),
    "voc0712_c4_24k": ("Faster R-CNN C4", (18000, 22000), 24000, 0.02, 100, (480, 800), "naiveSyncBN"),
    "voc0712_fpn_24k": ("Faster R-CNN FPN", (18000, 22000), 24000, 0.02, 100, (480, 800), "SyncBN"),
    "coco_c4_1x": ("Mask R-CNN C4", (60000, 80000), 90000, 0.02, 1000, (640, 800), "naiveSyncBN"),
    "coco_c4_2x": ("Mask R-CNN C4", (120000, 160000), 180000, 0.02, 1000, (640, 800), "naiveSyncBN"),
    "coco_fpn_1x": ("Mask R-CNN FPN", (60000, 80000), 90000, 0.02, 1000, (640, 800), "SyncBN"),
    "coco_fpn_2x": ("Mask R-CNN FPN", (120000, 160000), 180000, 0.02, 1000, (640, 800), "SyncBN"),
    "coco_fpn_4conv_12ep": ("Faster R-CNN FPN", (51303, 80619), 87948, 0.2, 1000, (640, 800), "SyncBN"),
    "coco_fpn_90k_msbreg": ("Mask R-CNN FPN", (60000, 80000), 90000, 0.05, 50, (640, 800), "SyncBN"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipe(name):
    recipe = load("transfer", name)
    solver, sizes = recipe.solver, recipe.input.min_sizes_train
    found = (recipe.model.label, solver.milestones, solver.iterations, solver.peak_lr, solver.warmup)
    assert (*found, (sizes[0], sizes[-1]), recipe.model.norm) == PUBLISHED[name]
    # What all of them share.
    assert (solver.ims_per_batch, solver.momentum, solver.weight_decay) == (16, 0.9, 1e-4)
    assert recipe.input.pixel_mean == (123.675, 116.28, 103.53)
    assert recipe.input.pixel_std == (58.395, 57.12, 57.375)
    assert (recipe.input.min_size_test, recipe.input.max_size_test, recipe.model.freeze_at) == (800, 1333, 0)
    assert recipe.precise_bn == 200
    assert recipe.model.rpn.post_nms_test == 1000
    assert recipe.model.rpn.pre_nms_test == (6000 if recipe.model.name == "c4" else 1000)


def test_c4_has_the_extra_norm_and_fpn_normalizes_its_new_layers():
    assert load("transfer", "voc0712_c4_24k").model.extra_norm
    fpn = load("transfer", "coco_fpn_4conv_12ep").model
    assert (fpn.fpn_norm, fpn.head_norm, fpn.box_convs, fpn.box_fcs) == ("SyncBN", "SyncBN", 4, 1)


def test_rate_and_iterations_scale_with_the_batch():
    solver = load("transfer", "voc0712_c4_24k", ["solver.ims_per_batch=4"]).solver
    assert solver.peak_lr == pytest.approx(0.005)
    assert (solver.iterations, solver.milestones, solver.warmup) == (96000, (72000, 88000), 400)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("solver.steps=[20000, 18000]", "solver.steps: steps must ascend"),
        ("solver.steps=[24000]", "max_iter 24000: steps [24000] are not before it"),
        ("solver.warmup_iters=24000", "warmup_iters 24000 leaves nothing"),
        ("solver.lr=0.04", "lr is stated as 0.04"),
        ("model.masks=true", "the VOC layout has boxes only"),
        ("model.extra_nrom=true", "did you mean 'extra_norm'"),
        ("model.anchor_sizes=[]", "model.anchor_sizes"),
        ("data.test=2007 test", "data.test"),
        ("input.min_sizes_train=[1400]", "beyond max_size_train 1333"),
        ("input.min_size_sampling=range", "min_sizes_train: [smallest, largest]"),
        ("input.channel_order=BGR", "input.channel_order"),
    ],
)
def test_what_cannot_be_is_refused_by_key(override, message):
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        load("transfer", "voc0712_c4_24k", [override])


def test_a_custom_voc_set_takes_three_lines(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "base: voc0712_fpn_24k\ndata: {root: /data/bccd, title: BCCD, classes: [RBC, WBC, Platelets],"
        " train: [trainval], test: test}\n"
    )
    data = load("transfer", path).data
    assert data.year_and_list(data.train[0]) == (None, "trainval")
    assert data.year_and_list("2007/test") == (2007, "test")
    assert data.classes == ("RBC", "WBC", "Platelets")
