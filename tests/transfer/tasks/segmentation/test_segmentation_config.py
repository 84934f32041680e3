"""Segmentation recipes: what is published, what scales together, what is refused."""

import pytest

from carryover.configs import UserError, load

PUBLISHED = {
    # name: (segmenter, classes, images a step, iterations, crop, how it is tested, backend)
    "fcn_r50_voc2012aug": ("FCN-d8", 21, 16, 20000, (512, 512), "whole", "torchvision"),
    "fcn_r50_cityscapes": ("FCN-d8", 19, 8, 40000, (769, 769), "slide", "torchvision"),
    "fcn_r50_ade20k": ("FCN-d8", 150, 16, 80000, (512, 512), "whole", "torchvision"),
    "upernet_r50_ade20k": ("UPerNet", 150, 16, 80000, (512, 512), "whole", "mmseg"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipe(name):
    recipe = load("transfer", name)
    solver, shown = recipe.solver, recipe.input
    found = (recipe.model.label, len(recipe.data.classes), solver.ims_per_batch, solver.iterations)
    assert (*found, shown.crop_size, shown.test_mode, recipe.backend) == PUBLISHED[name]
    # What all of them share.
    assert (solver.peak_lr, solver.final_lr, solver.power) == (0.01, 1e-4, 0.9)
    assert (solver.momentum, solver.weight_decay) == (0.9, 5e-4)
    assert shown.pixel_mean == (123.675, 116.28, 103.53)
    assert shown.pixel_std == (58.395, 57.12, 57.375)
    assert (shown.ratio_range, shown.cat_max_ratio) == ((0.5, 2.0), 0.75)
    assert (recipe.model.norm, recipe.model.auxiliary.weight) == ("SyncBN", 0.4)
    assert len(set(recipe.data.classes)) == len(recipe.data.classes)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("fcn")])
def test_the_same_recipe_serves_both_backends(name):
    here, there = load("transfer", name), load("transfer", name, ["backend=mmseg"])
    assert here.model_dump(exclude={"backend"}) == there.model_dump(exclude={"backend"})


def test_rates_and_iterations_scale_with_the_batch():
    solver = load("transfer", "fcn_r50_voc2012aug", ["solver.ims_per_batch=4"]).solver
    assert solver.peak_lr == pytest.approx(0.0025)
    assert solver.final_lr == pytest.approx(2.5e-5)
    assert solver.iterations == 80000


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.backbone=ResNetV1c", "'ResNetV1c' has a deep stem"),
        ("model.backbone=ResNetV1d", "'ResNetV1d' has a deep stem"),
        ("model.backbone=ResNeSt", "built on 'ResNet' only"),
        ("solver.lr=0.02", "lr is stated as 0.02"),
        ("solver.min_lr=0.1", "min_lr 0.1 is above base_lr 0.01"),
        ("input.ratio_range=[2.0, 0.5]", "ratio_range"),
        ("input.test_mode=slide", "test_stride"),
        ("input.channel_order=BGR", "input.channel_order"),
        ("model.outptu_stride=16", "did you mean 'output_stride'"),
        ("model.output_stride=4", "model.output_stride"),
    ],
)
def test_what_cannot_be_is_refused_by_key(override, message):
    with pytest.raises(UserError, match=message):
        load("transfer", "fcn_r50_voc2012aug", [override])


def test_a_window_that_leaves_gaps_is_refused():
    with pytest.raises(UserError, match="pixels between two windows would be in neither"):
        load("transfer", "fcn_r50_cityscapes", ["input.test_stride=[800, 513]"])


def test_upernet_is_built_by_both_libraries():
    for backend in ("torchvision", "mmseg"):
        assert load("transfer", "upernet_r50_ade20k", [f"backend={backend}"]).model.label == "UPerNet"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["palette=[[0, 0, 0]]"], "1 colors for 2 classes"),
        (["palette=[[0, 0, 0], [0, 0, 0]]"], "a color is listed twice"),
        (["palette=[[0, 0, 0], [0, 0, 300]]"], "300|less than or equal to 255"),
        (["ignore=1"], "ignore: 1 is the class 'thing'"),
        (["ignore=[1, 2, 3]"], "a color needs a palette"),
    ],
)
def test_folders_whose_masks_cannot_be_read_are_refused(lines, message):
    with pytest.raises(UserError, match=message):
        load("transfer", "fcn_folders", [f"data.{line}" for line in lines])
