"""`label_fraction` of detection and segmentation: parts of the training images, nested, and recorded."""

from pathlib import Path

import pytest

from carryover.configs import UserError, load
from carryover.configs.identity import recipe_hash
from carryover.core.data.shapes.write import write_shapes
from carryover.transfer.tasks.detection.task import Detection
from carryover.transfer.tasks.segmentation.task import Segmentation
from tests.transfer.tasks.segmentation.scenes import recipe, write_folders


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(
        tmp_path_factory.mktemp("data") / "shapes", n_train=20, n_val=10, n_detection=60
    ).detection


@pytest.mark.parametrize("name", ["demo_faster_fpn", "demo_mask_fpn"])
def test_a_detectors_parts_are_nested_and_leave_the_test_images_alone(shapes: Path, name: str) -> None:
    keys = [f"data.root={shapes}", "seed=5"]
    whole = Detection().prepare(load("transfer", name, keys))
    before: set[str] = set()
    for share in (0.1, 0.5, 1.0):
        part = Detection().prepare(load("transfer", name, [*keys, f"label_fraction={share}"]))
        ids = {image.id for image in part.train.images}
        assert before <= ids and len(ids) == round(share * len(whole.train.images))
        assert [i.id for i in part.test.images] == [i.id for i in whole.test.images]
        before = ids
    assert before == {image.id for image in whole.train.images}


def test_the_draw_is_the_runs_seed_or_the_recipes_own(shapes: Path) -> None:
    def ids(*keys: str) -> set[str]:
        config = load("transfer", "demo_faster_fpn", [f"data.root={shapes}", "label_fraction=0.3", *keys])
        return {image.id for image in Detection().prepare(config).train.images}

    assert ids("seed=1") != ids("seed=2")
    assert ids("seed=1", "label_seed=9") == ids("seed=2", "label_seed=9")


def test_a_segmenters_parts_are_nested_and_counted_anew(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "scenes")
    whole = Segmentation().prepare(recipe(root))
    small = Segmentation().prepare(recipe(root, "label_fraction=0.25"))
    half = Segmentation().prepare(recipe(root, "label_fraction=0.5"))
    names = [{image.id for image in splits.train.images} for splits in (small, half, whole)]
    assert names[0] < names[1] < names[2]
    assert [i.id for i in small.test.images] == [i.id for i in whole.test.images]
    assert 0 < small.train_pixels.sum() < half.train_pixels.sum() < whole.train_pixels.sum()


def test_all_images_are_the_recipe_of_before_and_a_part_is_another_one(shapes: Path) -> None:
    keys = [f"data.root={shapes}"]
    plain, all_of_them, part = (
        recipe_hash(load("transfer", "demo_faster_fpn", [*keys, *more]))
        for more in ([], ["label_fraction=1.0"], ["label_fraction=0.5"])
    )
    assert plain == all_of_them != part
    with pytest.raises(UserError, match="label_fraction"):
        load("transfer", "demo_faster_fpn", [*keys, "label_fraction=1.5"])
